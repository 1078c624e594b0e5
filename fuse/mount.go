package fuse

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrMountpoint says that a directory cannot be mounted on. The chain holds the reason.
var ErrMountpoint = errors.New("mountpoint cannot be used")

// Reasons that are no errno.
var (
	errAlready    = errors.New("already mounted")
	errNotEmpty   = errors.New("not empty (the mount option nonempty hides what is there)")
	errAllowOther = errors.New("allow_other needs the line user_allow_other in /etc/fuse.conf")
)

// ErrFlag says that a mount option is not known.
var ErrFlag = errors.New("unknown mount option")

// A flag is what a mount option does to the flags of mount(2).
type flag struct{ set, clear uintptr }

// flags are the options of mount(8) that are flags of mount(2), for all file systems.
var flags = map[string]flag{
	"ro": {unix.MS_RDONLY, 0}, "rw": {0, unix.MS_RDONLY},
	"nosuid": {unix.MS_NOSUID, 0}, "suid": {0, unix.MS_NOSUID},
	"nodev": {unix.MS_NODEV, 0}, "dev": {0, unix.MS_NODEV},
	"noexec": {unix.MS_NOEXEC, 0}, "exec": {0, unix.MS_NOEXEC},
	"noatime": {unix.MS_NOATIME, unix.MS_RELATIME | unix.MS_STRICTATIME}, "atime": {0, unix.MS_NOATIME},
	"nodiratime": {unix.MS_NODIRATIME, 0}, "diratime": {0, unix.MS_NODIRATIME},
	"relatime":    {unix.MS_RELATIME, unix.MS_NOATIME | unix.MS_STRICTATIME},
	"strictatime": {unix.MS_STRICTATIME, unix.MS_NOATIME | unix.MS_RELATIME},
	"nosymfollow": {unix.MS_NOSYMFOLLOW, 0}, "symfollow": {0, unix.MS_NOSYMFOLLOW},
	"sync": {unix.MS_SYNCHRONOUS, 0}, "async": {0, unix.MS_SYNCHRONOUS},
	"dirsync": {unix.MS_DIRSYNC, 0}, "silent": {unix.MS_SILENT, 0}, "loud": {0, unix.MS_SILENT},
}

// An order is what to mount, after the options have been understood.
type order struct {
	point      string // absolute, as the kernel's table will have it
	source     string
	words      []string // the options that are flags, in their order
	flags      uintptr
	allowOther bool
	nonEmpty   bool
}

// newOrder reads the options. Devices and setuid programs of an image are
// dead unless asked for; the last word on a subject wins.
func newOrder(o Options) (order, error) {
	r := order{source: o.FsName, flags: unix.MS_NOSUID | unix.MS_NODEV, allowOther: o.AllowOther || os.Geteuid() == 0}
	for _, word := range o.Flags {
		f, ok := flags[word]
		switch {
		case ok:
			r.flags = r.flags&^f.clear | f.set
			r.words = append(r.words, word)
		case word == "nonempty":
			r.nonEmpty = true
		case word == "allow_other":
			r.allowOther = true
		case word != "defaults":
			return r, fmt.Errorf("%w %q", ErrFlag, word)
		}
	}
	if o.FS.ReadOnly() {
		r.flags |= unix.MS_RDONLY
		r.words = append(slices.DeleteFunc(r.words, func(w string) bool { return w == "rw" }), "ro")
	}
	if r.source == "" {
		r.source = subtype
	}
	return r, r.resolve(o.Mountpoint)
}

// resolve checks that the directory can be mounted on.
func (r *order) resolve(dir string) (err error) {
	if err = r.check(dir); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMountpoint, dir, err)
	}
	return nil
}

// CheckMountpoint says what Mount would say of a directory: who looks early fetches nothing in vain.
func CheckMountpoint(dir string, nonEmpty bool) error {
	return (&order{nonEmpty: nonEmpty}).resolve(dir)
}

func (r *order) check(dir string) (err error) {
	if r.point, err = mountPath(dir); err != nil {
		return err
	}
	m, ok, err := Mounted(r.point)
	if err != nil {
		return err
	}
	if ok && m.FSType == FSType { // looked at before the directory is: a dead mount must not answer
		return fmt.Errorf("%w (%s)", errAlready, m.Source)
	}
	names, err := firstName(r.point)
	switch {
	case err != nil:
		return err
	case len(names) > 0 && !r.nonEmpty:
		return errNotEmpty
	}
	return nil
}

// firstName lists at most one name of a directory. What cannot be read can still be mounted on.
func firstName(dir string) ([]string, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if !st.IsDir() {
		return nil, unix.ENOTDIR
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, nil
	}
	defer func() { _ = f.Close() }()
	names, _ := f.Readdirnames(1) // io.EOF: empty
	return names, nil
}

// mount makes the mount and returns the descriptor on which the kernel asks.
// The superuser does it himself; others are helped by fusermount3.
func (r *order) mount() (fd int, err error) {
	fd, err = r.mountDirect()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		fd, err = r.mountHelped()
	}
	if err != nil {
		return -1, fmt.Errorf("%w: %s: %w", ErrMountpoint, r.point, err)
	}
	return fd, nil
}

func (r *order) mountDirect() (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,%s",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), strings.Join(r.fsOptions(), ","))
	err = unix.Mount(r.source, r.point, FSType, r.flags, data)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("mount: %w", err)
	}
	return fd, nil
}

// fsOptions are the options of the FUSE file system itself (fuse_fs_parameters in fs/fuse/inode.c).
func (r *order) fsOptions() []string {
	o := []string{"default_permissions", fmt.Sprintf("max_read=%d", maxRequest)}
	if r.allowOther {
		o = append(o, "allow_other")
	}
	return o
}

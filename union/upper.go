package union

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

var (
	// ErrBusy says that another server uses the upper directory.
	ErrBusy = errors.New("the upper directory is in use")
	// ErrOtherBase says that an upper directory was made on another image.
	ErrOtherBase = errors.New("the upper directory belongs to another base image")
)

// UpperOptions of OpenUpper.
type UpperOptions struct {
	Create   bool          // make the two directories where they are missing
	ReadOnly bool          // only look: no lock, no work directory, nothing is changed
	Force    bool          // accept an upper directory of another base
	Numbers  *os.File      // keeps the IDs of nodes for FS.Resume; nil: there will be none
	Resume   bool          // a server of the same mount has died: keep what FS.Resume needs of the work directory
	Volatile bool          // no fsync: what is written is thrown away anyway
	Base     digest.Digest // Tree.Digest of the tree below; "" is not checked
	BaseRef  string        // what the base was called, for people
	Note     string        // what else the caller wants to know of the base later
	IDs      IDMap         // of a new upper directory; one that is there must have the same, or none may be asked for
	Logger   *slog.Logger  // nil discards
}

// An Upper is an upper directory in overlayfs's format and its work directory.
//
// Whiteouts are character devices 0:0, opaque directories have the xattr
// overlay.opaque=y (Documentation/filesystems/overlayfs.rst). The xattrs are
// in the trusted namespace where the process may use it, else in user. Our own
// marks lie below overlay.layerfs., where overlayfs ignores them.
type Upper struct {
	root, work int    // descriptors of the two directories; work is -1 for ReadOnly
	dir        string // absolute path of the upper one
	prefix     string
	dotWh      bool          // whiteouts may be .wh. files: another program made the directory
	redirects  bool          // there may be renamed lower directories; protected by FS.ns
	had        map[uint64]ID // protected by FS.tab; IDs by backing inode that an earlier FS gave
	lastID     ID            // the highest of them
	fresh      bool          // empty and new: the root has nothing of the tree yet
	emptyWh    atomic.Bool   // whiteouts are empty files with an xattr, at least some
	seq        atomic.Uint64 // of names in work
	torn       []string      // files in work that have other names too: New deals with them
	o          UpperOptions
	log        *slog.Logger
	baseRef    string
	note       string
	ids        IDMap
}

const (
	trustedPrefix = "trusted.overlay."
	userPrefix    = "user.overlay."

	xattrOpaque   = "opaque"         // fs/overlayfs/overlayfs.h OVL_XATTR_OPAQUE_POSTFIX
	xattrWhiteout = "whiteout"       // OVL_XATTR_XWHITEOUT_POSTFIX
	xattrRedirect = "redirect"       // OVL_XATTR_REDIRECT_POSTFIX
	xattrEscape   = "overlay."       // OVL_XATTR_ESCAPE_PREFIX, after the prefix
	xattrOrigin   = "layerfs.origin" // ours: the ID of the lower node that was copied up
	xattrBase     = "layerfs.base"   // ours, on the root: Tree.Digest
	xattrBaseRef  = "layerfs.ref"    // ours, on the root: the image's name
	xattrNote     = "layerfs.note"   // ours, on the root: UpperOptions.Note
	xattrIDs      = "layerfs.ids"    // ours, on the root: IDMap.String
	xattrDotWh    = "layerfs.wh"     // ours, on the root: there may be whiteouts in the form of .wh. files
	xattrMoved    = "layerfs.moved"  // ours, on the root: lower directories were renamed
)

// OpenUpper opens an upper directory. The work directory must be on the same
// file system; what a crash left in it is removed. A work directory that
// another process holds is ErrBusy, an upper directory that was made on
// another tree ErrOtherBase.
func OpenUpper(dir, work string, o UpperOptions) (*Upper, error) {
	u := &Upper{root: -1, work: -1, o: o, log: o.Logger}
	u.seq.Store(uint64(time.Now().UnixNano())) // no name of a former process, some of which are still there
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	err := u.open(dir, work)
	if err != nil {
		u.Close()
		return nil, fmt.Errorf("open upper directory %s: %w", dir, err)
	}
	return u, nil
}

func (u *Upper) open(dir, work string) (err error) {
	if u.o.Create {
		// What leads to it is for its owner alone: it holds set-user-ID files of the image, writable by whom they say.
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o700), os.MkdirAll(dir, 0o755), os.MkdirAll(work, 0o700)); err != nil {
			return err
		}
	}
	if err := u.readIDs(); err != nil {
		return err
	}
	if u.root, err = openDir(dir); err != nil {
		return err
	}
	if u.dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if !u.o.ReadOnly {
		if err := u.openWork(dir, work); err != nil {
			return err
		}
	}
	foreign, err := u.choosePrefix()
	if err != nil {
		return err
	}
	if v, err := fgetxattr(u.root, u.prefix+xattrOpaque); err == nil && string(v) == "x" {
		u.emptyWh.Store(true)
	}
	if err := errors.Join(u.checkBase(), u.chooseIDs()); err != nil || u.fresh {
		return err
	}
	return u.lookOver(u.root, "", foreign)
}

func openDir(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

func (u *Upper) openWork(dir, work string) (err error) {
	if u.work, err = openDir(work); err != nil {
		return err
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(u.root, &a), unix.Fstat(u.work, &b)); err != nil {
		return err
	}
	if a.Dev != b.Dev {
		return fmt.Errorf("work directory %s is on another file system", work)
	}
	if rel, err := filepath.Rel(dir, work); err == nil && filepath.IsLocal(rel) {
		return fmt.Errorf("work directory %s is inside the upper directory", work)
	}
	if u.lockWork() != nil {
		return fmt.Errorf("%w (work directory %s)", ErrBusy, work)
	}
	return u.cleanWork()
}

// lockWait is how long a server that was unmounted may take to end: umount(8)
// does not wait for it, and whoever mounts again at once is no second user.
const lockWait = 2 * time.Second

func (u *Upper) lockWork() error {
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(u.work, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || time.Since(begun) > lockWait {
			return err
		}
	}
}

// cleanWork removes what a crash left half-done.
func (u *Upper) cleanWork() error {
	names, err := readNames(u.work)
	for _, name := range names {
		orphan := strings.HasPrefix(name, orphanPrefix)
		if name == spareWhiteout || name == kernelWork || name == kernelIndex || u.o.Resume && orphan {
			continue
		}
		var st unix.Stat_t
		if unix.Fstatat(u.work, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR && !orphan {
			u.torn = append(u.torn, name)
			continue
		}
		u.log.Warn("removing what a crash left in the work directory", "name", name)
		err = errors.Join(err, removeAll(u.work, name))
	}
	return err
}

// choosePrefix finds the namespace the upper's marks are in, or can be, and
// tells whether another program filled the directory.
func (u *Upper) choosePrefix() (foreign bool, err error) {
	for _, p := range []string{trustedPrefix, userPrefix} {
		if _, err := fgetxattr(u.root, p+xattrBase); err == nil {
			_, err := fgetxattr(u.root, p+xattrDotWh)
			u.prefix, u.dotWh = p, err == nil
			_, err = fgetxattr(u.root, p+xattrMoved)
			u.redirects = u.dotWh || err == nil
			return false, nil
		}
	}
	names, err := readNames(u.root)
	if err != nil {
		return false, err
	}
	u.prefix, u.dotWh, u.redirects = trustedPrefix, len(names) > 0, len(names) > 0
	foreign = len(names) > 0
	prefixes := []string{trustedPrefix, userPrefix}
	if foreign && u.usesPrefix(u.root, userPrefix) {
		u.prefix, prefixes = userPrefix, prefixes[1:] // made without privileges
	}
	if u.o.ReadOnly {
		return foreign, nil
	}
	for _, p := range prefixes {
		u.prefix = p
		if err := unix.Fsetxattr(u.root, p+xattrBase, []byte(u.o.Base), 0); err == nil {
			return foreign, u.markNew()
		}
	}
	return foreign, errors.New("the file system takes no extended attributes, trusted or user")
}

// markNew notes what else is to be known of a directory that becomes an upper.
func (u *Upper) markNew() error {
	u.fresh = !u.dotWh
	if u.dotWh {
		if err := unix.Fsetxattr(u.root, u.prefix+xattrDotWh, []byte("y"), 0); err != nil {
			return err
		}
	}
	return u.setBaseRef()
}

func (u *Upper) setBaseRef() error {
	return errors.Join(
		unix.Fsetxattr(u.root, u.prefix+xattrBaseRef, []byte(u.o.BaseRef), 0),
		unix.Fsetxattr(u.root, u.prefix+xattrNote, []byte(u.o.Note), 0))
}

func (u *Upper) checkBase() error {
	ref, _ := fgetxattr(u.root, u.prefix+xattrBaseRef)
	u.baseRef = string(ref)
	note, _ := fgetxattr(u.root, u.prefix+xattrNote)
	u.note = string(note)
	have, err := fgetxattr(u.root, u.prefix+xattrBase)
	if err != nil || len(have) == 0 || u.o.Base == "" || string(have) == string(u.o.Base) {
		return nil
	}
	if !u.o.Force {
		return fmt.Errorf("%w: it was made on %s", ErrOtherBase, u.baseRef)
	}
	if u.o.ReadOnly {
		return nil
	}
	u.baseRef, u.note = u.o.BaseRef, u.o.Note
	return errors.Join(unix.Fsetxattr(u.root, u.prefix+xattrBase, []byte(u.o.Base), 0), u.setBaseRef())
}

// markRedirect writes overlayfs's redirect on a lower directory that moves. FS.ns is held for writing.
func (u *Upper) markRedirect(dir int, name, path string) error {
	if !u.redirects {
		if err := unix.Fsetxattr(u.root, u.prefix+xattrMoved, []byte("y"), 0); err != nil {
			return err
		}
		u.redirects = true
	}
	return unix.Lsetxattr(procPath(dir, name), u.prefix+xattrRedirect, []byte(path), 0)
}

// BaseRef is what the base was called when the upper directory was made; "" when it does not say.
func (u *Upper) BaseRef() string { return u.baseRef }

// Note is UpperOptions.Note of when the upper directory was made.
func (u *Upper) Note() string { return u.note }

// Close gives the directories free. It is safe to call twice.
func (u *Upper) Close() error {
	var errs []error
	for _, fd := range []*int{&u.root, &u.work} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
		}
		*fd = -1
	}
	return errors.Join(errs...)
}

// temp is a new name in the work directory.
func (u *Upper) temp() string { return fmt.Sprintf("#%x", u.seq.Add(1)) }

// discard removes something from the work directory; that it is gone matters only for space.
func (u *Upper) discard(name string) {
	if err := removeAll(u.work, name); err != nil {
		u.log.Warn("remove from the work directory", "name", name, "err", err)
	}
}

// isWhiteout tells whether an upper entry hides its name: a device 0:0, or an
// empty file with overlay.whiteout (which the kernel writes where it may not make devices).
func (u *Upper) isWhiteout(dir int, name string, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		return st.Size == 0 && u.hasMark(dir, name, xattrWhiteout)
	}
	return false
}

// hasMark tells whether an entry has one of overlayfs's xattrs, in our namespace.
func (u *Upper) hasMark(dir int, name, mark string) bool {
	_, err := lgetxattrAt(dir, name, u.prefix+mark)
	return err == nil
}

// isOpaque tells whether an upper directory hides the lower one. The value x
// only says that whiteouts in it may be xattrs; `.wh..wh..opq` is fuse-overlayfs's mark.
func (u *Upper) isOpaque(dir int, name string) bool {
	v, err := lgetxattrAt(dir, name, u.prefix+xattrOpaque)
	if err == nil && string(v) == "y" {
		return true
	}
	var st unix.Stat_t
	return unix.Fstatat(dir, name+"/"+opaqueName, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// spareWhiteout is a whiteout in the work directory that others are links to,
// which costs a file system less than a node for each (overlayfs does so too).
const spareWhiteout = "whiteout"

// makeWhiteout makes a whiteout in a directory.
func (u *Upper) makeWhiteout(dir int, name string) error {
	err := u.linkWhiteout(dir, name)
	if err != unix.ENOENT && err != unix.EMLINK && err != unix.EPERM {
		return err
	}
	temp := u.temp()
	if err := u.newWhiteout(u.work, temp); err != nil {
		return err
	}
	if err := unix.Renameat(u.work, temp, u.work, spareWhiteout); err != nil {
		return err
	}
	return u.linkWhiteout(dir, name)
}

func (u *Upper) linkWhiteout(dir int, name string) error {
	if dir != u.work {
		if err := u.whiteoutsIn(dir); err != nil {
			return err
		}
	}
	return unix.Linkat(u.work, spareWhiteout, dir, name, 0)
}

// newWhiteout makes a whiteout that is no link. Unprivileged processes may make
// device 0:0 since Linux 5.8; where the file system refuses, the form with xattrs is used.
func (u *Upper) newWhiteout(dir int, name string) error {
	err := unix.Mknodat(dir, name, unix.S_IFCHR, 0)
	if err != unix.EPERM && err != unix.EOPNOTSUPP {
		return err
	}
	if err := u.announce(u.root); err != nil {
		return err
	}
	u.emptyWh.Store(true)
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsetxattr(fd, u.prefix+xattrWhiteout, []byte("y"), 0)
}

// announce tells overlayfs, once this is one of its lower directories, that
// whiteouts in a directory may be empty files: it looks for them only where
// the directory, and the root, are marked so (overlayfs.rst, "Whiteouts and opaque directories").
func (u *Upper) announce(dir int) error {
	if _, err := lgetxattrAt(dir, "", u.prefix+xattrOpaque); err == nil {
		return nil // so marked, or opaque: then there is nothing to hide
	}
	return unix.Setxattr(procPath(dir, ""), u.prefix+xattrOpaque, []byte("x"), 0)
}

// whiteoutsIn prepares a directory for whiteouts of either form.
func (u *Upper) whiteoutsIn(dir int) error {
	if !u.emptyWh.Load() {
		return nil
	}
	return u.announce(dir)
}

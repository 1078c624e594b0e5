package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// A root is a directory that is only looked at. All paths below it are resolved by
// descriptors: no symlink is followed and nothing leads out.
type root struct {
	dir *os.File
}

// openRoot opens a directory for looking. A process that may (CAP_SYS_ADMIN) looks through a
// private read-only mount of it that keeps no access times (open_tree(2), mount_setattr(2)):
// then not even reading a symlink leaves a trace. Others ask for each file (O_NOATIME).
func openRoot(dir string) (*root, error) {
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE
	if fd, err := unix.OpenTree(unix.AT_FDCWD, dir, flags); err == nil {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Attr_clr: unix.MOUNT_ATTR__ATIME}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err == nil {
			r := &root{os.NewFile(uintptr(fd), dir)}
			return r, r.check()
		}
		_ = unix.Close(fd)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &root{os.NewFile(uintptr(fd), dir)}, nil
}

// check closes r if it is no directory.
func (r *root) check() error {
	var st unix.Stat_t
	err := unix.Fstat(int(r.dir.Fd()), &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		_ = r.dir.Close()
		return &fs.PathError{Op: "open", Path: r.dir.Name(), Err: err}
	}
	return nil
}

// open opens a path below r.
func (r *root) open(name string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH == 0 { // which goes with nothing else (openat2(2), EINVAL)
		how.Flags |= unix.O_NOATIME | unix.O_NONBLOCK
	}
	full := path.Join(r.dir.Name(), name)
	for {
		fd, err := unix.Openat2(int(r.dir.Fd()), path.Clean(name), &how)
		switch {
		case err == unix.EPERM && how.Flags&unix.O_NOATIME != 0:
			how.Flags &^= unix.O_NOATIME
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: full, Err: err}
		default:
			return os.NewFile(uintptr(fd), full), nil
		}
	}
}

func (r *root) openDir(name string) (*os.File, error) {
	return r.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
}

// openFile opens a regular file.
func (r *root) openFile(name string) (*os.File, int64, error) {
	f, err := r.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

// readFile reads a file of at most limit bytes.
func (r *root) readFile(name string, limit int64) ([]byte, error) {
	f, size, err := r.openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fmt.Errorf("read %s: %d bytes, more than the limit of %d", f.Name(), size, limit)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return b, nil
}

// names lists a directory, sorted. One that is not there has none.
func (r *root) names(dir string) ([]string, error) {
	f, err := r.openDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.Readdirnames(-1)
	slices.Sort(list)
	return list, err
}

// has tells whether there is such a path; what cannot be reached is not there.
func (r *root) has(name string) bool {
	f, err := r.open(name, unix.O_PATH)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// owner returns who owns a path; 0 for what is not there.
func (r *root) owner(name string) uint32 {
	f, err := r.open(name, unix.O_PATH)
	if err != nil {
		return 0
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0
	}
	return st.Uid
}

func (r *root) Close() error { return r.dir.Close() }

// OpenDir opens a directory for looking, as Open does: through a private read-only mount of
// it that keeps no access times, if the process may make one.
func OpenDir(dir string) (*os.File, error) {
	r, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	return r.dir, nil
}

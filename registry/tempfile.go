package registry

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A tempFile becomes a file of that name when it is complete. Where the file
// system can, it has no name before, so that nothing is left of a process that was
// killed.
type tempFile struct {
	*os.File
	path string // "": none, or none any more
}

// newTempFile makes one in a directory. discard must be called in the end.
func newTempFile(dir string) (*tempFile, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return &tempFile{File: os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)"))}, nil
	}
	f, err := os.CreateTemp(dir, ".layerfs-") // NFS, and overlayfs before Linux 6.1, have only that
	if err != nil {
		return nil, err
	}
	return &tempFile{f, f.Name()}, nil
}

// publish makes the file durable under a name, readable for all, in place of what
// has the name. System calls: fchmod, fsync, linkat or rename or both, fsync of the
// directory.
func (f *tempFile) publish(name string) error {
	err := f.Chmod(0o644)
	if err == nil {
		err = f.Sync()
	}
	if err == nil && f.path == "" {
		err = f.link(name)
	}
	if err == nil && f.path != "" {
		err = os.Rename(f.path, name)
	}
	if err != nil {
		return err
	}
	f.path = ""
	return syncDir(filepath.Dir(name))
}

// link gives the file its name, or where that is taken another one, to be renamed.
func (f *tempFile) link(name string) error {
	from := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, fs.ErrExist) {
		f.path = filepath.Join(filepath.Dir(name), ".layerfs-"+rand.Text())
		err = unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, f.path, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		return &fs.PathError{Op: "link", Path: name, Err: err}
	}
	return nil
}

// discard closes the file, and removes it unless it was published.
func (f *tempFile) discard() {
	_ = f.Close()
	if f.path != "" {
		_ = os.Remove(f.path)
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return f.Sync()
}

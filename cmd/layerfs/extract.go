package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// An extractor copies files of an image to a directory of the host. It creates
// every name itself, so no symlink of the image can lead it elsewhere.
type extractor struct {
	im    *image
	force bool
	root  bool // owners, devices and all xattrs can be kept
	log   *slog.Logger
	links map[union.ID]string // where a hardlinked node was put first
}

func (x *extractor) copy(ctx context.Context, p, dest string) error {
	id, err := x.im.find(p, false)
	if err != nil {
		return err
	}
	if base := path.Base(path.Join("/", p)); isDir(dest) && base != "/" {
		dest = filepath.Join(dest, base)
	}
	return x.node(ctx, id, dest)
}

func (x *extractor) node(ctx context.Context, id union.ID, dest string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a := x.im.tree.Attr(id)
	if err := x.make(ctx, id, dest, a); err != nil {
		return err
	}
	if a.IsDir() {
		for name, child := range x.im.tree.Children(id) {
			if err := x.node(ctx, child, filepath.Join(dest, name)); err != nil {
				return err
			}
		}
	}
	return x.dress(id, dest, a)
}

func (x *extractor) make(ctx context.Context, id union.ID, dest string, a union.Attr) error {
	if a.IsDir() {
		err := os.Mkdir(dest, 0o700)
		if errors.Is(err, fs.ErrExist) && isRealDir(dest) {
			return nil
		}
		return err
	}
	if x.force {
		if err := os.Remove(dest); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if first, ok := x.links[id]; ok {
		return os.Link(first, dest)
	}
	if a.Nlink > 1 {
		x.links[id] = dest
	}
	switch a.Type() {
	case unix.S_IFREG:
		return x.file(ctx, id, dest)
	case unix.S_IFLNK:
		return os.Symlink(x.im.tree.Readlink(id), dest)
	case unix.S_IFIFO:
		return unix.Mkfifo(dest, 0o600)
	}
	if !x.root {
		x.log.Warn("a device is left out: only root can make it", "path", dest)
		return nil
	}
	return unix.Mknod(dest, a.Mode, int(a.Rdev))
}

func isRealDir(p string) bool {
	st, err := os.Lstat(p)
	return err == nil && st.IsDir()
}

func (x *extractor) file(ctx context.Context, id union.ID, dest string) (err error) {
	f, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w; --force replaces it", err)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(dest) // half a file would look whole
		}
	}()
	return x.im.copyTo(ctx, f, dest, id)
}

// dress gives what was made its owner, permissions, xattrs and times.
func (x *extractor) dress(id union.ID, dest string, a union.Attr) error {
	if _, err := os.Lstat(dest); errors.Is(err, fs.ErrNotExist) {
		return nil // a device that was left out
	}
	if x.root {
		if err := os.Lchown(dest, int(a.UID), int(a.GID)); err != nil {
			return err
		}
	}
	if a.Type() != unix.S_IFLNK {
		if err := unix.Chmod(dest, a.Mode&0o7777); err != nil {
			return &fs.PathError{Op: "chmod", Path: dest, Err: err}
		}
	}
	for _, attr := range x.im.tree.Xattrs(id) {
		if err := unix.Lsetxattr(dest, attr.Name, attr.Value, 0); err != nil {
			x.log.Warn("an extended attribute is left out", "path", dest, "name", attr.Name, "err", err)
		}
	}
	ts := []unix.Timespec{{Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}, {Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dest, ts, unix.AT_SYMLINK_NOFOLLOW)
}

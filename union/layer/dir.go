package layer

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// DirOptions of OpenDir. The zero value is usable.
type DirOptions struct {
	Digest digest.Digest // what the layer is called: its diff ID, where that is known; "" is the fingerprint
	// TrustedOnly: the store's overlay mounts were root's, which mark opaque directories in
	// trusted.overlay.*. What a container set in user.overlay.* was an ordinary attribute to
	// them, and must hide nothing now. Otherwise both count, and fuse-overlayfs's own.
	TrustedOnly bool
	// DotWh makes files called .wh.NAME whiteouts, as fuse-overlayfs and unpackers without
	// privileges leave them; otherwise they are files like any other, as they are to overlayfs.
	DotWh bool
	// Opaque names directories that are opaque whatever their attributes say: a store's
	// tar-split knows it where the attributes cannot be read. Cleaned paths.
	Opaque map[string]bool
	// Below are the directories of the layers below, the topmost first: the content of a
	// file of which this layer has the metadata alone (overlayfs's metacopy) is found there.
	// They must stay open as long as the layer.
	Below  []*os.File
	Limits Limits
}

// OpenDir opens a layer that is a directory: the "diff" of overlayfs, with its whiteouts and
// attributes (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"),
// or of fuse-overlayfs. Nothing leads out of dir, no symlink is followed, nothing is written,
// and access times stay as they are where the process may ask for that (open(2), O_NOATIME).
//
// All names are read at once, content when it is asked for. A file that is another one by
// then gives an error that wraps ErrDigest. dir is the layer's from here on, also if OpenDir
// fails. Errors wrap ErrLimit or are those of the file system.
func OpenDir(ctx context.Context, dir *os.File, o DirOptions) (*Layer, error) {
	o.Limits = o.Limits.withDefaults()
	s := newDirScan(dir, o)
	t, err := s.run(ctx)
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("open layer %s: %w", dir.Name(), err)
	}
	d := &dirData{dir: dir, files: s.files, below: o.Below, size: s.size, print: s.fingerprint(), root: s.root, marked: s.marked}
	if o.Digest == "" {
		o.Digest = d.print
	}
	return &Layer{digest: o.Digest, tree: t, dir: d, kind: "dir", why: "a directory on disk", src: &source{size: d.size}}, nil
}

// dirData is the content of an unpacked layer.
type dirData struct {
	dir    *os.File
	files  map[ID]dirFile
	below  []*os.File
	size   int64         // of all files
	print  digest.Digest // of all metadata
	root   fileID
	marked bool // overlayfs's attributes were found
	closes sync.Once
}

// A fileID names a file of this machine.
type fileID struct{ dev, ino uint64 }

// A dirFile is where a regular file was found, and as what.
type dirFile struct {
	path  string
	level int // 0: in dir; else below[level-1]
	id    fileID
	size  int64
	mtime unix.Timespec
	ctime unix.Timespec
}

// readAt reads all of p, which lies in the file.
func (d *dirData) readAt(ctx context.Context, id ID, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	want := d.files[id]
	dir := d.dir
	if want.level > 0 {
		dir = d.below[want.level-1]
	}
	f, err := openBeneath(dir, want.path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := want.check(f); err != nil {
		return err
	}
	n, err := f.ReadAt(p, off)
	if n < len(p) && err == io.EOF {
		return fmt.Errorf("%w: %s: shorter than it was", ErrDigest, want.path)
	}
	if n == len(p) {
		return nil
	}
	return err
}

// check tells whether f still is what the layer was opened with.
func (w dirFile) check(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: w.path, Err: err}
	}
	if w != newDirFile(w.path, w.level, &st) {
		return fmt.Errorf("%w: %s: the file was changed while it was examined", ErrDigest, w.path)
	}
	return nil
}

func newDirFile(path string, level int, st *unix.Stat_t) dirFile {
	return dirFile{path, level, fileID{st.Dev, st.Ino}, st.Size, st.Mtim, st.Ctim}
}

func (d *dirData) close() (err error) {
	d.closes.Do(func() { err = d.dir.Close() })
	return err
}

// openBeneath opens a path below dir: no symlink is followed and nothing leads out
// (openat2(2)). The access time stays what it is if the process may ask for that: the owner
// of the file and root may.
func openBeneath(dir *os.File, path string, flags uint64) (*os.File, error) {
	if path == "" {
		path = "."
	}
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NOATIME,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), path, &how)
		switch {
		case err == unix.EPERM && how.Flags&unix.O_NOATIME != 0:
			how.Flags &^= unix.O_NOATIME
		case err == unix.EINTR || err == unix.EAGAIN: // EAGAIN: something was renamed at the same time
		case err != nil:
			return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + path, Err: err}
		default:
			return os.NewFile(uintptr(fd), dir.Name()+"/"+path), nil
		}
	}
}

// Same tells whether two layers are known to hold the same bytes: blobs that have one
// digest, or one directory that has not changed. The name of a directory's layer proves
// nothing about what is in it.
func (l *Layer) Same(o *Layer) bool {
	if l.dir == nil || o.dir == nil {
		return l.dir == nil && o.dir == nil && l.digest == o.digest
	}
	return l.dir.root == o.dir.root && l.dir.print == o.dir.print
}

// Identity names what the entries of the layer are: the digest of a blob, the digest of all
// names and metadata of a directory. The IDs of two layers of one identity are the same.
func (l *Layer) Identity() digest.Digest {
	if l.dir != nil {
		return l.dir.print
	}
	return l.digest
}

// HasMarks tells of a layer that is a directory whether attributes of overlayfs were found,
// so that they can be read: a copy may have lost them, and some are for root alone.
func (l *Layer) HasMarks() bool { return l.dir != nil && l.dir.marked }

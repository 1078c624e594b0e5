package union

import (
	"context"
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

// A File is an open regular file. Its methods may be called in parallel; Close comes last.
type File struct {
	fs    *FS
	id    ID
	flags int

	mu sync.Mutex
	fd int   // protected by mu; -1: lower, and not copied up so far as we saw
	n  *node // protected by mu; what fd is of
}

// openFlags are the flags of open(2) that the upper file is opened with. The
// kernel has done what the others mean: it appends by giving offsets, and
// creates and truncates by calls of their own.
func openFlags(flags int) int {
	return flags & (unix.O_ACCMODE | unix.O_SYNC | unix.O_DSYNC)
}

// Open opens a regular file. Flags that write copy it up first; O_TRUNC without its content.
func (f *FS) Open(ctx context.Context, id ID, flags int) (*File, error) {
	write := flags&unix.O_ACCMODE != unix.O_RDONLY
	h := &File{fs: f, id: id, flags: openFlags(flags), fd: -1}
	if write && f.ReadOnly() {
		return nil, unix.EROFS
	}
	f.life.RLock()
	defer f.life.RUnlock()
	if write {
		size := int64(wholeFile)
		if flags&unix.O_TRUNC != 0 {
			size = 0
		}
		if _, err := f.copyUp(ctx, id, size); err != nil {
			return nil, err
		}
	}
	if err := h.openUpper(flags & unix.O_TRUNC); err != nil {
		return nil, err
	}
	if _, ok := h.Fd(); !ok && (!f.tree().Has(id) || f.tree().Mode(id)&unix.S_IFMT != unix.S_IFREG) {
		return nil, unix.EINVAL
	}
	return h, nil
}

// openUpper opens the upper part, if there is one by now.
func (h *File) openUpper(more int) error {
	f := h.fs
	if f.up == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd >= 0 {
		return nil
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	n := f.upperOf(h.id)
	if n == nil {
		return nil
	}
	if n.typ != unix.S_IFREG {
		return unix.EINVAL
	}
	return f.withPath(n, func(fd int) (err error) {
		if more&unix.O_TRUNC != 0 {
			f.writes.RLock()
			defer f.writes.RUnlock()
			f.beforeTruncate(fd, 0)
		}
		h.fd, err = unix.Open(procPath(fd, ""), h.flags|more|unix.O_CLOEXEC, 0)
		if err == nil {
			h.keep(n)
		}
		return err
	})
}

// keep has the node stay in the upper directory while h is open. FS.ns or FS.life is held.
func (h *File) keep(n *node) {
	h.fs.tab.Lock()
	defer h.fs.tab.Unlock()
	h.n = n
	n.open++
}

// Fd is a descriptor of the file in the upper directory, if it has a part there.
func (h *File) Fd() (fd int, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fd, h.fd >= 0
}

// writable is the descriptor of a file that is open for writing, or -1; h may be nil.
func (h *File) writable() int {
	if h == nil || h.flags&unix.O_ACCMODE == unix.O_RDONLY {
		return -1
	}
	fd, _ := h.Fd()
	return fd
}

// upper is Fd for calls after the opening: it sees a copy-up that came later.
func (h *File) upper() (fd int, ok bool, err error) {
	if fd, ok = h.Fd(); ok {
		return fd, true, nil
	}
	err = h.openUpper(0)
	fd, ok = h.Fd()
	return fd, ok, err
}

// ReadAt reads as pread(2) does: fewer bytes than asked for only at the end of the file.
func (h *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	fd, ok, err := h.upper()
	if err != nil {
		return 0, err
	}
	if !ok {
		return h.fs.readLower(ctx, h.id, p, off)
	}
	return preadAll(fd, p, off)
}

func preadAll(fd int, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		var n int
		err := retry(func() (err error) { n, err = unix.Pread(fd, p[done:], off+int64(done)); return err })
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// ReadAt reads a regular file without a handle.
func (f *FS) ReadAt(ctx context.Context, id ID, p []byte, off int64) (int, error) {
	if n := f.upperOf(id); n != nil {
		h, err := f.Open(ctx, id, unix.O_RDONLY)
		if err != nil {
			return 0, err
		}
		defer h.Close()
		return h.ReadAt(ctx, p, off)
	}
	if !f.tree().Has(id) {
		return 0, unix.ESTALE
	}
	return f.readLower(ctx, id, p, off)
}

// WriteAt writes as pwrite(2) does.
func (h *File) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	fd, ok := h.Fd()
	if !ok {
		return 0, unix.EBADF
	}
	h.fs.writes.RLock()
	defer h.fs.writes.RUnlock()
	h.fs.beforeWrite(fd, off, off+int64(len(p)))
	if err := pwriteAll(fd, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Fsync makes the file's content durable, with datasync as fdatasync(2) does.
func (h *File) Fsync(datasync bool) error {
	fd, ok := h.Fd()
	switch {
	case !ok, h.fs.up.o.Volatile:
		return nil
	case datasync:
		return retry(func() error { return unix.Fdatasync(fd) })
	}
	return retry(func() error { return unix.Fsync(fd) })
}

// Lseek finds data and holes: whence is SEEK_DATA or SEEK_HOLE; ENXIO after the end.
func (h *File) Lseek(off int64, whence int) (int64, error) {
	fd, ok, err := h.upper()
	if err != nil {
		return 0, err
	}
	if ok {
		return unix.Seek(fd, off, whence)
	}
	return h.fs.Lseek(h.id, off, whence)
}

// Lseek is File.Lseek of a lower file, without a handle.
func (f *FS) Lseek(id ID, off int64, whence int) (int64, error) {
	if !f.tree().Has(id) {
		return 0, unix.ESTALE
	}
	size := f.tree().Attr(id).Size
	if off < 0 || off >= size {
		return 0, unix.ENXIO
	}
	start, end := f.tree().NextData(id, off)
	switch {
	case whence == unix.SEEK_HOLE && start > off:
		return off, nil
	case whence == unix.SEEK_HOLE:
		return min(end, size), nil
	case start >= size:
		return 0, unix.ENXIO
	}
	return start, nil
}

// Allocate is fallocate(2).
func (h *File) Allocate(mode uint32, off, n int64) error {
	fd, ok := h.Fd()
	if !ok {
		return unix.EBADF
	}
	end := off + n
	if mode&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 {
		end = math.MaxInt64
	}
	h.fs.writes.RLock()
	defer h.fs.writes.RUnlock()
	h.fs.beforeWrite(fd, off, end)
	return retry(func() error { return unix.Fallocate(fd, mode, off, n) })
}

// CopyRange is copy_file_range(2) between two open files of one FS. A source
// that is not in the upper directory is EXDEV: the caller reads and writes.
func CopyRange(in *File, inOff int64, out *File, outOff int64, n int64) (int64, error) {
	from, ok, err := in.upper()
	if err != nil {
		return 0, err
	}
	to, ok2 := out.Fd()
	if !ok || !ok2 {
		return 0, unix.EXDEV
	}
	n = min(n, 1<<30)
	out.fs.writes.RLock()
	defer out.fs.writes.RUnlock()
	out.fs.beforeWrite(to, outOff, outOff+n)
	done, err := unix.CopyFileRange(from, &inOff, to, &outOff, int(n), 0)
	return int64(done), err
}

// Close closes the file; the errors of the last writes come from here.
func (h *File) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd < 0 {
		return nil
	}
	err := unix.Close(h.fd)
	h.fd = -1
	if h.n != nil {
		h.fs.tab.Lock()
		h.n.open--
		h.fs.tab.Unlock()
		h.n = nil
	}
	return err
}

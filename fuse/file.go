package fuse

import (
	"errors"
	"io"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// stateful serves a tree that can change, with a handle for every open file and directory.
//
// The page cache is kept over opens of lower files (FOPEN_KEEP_CACHE): every change of a file's
// content goes through this mount, and a node keeps its number when it is
// copied up, so that a descriptor opened before sees what is written after.
// Upper files are the kernel's own where it can be (passthrough.go).
// Locks of all kinds are the kernel's: they are not asked for.
type stateful struct{ *core }

// cached are the flags of an open file whose pages are good.
const cached = gofuse.FOPEN_KEEP_CACHE

func (m stateful) Create(cancel <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	id, a, f, err := m.fs.Create(c, callerWith(&in.InHeader, in.Umask), union.ID(in.NodeId), name, int(in.Flags), in.Mode)
	if err == syscall.EEXIST && resent(&in.InHeader) {
		id, a, f, err = m.created(c, union.ID(in.NodeId), name, in.Flags)
	}
	if err != nil {
		return m.replyCall(c, "create", in.NodeId, err)
	}
	m.fillEntry(&out.EntryOut, id, &a)
	m.opened(uint64(id), f, in.Flags, true, &out.OpenOut)
	out.SetAttrTimeout(m.attrTTL(id))
	return gofuse.OK
}

// Tmpfile is open(2) with O_TMPFILE.
func (m stateful) Tmpfile(cancel <-chan struct{}, in *gofuse.CreateIn, out *gofuse.CreateOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	id, a, f, err := m.fs.Tmpfile(c, callerWith(&in.InHeader, in.Umask), union.ID(in.NodeId), int(in.Flags), in.Mode)
	if err != nil {
		return m.replyCall(c, "tmpfile", in.NodeId, err)
	}
	m.fillEntry(&out.EntryOut, id, &a)
	m.opened(uint64(id), f, in.Flags, true, &out.OpenOut)
	out.SetAttrTimeout(m.attrTTL(id))
	return gofuse.OK
}

// created opens what an earlier server made and could not tell of.
func (m stateful) created(c *call, dir union.ID, name string, flags uint32) (union.ID, union.Attr, *union.File, error) {
	id, a, err := m.fs.Lookup(c, dir, name)
	if err != nil {
		return 0, a, nil, err
	}
	f, err := m.fs.Open(c, id, int(flags))
	return id, a, f, err
}

// Open opens, and truncates where O_TRUNC says so (CAP_ATOMIC_O_TRUNC): a lower
// file's content is then not copied up for nothing.
func (m stateful) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	f, err := m.open(c, in)
	if err != nil {
		return m.replyCall(c, "open", in.NodeId, err)
	}
	m.opened(in.NodeId, f, in.Flags, in.Flags&syscall.O_TRUNC != 0, out)
	return gofuse.OK
}

func (m stateful) open(c *call, in *gofuse.OpenIn) (*union.File, error) {
	id, flags := union.ID(in.NodeId), int(in.Flags)
	if flags&(syscall.O_TRUNC|syscall.O_ACCMODE) == syscall.O_TRUNC|syscall.O_RDONLY {
		if err := m.truncate(c, id); err != nil { // open(2) calls it unspecified, Linux truncates
			return nil, err
		}
		flags &^= syscall.O_TRUNC
	}
	f, err := m.fs.Open(c, id, flags)
	if err != nil {
		return nil, err
	}
	if in.Mode&gofuse.OPEN_KILL_SUIDGID != 0 {
		err = m.dropPrivs(c, id, f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (m stateful) truncate(c *call, id union.ID) error {
	var zero int64
	_, err := m.fs.Setattr(c, id, nil, union.SetAttr{Size: &zero})
	return err
}

// Release has no one to report to: what a write could fail with was reported by the write.
func (m stateful) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	defer m.modes.leave(in.NodeId, resent(&in.InHeader))
	if f, ok := m.files.remove(in.Fh); ok {
		if err := f.Close(); err != nil {
			m.log.Error("cannot close a file", "node", in.NodeId, "error", err)
		}
	}
}

// Flush has nothing to do: no byte of a write is kept back here. ENOSYS stops the kernel from asking again.
func (m stateful) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.ENOSYS }

func (m stateful) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	c := m.begin(cancel)
	defer c.end()
	f, ok := m.file(c, in.NodeId, in.Fh)
	if !ok {
		return nil, gofuse.EBADF
	}
	n, err := f.ReadAt(c, buf, int64(in.Offset))
	return m.readResult(c, in, buf[:n], err)
}

// readResult is the answer to a READ: fewer bytes than asked for mean the end
// of the file to the kernel, so that an error after some bytes is an error.
func (m *core) readResult(c *call, in *gofuse.ReadIn, b []byte, err error) (gofuse.ReadResult, gofuse.Status) {
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, m.replyCall(c, "read", in.NodeId, err)
	}
	return gofuse.ReadResultData(b), gofuse.OK
}

func (m stateful) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	c := m.begin(cancel)
	defer c.end()
	f, ok := m.file(c, in.NodeId, in.Fh)
	if !ok {
		return 0, gofuse.EBADF
	}
	if in.WriteFlags&gofuse.WRITE_KILL_SUIDGID != 0 {
		if err := m.dropPrivs(c, union.ID(in.NodeId), f); err != nil {
			return 0, m.replyCall(c, "write", in.NodeId, err)
		}
	}
	n, err := f.WriteAt(c, data, int64(in.Offset))
	return uint32(n), m.replyCall(c, "write", in.NodeId, err)
}

func (m stateful) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	const dataSync = 1 << 0 // FUSE_FSYNC_FDATASYNC of linux/fuse.h
	c := m.begin(cancel)
	defer c.end()
	f, ok := m.file(c, in.NodeId, in.Fh)
	if !ok {
		return gofuse.EBADF
	}
	return m.reply("fsync", in.NodeId, f.Fsync(in.FsyncFlags&dataSync != 0))
}

func (m stateful) Fallocate(cancel <-chan struct{}, in *gofuse.FallocateIn) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	f, ok := m.file(c, in.NodeId, in.Fh)
	if !ok {
		return gofuse.EBADF
	}
	err := m.dropPrivsFor(c, &in.InHeader, in.NodeId, f)
	if err == nil {
		err = f.Allocate(in.Mode, int64(in.Offset), int64(in.Length))
	}
	return m.replyCall(c, "fallocate", in.NodeId, err)
}

func (m stateful) Lseek(cancel <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	f, ok := m.file(c, in.NodeId, in.Fh)
	if !ok {
		return gofuse.EBADF
	}
	off, err := f.Lseek(int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return m.reply("lseek", in.NodeId, err)
}

// CopyFileRange answers EXDEV for a source that is not in the upper directory: the kernel then reads and writes.
func (m stateful) CopyFileRange(cancel <-chan struct{}, in *gofuse.CopyFileRangeIn) (uint32, gofuse.Status) {
	c := m.begin(cancel)
	defer c.end()
	from, ok := m.file(c, in.NodeId, in.FhIn)
	to, ok2 := m.file(c, in.NodeIdOut, in.FhOut)
	if !ok || !ok2 {
		return 0, gofuse.EBADF
	}
	if in.Flags != 0 {
		return 0, gofuse.EINVAL
	}
	if err := m.dropPrivsFor(c, &in.InHeader, in.NodeIdOut, to); err != nil {
		return 0, m.replyCall(c, "copy_file_range", in.NodeIdOut, err)
	}
	const most = 1 << 30 // the reply has 32 bits
	n, err := union.CopyRange(from, int64(in.OffIn), to, int64(in.OffOut), int64(min(in.Len, most)))
	return uint32(n), m.replyCall(c, "copy_file_range", in.NodeIdOut, err)
}

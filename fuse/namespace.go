package fuse

import (
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// The calls that change names. The kernel has checked permissions (default_permissions) and holds the directory's lock.

func (m *core) Mknod(cancel <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return m.born(cancel, "mknod", &in.InHeader, name, out, func(c *call) (union.ID, union.Attr, error) {
		return m.fs.Mknod(c, callerWith(&in.InHeader, in.Umask), union.ID(in.NodeId), name, in.Mode, uint64(in.Rdev))
	})
}

func (m *core) Mkdir(cancel <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return m.born(cancel, "mkdir", &in.InHeader, name, out, func(c *call) (union.ID, union.Attr, error) {
		return m.fs.Mkdir(c, callerWith(&in.InHeader, in.Umask), union.ID(in.NodeId), name, in.Mode)
	})
}

func (m *core) Symlink(cancel <-chan struct{}, in *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	return m.born(cancel, "symlink", in, name, out, func(c *call) (union.ID, union.Attr, error) {
		return m.fs.Symlink(c, callerOf(in), union.ID(in.NodeId), name, target)
	})
}

func (m *core) Link(cancel <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	return m.born(cancel, "link", &in.InHeader, name, out, func(c *call) (union.ID, union.Attr, error) {
		return m.fs.Link(c, union.ID(in.Oldnodeid), union.ID(in.NodeId), name)
	})
}

// born runs a call that makes a name and tells the kernel what the name leads to.
func (m *core) born(cancel <-chan struct{}, op string, in *gofuse.InHeader, name string, out *gofuse.EntryOut,
	birth func(*call) (union.ID, union.Attr, error)) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	id, a, err := birth(c)
	if err == syscall.EEXIST && resent(in) {
		id, a, err = m.fs.Lookup(c, union.ID(in.NodeId), name)
	}
	if err != nil {
		return m.replyCall(c, op, in.NodeId, err)
	}
	m.fillEntry(out, id, &a)
	return gofuse.OK
}

func (m *core) Unlink(cancel <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	return m.replyCall(c, "unlink", in.NodeId, doneBefore(resent(in), m.fs.Unlink(c, union.ID(in.NodeId), name)))
}

func (m *core) Rmdir(cancel <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	return m.replyCall(c, "rmdir", in.NodeId, doneBefore(resent(in), m.fs.Rmdir(c, union.ID(in.NodeId), name)))
}

// Rename is rename(2) and renameat2(2): the library gives flags 0 for the former.
func (m *core) Rename(cancel <-chan struct{}, in *gofuse.RenameIn, oldName, newName string) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	if in.Flags == unix.RENAME_EXCHANGE && m.listings != nil && m.exchangedBefore(in, oldName, newName) {
		return gofuse.OK
	}
	err := m.fs.Rename(c, union.ID(in.NodeId), oldName, union.ID(in.Newdir), newName, in.Flags)
	return m.replyCall(c, "rename", in.NodeId, doneBefore(resent(&in.InHeader), err))
}

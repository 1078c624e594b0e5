package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// stateless serves a tree that cannot change. It refuses OPEN, OPENDIR and
// FLUSH with ENOSYS, which the kernel takes as "there is no need to ask" for the
// whole life of the mount (fuse_conn.no_open, no_opendir, no_flush): opening,
// closing and listing what is in the page cache then costs no request at all.
type stateless struct{ *core }

func (m stateless) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (m stateless) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (m stateless) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status { return gofuse.ENOSYS }

func (m stateless) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	c := m.begin(cancel)
	defer c.end()
	n, err := m.fs.ReadAt(c, union.ID(in.NodeId), buf, int64(in.Offset))
	return m.readResult(c, in, buf[:n], err)
}

func (m stateless) Lseek(cancel <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	off, err := m.fs.Lseek(union.ID(in.NodeId), int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return m.replyCall(c, "lseek", in.NodeId, err)
}

func (m stateless) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	err := m.fs.ReadDir(c, union.ID(in.NodeId), in.Offset, func(next uint64, e union.Dirent) bool {
		return out.AddDirEntry(direntOf(next, e))
	})
	return m.replyCall(c, "readdir", in.NodeId, err)
}

// ReadDirPlus gives the kernel the attributes with the names: a third of the cost of a LOOKUP each.
func (m stateless) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	tree := m.fs.Tree()
	var small []union.ID
	err := m.fs.ReadDir(c, union.ID(in.NodeId), in.Offset, func(next uint64, e union.Dirent) bool {
		entry := out.AddDirLookupEntry(direntOf(next, e))
		if entry != nil && !isDot(e.Name) {
			a := tree.Attr(e.ID)
			fillEntry(entry, e.ID, &a)
			if m.push.wants(e.ID, &a) {
				small = append(small, e.ID)
			}
		}
		return entry != nil
	})
	m.push.add(small)
	return m.replyCall(c, "readdirplus", in.NodeId, err)
}

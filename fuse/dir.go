package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// direntOf is an entry of a listing; next is where a later listing goes on after it.
func direntOf(next uint64, e union.Dirent) gofuse.DirEntry {
	return gofuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Mode, Off: next}
}

// isDot tells whether a name is one of the two that the kernel resolves itself.
func isDot(name string) bool { return name == "." || name == ".." }

// OpenDir does not let the kernel keep the listing (FOPEN_CACHE_DIR): positions
// belong to one handle, and a listing that goes on in another one after a
// removal would skip names.
func (m stateful) OpenDir(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	d, err := m.fs.OpenDir(c, union.ID(in.NodeId))
	if err != nil {
		return m.replyCall(c, "opendir", in.NodeId, err)
	}
	out.Fh = m.dirs.add(d, 0)
	return gofuse.OK
}

func (m stateful) ReleaseDir(in *gofuse.ReleaseIn) {
	if d, ok := m.dirs.remove(in.Fh); ok {
		d.Close()
	}
}

func (m stateful) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return m.list("readdir", in, func(next uint64, e union.Dirent) bool {
		return out.AddDirEntry(direntOf(next, e))
	})
}

func (m stateful) list(op string, in *gofuse.ReadIn, yield func(uint64, union.Dirent) bool) gofuse.Status {
	d, ok := m.dir(in.NodeId, in.Fh)
	if !ok {
		return gofuse.EBADF
	}
	err := d.Read(in.Offset, yield)
	if in.Offset == 0 && err == nil {
		m.listings.keep(in.Fh, d.Names(), m.dirs.len() <= 1)
	}
	return m.reply(op, in.NodeId, err)
}

// ReadDirPlus takes a reference on every node it gives the kernel, as Lookup
// does. An entry that went since the listing began is given without its node:
// the kernel then asks for the name when somebody wants it.
func (m stateful) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	return m.list("readdirplus", in, func(next uint64, e union.Dirent) bool {
		entry := out.AddDirLookupEntry(direntOf(next, e))
		if entry == nil || isDot(e.Name) {
			return entry != nil
		}
		if id, a, err := m.fs.Lookup(c, union.ID(in.NodeId), e.Name); err == nil {
			m.fillEntry(entry, id, &a)
			out.FixMode(a.Mode)
		}
		return true
	})
}

func (m stateful) FsyncDir(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	return m.replyCall(c, "fsyncdir", in.NodeId, m.fs.FsyncDir(c, union.ID(in.NodeId)))
}

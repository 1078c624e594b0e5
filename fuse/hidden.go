package fuse

import (
	"context"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// A Hidden tree is shown below one name of the mount's root that no listing
// has. It cannot be changed through the mount. Its nodes' IDs begin at Root,
// above all of the union's. An error is what FS would return.
type Hidden interface {
	Name() string
	Root() union.ID
	TTL(id union.ID) time.Duration // how long a name that leads to the node may be remembered
	Lookup(dir union.ID, name string) (union.ID, union.Attr, error)
	Forget(id union.ID, refs uint64)
	Getattr(id union.ID) (union.Attr, error)
	Readlink(id union.ID) (string, error)
	ReadAt(ctx context.Context, id union.ID, p []byte, off int64) (int, error)
	ReadDir(id union.ID, off uint64, yield func(next uint64, e union.Dirent) bool) error
	Getxattr(id union.ID, name string) ([]byte, error)
	Listxattr(id union.ID) []string
	Virtual(name string) bool                          // an extended attribute that nodes of the union have and no list of them
	Provenance(layer int, name string) ([]byte, error) // its value for what the layer has, 0 being the base
}

// withHidden answers for a hidden tree, and hands on what is not of it.
type withHidden struct {
	gofuse.RawFileSystem // stateful or stateless
	core                 *core
	tree                 Hidden
}

func (m withHidden) has(node uint64) bool { return union.ID(node) >= m.tree.Root() }

// named tells whether a name leads to the hidden tree or is in it.
func (m withHidden) named(dir uint64, name string) bool {
	return m.has(dir) || union.ID(dir) == union.Root && name == m.tree.Name()
}

func (m withHidden) fillEntry(out *gofuse.EntryOut, id union.ID, a *union.Attr) {
	fillEntry(out, id, a)
	out.SetEntryTimeout(m.tree.TTL(id))
}

func (m withHidden) Lookup(cancel <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	if !m.named(in.NodeId, name) {
		return m.RawFileSystem.Lookup(cancel, in, name, out)
	}
	c := m.core.begin(cancel)
	defer c.end()
	id := m.tree.Root()
	a, err := m.tree.Getattr(id)
	if m.has(in.NodeId) {
		id, a, err = m.tree.Lookup(union.ID(in.NodeId), name)
	}
	if err != nil {
		return m.core.replyCall(c, "lookup", in.NodeId, err)
	}
	m.fillEntry(out, id, &a)
	return gofuse.OK
}

func (m withHidden) Forget(node, refs uint64) {
	if m.has(node) {
		m.tree.Forget(union.ID(node), refs)
		return
	}
	m.RawFileSystem.Forget(node, refs)
}

func (m withHidden) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if !m.has(in.NodeId) {
		return m.RawFileSystem.GetAttr(cancel, in, out)
	}
	a, err := m.tree.Getattr(union.ID(in.NodeId))
	if err == nil {
		fillAttrOut(out, &a)
	}
	return m.core.reply("getattr", in.NodeId, err)
}

func (m withHidden) Readlink(cancel <-chan struct{}, in *gofuse.InHeader) ([]byte, gofuse.Status) {
	if !m.has(in.NodeId) {
		return m.RawFileSystem.Readlink(cancel, in)
	}
	target, err := m.tree.Readlink(union.ID(in.NodeId))
	return []byte(target), m.core.reply("readlink", in.NodeId, err)
}

// Open gives no handle: a node says all. On a read-only mount the answer is the
// one for all files (see stateless).
func (m withHidden) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	switch {
	case !m.has(in.NodeId) || m.core.fs.ReadOnly():
		return m.RawFileSystem.Open(cancel, in, out)
	case in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY || in.Flags&syscall.O_TRUNC != 0:
		return gofuse.EROFS
	}
	out.OpenFlags = gofuse.FOPEN_KEEP_CACHE
	return gofuse.OK
}

func (m withHidden) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	if !m.has(in.NodeId) {
		return m.RawFileSystem.Read(cancel, in, buf)
	}
	c := m.core.begin(cancel)
	defer c.end()
	n, err := m.tree.ReadAt(c, union.ID(in.NodeId), buf, int64(in.Offset))
	return m.core.readResult(c, in, buf[:n], err)
}

// Lseek knows no holes.
func (m withHidden) Lseek(cancel <-chan struct{}, in *gofuse.LseekIn, out *gofuse.LseekOut) gofuse.Status {
	if !m.has(in.NodeId) {
		return m.RawFileSystem.Lseek(cancel, in, out)
	}
	a, err := m.tree.Getattr(union.ID(in.NodeId))
	switch {
	case err == nil && in.Offset >= uint64(a.Size):
		err = syscall.ENXIO
	case in.Whence == unix.SEEK_HOLE:
		out.Offset = uint64(a.Size)
	default:
		out.Offset = in.Offset
	}
	return m.core.reply("lseek", in.NodeId, err)
}

func (m withHidden) Release(cancel <-chan struct{}, in *gofuse.ReleaseIn) {
	if !m.has(in.NodeId) {
		m.RawFileSystem.Release(cancel, in)
	}
}

func (m withHidden) Fsync(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	if m.has(in.NodeId) {
		return gofuse.OK
	}
	return m.RawFileSystem.Fsync(cancel, in)
}

func (m withHidden) OpenDir(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if m.has(in.NodeId) && !m.core.fs.ReadOnly() {
		return gofuse.OK
	}
	return m.RawFileSystem.OpenDir(cancel, in, out)
}

func (m withHidden) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	if !m.has(in.NodeId) {
		return m.RawFileSystem.ReadDir(cancel, in, out)
	}
	return m.list(cancel, in, func(next uint64, e union.Dirent) bool { return out.AddDirEntry(direntOf(next, e)) })
}

// ReadDirPlus gives attributes of what stays as it is; the names of the others are looked up by who wants them.
func (m withHidden) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	if !m.has(in.NodeId) {
		return m.RawFileSystem.ReadDirPlus(cancel, in, out)
	}
	return m.list(cancel, in, func(next uint64, e union.Dirent) bool {
		entry := out.AddDirLookupEntry(direntOf(next, e))
		if entry == nil || isDot(e.Name) || m.tree.TTL(e.ID) == 0 {
			return entry != nil
		}
		if a, err := m.tree.Getattr(e.ID); err == nil {
			m.fillEntry(entry, e.ID, &a)
		}
		return true
	})
}

func (m withHidden) list(cancel <-chan struct{}, in *gofuse.ReadIn, yield func(uint64, union.Dirent) bool) gofuse.Status {
	c := m.core.begin(cancel)
	defer c.end()
	return m.core.replyCall(c, "readdir", in.NodeId, m.tree.ReadDir(union.ID(in.NodeId), in.Offset, yield))
}

func (m withHidden) ReleaseDir(in *gofuse.ReleaseIn) {
	if !m.has(in.NodeId) {
		m.RawFileSystem.ReleaseDir(in)
	}
}

func (m withHidden) FsyncDir(cancel <-chan struct{}, in *gofuse.FsyncIn) gofuse.Status {
	if m.has(in.NodeId) {
		return gofuse.OK
	}
	return m.RawFileSystem.FsyncDir(cancel, in)
}

// GetXAttr is never ENOSYS, which would end the kernel's questions for all attributes.
func (m withHidden) GetXAttr(cancel <-chan struct{}, in *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	var v []byte
	var err error
	switch {
	case m.has(in.NodeId):
		v, err = m.tree.Getxattr(union.ID(in.NodeId), name)
	case m.tree.Virtual(name):
		v, err = m.provenance(union.ID(in.NodeId), name)
	case m.core.fs.HasXattrs():
		return m.RawFileSystem.GetXAttr(cancel, in, name, dest)
	default:
		err = syscall.ENODATA
	}
	if err != nil {
		return 0, m.core.reply("getxattr", in.NodeId, err)
	}
	return fillValue(dest, v)
}

// provenance is a virtual attribute of a node of the union. What the upper
// directory has comes from no layer: an attribute that was set there is what it has.
func (m withHidden) provenance(id union.ID, name string) ([]byte, error) {
	if layer, ok := m.core.fs.Layer(id); ok {
		return m.tree.Provenance(layer, name)
	}
	return m.core.fs.Getxattr(context.Background(), id, name)
}

func (m withHidden) ListXAttr(cancel <-chan struct{}, in *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	switch {
	case m.has(in.NodeId):
		return fillValue(dest, xattrList(m.tree.Listxattr(union.ID(in.NodeId)), in.Uid == 0))
	case m.core.fs.HasXattrs():
		return m.RawFileSystem.ListXAttr(cancel, in, dest)
	}
	return fillValue(dest, nil)
}

// What changes something is refused where the hidden tree is concerned.

func (m withHidden) SetAttr(cancel <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	if m.has(in.NodeId) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.SetAttr(cancel, in, out)
}

func (m withHidden) SetXAttr(cancel <-chan struct{}, in *gofuse.SetXAttrIn, name string, value []byte) gofuse.Status {
	if m.has(in.NodeId) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.SetXAttr(cancel, in, name, value)
}

func (m withHidden) RemoveXAttr(cancel <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	if m.has(in.NodeId) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.RemoveXAttr(cancel, in, name)
}

func (m withHidden) Mknod(cancel <-chan struct{}, in *gofuse.MknodIn, name string, out *gofuse.EntryOut) gofuse.Status {
	if m.named(in.NodeId, name) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.Mknod(cancel, in, name, out)
}

func (m withHidden) Mkdir(cancel <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	if m.named(in.NodeId, name) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.Mkdir(cancel, in, name, out)
}

func (m withHidden) Symlink(cancel <-chan struct{}, in *gofuse.InHeader, target, name string, out *gofuse.EntryOut) gofuse.Status {
	if m.named(in.NodeId, name) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.Symlink(cancel, in, target, name, out)
}

// Link from the hidden tree would be a name of the union for a node that is not of it.
func (m withHidden) Link(cancel <-chan struct{}, in *gofuse.LinkIn, name string, out *gofuse.EntryOut) gofuse.Status {
	switch {
	case m.named(in.NodeId, name):
		return gofuse.EROFS
	case m.has(in.Oldnodeid):
		return gofuse.Status(syscall.EXDEV)
	}
	return m.RawFileSystem.Link(cancel, in, name, out)
}

func (m withHidden) Unlink(cancel <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	if m.named(in.NodeId, name) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.Unlink(cancel, in, name)
}

func (m withHidden) Rmdir(cancel <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	if m.named(in.NodeId, name) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.Rmdir(cancel, in, name)
}

func (m withHidden) Rename(cancel <-chan struct{}, in *gofuse.RenameIn, oldName, newName string) gofuse.Status {
	if m.named(in.NodeId, oldName) || m.named(in.Newdir, newName) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.Rename(cancel, in, oldName, newName)
}

func (m withHidden) Create(cancel <-chan struct{}, in *gofuse.CreateIn, name string, out *gofuse.CreateOut) gofuse.Status {
	if m.named(in.NodeId, name) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.Create(cancel, in, name, out)
}

func (m withHidden) Tmpfile(cancel <-chan struct{}, in *gofuse.CreateIn, out *gofuse.CreateOut) gofuse.Status {
	if m.has(in.NodeId) {
		return gofuse.EROFS
	}
	return m.RawFileSystem.Tmpfile(cancel, in, out)
}

// CopyFileRange out of the hidden tree is the kernel's: it reads and writes.
func (m withHidden) CopyFileRange(cancel <-chan struct{}, in *gofuse.CopyFileRangeIn) (uint32, gofuse.Status) {
	if m.has(in.NodeId) {
		return 0, gofuse.Status(syscall.EXDEV)
	}
	return m.RawFileSystem.CopyFileRange(cancel, in)
}

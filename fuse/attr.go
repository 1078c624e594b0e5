package fuse

import (
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// ttl is how long the kernel may keep names and attributes. Only this mount
// changes the tree, and the kernel itself forgets what its own calls change
// (fuse_invalidate_attr and fuse_dir_changed in fs/fuse/dir.c), so that any time is right.
const ttl = 24 * time.Hour

// fillAttr is struct fuse_attr of a node. The low 32 bits of a device number are
// what the kernel's new_encode_dev makes of it (include/linux/kdev_t.h).
func fillAttr(out *gofuse.Attr, a *union.Attr) {
	out.Ino = a.Ino
	out.Size = uint64(a.Size)
	out.Blocks = uint64(a.Blocks)
	out.Blksize = a.Blksize
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid, out.Gid = a.UID, a.GID
	out.Rdev = uint32(a.Rdev)
	out.Atime, out.Atimensec = uint64(a.Atime.Sec), a.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(a.Mtime.Sec), a.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(a.Ctime.Sec), a.Ctime.Nsec
}

// fillEntry is what the kernel learns of a name. Node IDs are never reused, so
// that the generation is always 0.
func fillEntry(out *gofuse.EntryOut, id union.ID, a *union.Attr) {
	out.NodeId, out.Generation = uint64(id), 0
	out.SetEntryTimeout(ttl)
	out.SetAttrTimeout(ttl)
	fillAttr(&out.Attr, a)
}

// attrTTL is how long the kernel may keep a node's attributes.
func (m *core) attrTTL(id union.ID) time.Duration {
	if m.modes.mayBeMapped(uint64(id)) {
		return 0
	}
	return ttl
}

// fillEntry is for a node that can change.
func (m *core) fillEntry(out *gofuse.EntryOut, id union.ID, a *union.Attr) {
	fillEntry(out, id, a)
	out.SetAttrTimeout(m.attrTTL(id))
}

// fillMissing says that there is no such name, and that the kernel may remember it.
func fillMissing(out *gofuse.EntryOut) {
	*out = gofuse.EntryOut{}
	out.SetEntryTimeout(ttl)
}

func fillAttrOut(out *gofuse.AttrOut, a *union.Attr) {
	out.SetTimeout(ttl)
	fillAttr(&out.Attr, a)
}

// setAttrOf translates a SETATTR request. The times are taken as they are, to the nanosecond.
func setAttrOf(in *gofuse.SetAttrInCommon) union.SetAttr {
	var s union.SetAttr
	if mode, ok := in.GetMode(); ok {
		s.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		s.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		s.GID = &gid
	}
	if size, ok := in.GetSize(); ok {
		n := int64(size)
		s.Size = &n
	}
	s.AtimeNow = in.Valid&gofuse.FATTR_ATIME_NOW != 0
	s.MtimeNow = in.Valid&gofuse.FATTR_MTIME_NOW != 0
	if in.Valid&gofuse.FATTR_ATIME != 0 && !s.AtimeNow {
		s.Atime = &union.Time{Sec: int64(in.Atime), Nsec: in.Atimensec}
	}
	if in.Valid&gofuse.FATTR_MTIME != 0 && !s.MtimeNow {
		s.Mtime = &union.Time{Sec: int64(in.Mtime), Nsec: in.Mtimensec}
	}
	return s
}

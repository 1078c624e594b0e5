package fuse

import (
	"strings"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// GetXAttr is ENOSYS for a tree that has no extended attributes and cannot get
// any: the kernel asks once per mount then, instead of once per file.
func (m *core) GetXAttr(cancel <-chan struct{}, in *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	if !m.fs.HasXattrs() {
		return 0, gofuse.ENOSYS
	}
	c := m.begin(cancel)
	defer c.end()
	v, err := m.fs.Getxattr(c, union.ID(in.NodeId), name)
	if err != nil {
		return 0, m.replyCall(c, "getxattr", in.NodeId, err)
	}
	return fillValue(dest, v)
}

// ListXAttr hides the names of trusted attributes from all but the superuser, as simple_xattr_list in fs/xattr.c does.
func (m *core) ListXAttr(cancel <-chan struct{}, in *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	if !m.fs.HasXattrs() {
		return 0, gofuse.ENOSYS
	}
	c := m.begin(cancel)
	defer c.end()
	names, err := m.fs.Listxattr(c, union.ID(in.NodeId))
	if err != nil {
		return 0, m.replyCall(c, "listxattr", in.NodeId, err)
	}
	return fillValue(dest, xattrList(names, in.Uid == 0))
}

// xattrList is the format of listxattr(2): every name ends with a zero byte.
func xattrList(names []string, trusted bool) []byte {
	var b []byte
	for _, name := range names {
		if trusted || !strings.HasPrefix(name, "trusted.") {
			b = append(append(b, name...), 0)
		}
	}
	return b
}

// fillValue answers with a value or, where it does not fit, with ERANGE and its
// length: the library makes a length alone of that when the caller asked for one.
func fillValue(dest, v []byte) (uint32, gofuse.Status) {
	if len(dest) < len(v) {
		return uint32(len(v)), gofuse.ERANGE
	}
	return uint32(copy(dest, v)), gofuse.OK
}

func (m *core) SetXAttr(cancel <-chan struct{}, in *gofuse.SetXAttrIn, name string, value []byte) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	err := m.fs.Setxattr(c, union.ID(in.NodeId), name, value, int(in.Flags))
	if err == syscall.EEXIST && resent(&in.InHeader) { // XATTR_CREATE
		err = nil
	}
	if err == nil && name == aclAccess {
		err = m.dropSetgid(c, &in.InHeader, union.ID(in.NodeId))
	}
	return m.replyCall(c, "setxattr", in.NodeId, err)
}

func (m *core) RemoveXAttr(cancel <-chan struct{}, in *gofuse.InHeader, name string) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	return m.replyCall(c, "removexattr", in.NodeId, doneBefore(resent(in), m.fs.Removexattr(c, union.ID(in.NodeId), name)))
}

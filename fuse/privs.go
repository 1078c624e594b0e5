package fuse

import (
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// With CAP_HANDLE_KILLPRIV_V2 the server takes the setuid and setgid bits away
// when a file's content or owner changes, as linux/fuse.h describes it:
// on a write, truncation or chown when the request carries a flag for it.
// Without, the kernel asked for security.capability before every write(2).
// Capabilities go by themselves: the file system of the upper directory drops
// them on our own write (cap_inode_killpriv in security/commoncap.c).

// withoutPrivs is a mode without the bits that a write takes away: setgid
// means something else where the group may not execute (setattr_should_drop_suidgid in fs/attr.c).
func withoutPrivs(mode uint32) uint32 {
	mode &^= syscall.S_ISUID
	if mode&syscall.S_IXGRP != 0 {
		mode &^= syscall.S_ISGID
	}
	return mode
}

// modeWithoutPrivs is the mode a node must get, nil when it has no privileges to lose.
func (m *core) modeWithoutPrivs(c *call, id union.ID) (*uint32, error) {
	a, err := m.fs.Getattr(c, id, nil)
	if err != nil {
		return nil, err
	}
	mode := withoutPrivs(a.Mode)
	if mode == a.Mode || a.Type() != syscall.S_IFREG {
		return nil, nil
	}
	mode &^= syscall.S_IFMT
	return &mode, nil
}

// dropPrivs takes the bits away from a file that is about to be written. The
// reply to a write carries no mode, so the kernel is told to ask again.
func (m *core) dropPrivs(c *call, id union.ID, f *union.File) error {
	mode, err := m.modeWithoutPrivs(c, id)
	if mode == nil || err != nil {
		return err
	}
	if _, err := m.fs.Setattr(c, id, f, union.SetAttr{Mode: mode}); err != nil {
		return err
	}
	const attributesOnly = -1 // an offset below 0 leaves the pages alone (fuse_reverse_inval_inode in fs/fuse/inode.c)
	m.server.InodeNotify(uint64(id), attributesOnly, 0)
	return nil
}

// dropPrivsFor is dropPrivs for the requests that carry no flag: of all
// callers the superuser alone is taken to have CAP_FSETID.
func (m *core) dropPrivsFor(c *call, in *gofuse.InHeader, node uint64, f *union.File) error {
	if in.Uid == 0 {
		return nil
	}
	return m.dropPrivs(c, union.ID(node), f)
}

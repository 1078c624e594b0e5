package fuse

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
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

// dropPrivs takes the bits away from a file that is about to be written.
func (m *core) dropPrivs(c *call, id union.ID, f *union.File) error {
	mode, err := m.modeWithoutPrivs(c, id)
	if mode == nil || err != nil {
		return err
	}
	if _, err := m.fs.Setattr(c, id, f, union.SetAttr{Mode: mode}); err != nil {
		return err
	}
	m.modeChanged(id)
	return nil
}

// dropPrivsFor is dropPrivs for the requests that carry no flag: of all
// callers the superuser alone is taken to have CAP_FSETID.
func (m *core) dropPrivsFor(c *call, in *gofuse.InHeader, node uint64, f *union.File) error {
	if in.Uid == 0 {
		return nil
	}
	if err := m.dropSetgid(c, in, union.ID(node)); err != nil {
		return err
	}
	return m.dropPrivs(c, union.ID(node), f)
}

const aclAccess = "system.posix_acl_access"

// dropSetgid takes the setgid bit away after a change by somebody who is not in
// the file's group: to an ACL, and so to the mode (posix_acl_update_mode in
// fs/posix_acl.c), or to the content (setattr_should_drop_sgid in fs/attr.c).
func (m *core) dropSetgid(c *call, in *gofuse.InHeader, id union.ID) error {
	a, err := m.fs.Getattr(c, id, nil)
	if err != nil || a.Mode&syscall.S_ISGID == 0 || in.Uid == 0 || in.Gid == a.GID || inGroup(in.Pid, a.GID) {
		return err
	}
	mode := a.Mode &^ (syscall.S_ISGID | syscall.S_IFMT)
	_, err = m.fs.Setattr(c, id, nil, union.SetAttr{Mode: &mode})
	m.modeChanged(id)
	return err
}

// modeChanged has the kernel ask again: replies to writes and to ACLs carry no mode.
func (m *core) modeChanged(id union.ID) {
	const attributesOnly = -1 // an offset below 0 leaves the pages alone (fuse_reverse_inval_inode in fs/fuse/inode.c)
	m.server.InodeNotify(uint64(id), attributesOnly, 0)
}

// inGroup tells whether a group is among the supplementary ones of a process.
// One that we cannot see, in another PID namespace or gone, is in none.
func inGroup(pid, gid uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if groups, ok := strings.CutPrefix(line, "Groups:"); ok {
			return slices.Contains(strings.Fields(groups), strconv.FormatUint(uint64(gid), 10))
		}
	}
	return false
}

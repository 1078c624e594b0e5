package union

import (
	"context"

	"golang.org/x/sys/unix"
)

// checkName refuses names that cannot be made: those that would be whiteouts in a layer.
func checkName(name string) error {
	switch {
	case len(name) > nameMax:
		return unix.ENAMETOOLONG
	case reserved(name):
		return unix.EPERM
	}
	return nil
}

// A birth is a new node: how to make it, and who owns it.
type birth struct {
	caller Caller
	typ    uint32
	mode   uint32 // permission bits
	link   bool   // one more name of a node that is there: it keeps owner and mode
	make   func(dir int, name string, mode uint32) error
}

// bear makes a new node under a free name. FS.ns is not held.
func (f *FS) bear(dir ID, name string, b birth) (ID, Attr, error) {
	if f.ReadOnly() {
		return 0, Attr{}, unix.EROFS
	}
	if err := checkName(name); err != nil {
		return 0, Attr{}, err
	}
	if err := f.ids.chownable(&b.caller.UID, &b.caller.GID); err != nil && !b.link {
		return 0, Attr{}, unix.EOVERFLOW // as may_o_create in fs/namei.c
	}
	f.ns.Lock()
	defer f.ns.Unlock()
	h, err := f.bearLocked(dir, name, b)
	if err != nil {
		return 0, Attr{}, err
	}
	return h.id, f.attr(h), nil
}

func (f *FS) bearLocked(dir ID, name string, b birth) (hit, error) {
	if _, err := f.find(dir, name, false); err != unix.ENOENT {
		if err == nil {
			err = unix.EEXIST
		}
		return hit{}, err
	}
	d, err := f.copyUpDir(dir)
	if err != nil {
		return hit{}, err
	}
	err = f.dir(d, func(fd int) error { return f.birthIn(d, fd, name, b) })
	if err != nil {
		return hit{}, err
	}
	h, err := f.find(dir, name, true)
	if err == nil {
		f.tab.Lock()
		f.linkedLocked(d, h, 1)
		f.tab.Unlock()
	}
	return h, err
}

// birthIn makes the node where it belongs if that takes one system call, else
// in the work directory first, so that nobody ever sees half of it.
func (f *FS) birthIn(d *node, dir int, name string, b birth) error {
	var parent, old unix.Stat_t
	if err := unix.Fstat(dir, &parent); err != nil {
		return err
	}
	acl, err := b.inherited(dir)
	if err != nil {
		return err
	}
	if acl == nil {
		b.mode &^= b.caller.Umask
	}
	if unix.Fstatat(dir, name, &old, unix.AT_SYMLINK_NOFOLLOW) == unix.ENOENT && f.ownsAsIs(b, &parent) && !f.covers(d, name, b) {
		return b.make(dir, name, b.mode)
	}
	temp := f.up.temp()
	if err := b.make(f.up.work, temp, b.mode); err != nil {
		return err
	}
	if !b.link {
		err = f.dress(temp, b, &parent, acl)
	}
	if err == nil && f.covers(d, name, b) {
		err = f.markOpaque(f.up.work, temp)
	}
	if err == nil {
		err = f.replaceWhiteout(dir, name, temp)
	}
	if err != nil {
		f.up.discard(temp)
	}
	return err
}

// ownsAsIs tells whether what we make has the right owner at once.
func (f *FS) ownsAsIs(b birth, parent *unix.Stat_t) bool {
	if b.link {
		return true
	}
	sgid := parent.Mode&unix.S_ISGID != 0
	return b.caller.UID == uint32(unix.Geteuid()) && (sgid || b.caller.GID == uint32(unix.Getegid())) && b.mode&(unix.S_ISUID|unix.S_ISGID) == 0
}

// covers tells whether a new directory would show lower entries if it were not opaque.
func (f *FS) covers(d *node, name string, b birth) bool {
	if b.typ != unix.S_IFDIR || !d.merged() {
		return false
	}
	_, ok := f.tree().Lookup(d.lower, name)
	return ok
}

func (f *FS) markOpaque(dir int, name string) error {
	return unix.Lsetxattr(procPath(dir, name), f.up.prefix+xattrOpaque, []byte("y"), 0)
}

// dress gives a new node in the work directory its owner and mode; the group
// and the bit of a setgid directory go to what is made in it (inode_init_owner in fs/inode.c).
func (f *FS) dress(temp string, b birth, parent *unix.Stat_t, acl []byte) error {
	gid, mode := b.caller.GID, b.mode
	if parent.Mode&unix.S_ISGID != 0 {
		gid = parent.Gid
		if b.typ == unix.S_IFDIR {
			mode |= unix.S_ISGID
		}
	}
	if err := unix.Fchownat(f.up.work, temp, int(b.caller.UID), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if b.typ == unix.S_IFLNK {
		return nil
	}
	if acl != nil {
		var err error
		if mode, err = inherit(procPath(f.up.work, temp), b.typ, mode, acl); err != nil {
			return err
		}
	}
	return unix.Fchmodat(f.up.work, temp, mode, 0)
}

// replaceWhiteout moves a finished node from the work directory to a name that is free or a whiteout.
func (f *FS) replaceWhiteout(dir int, name, temp string) error {
	err := unix.Renameat2(f.up.work, temp, dir, name, unix.RENAME_NOREPLACE)
	if err != unix.EEXIST {
		return err
	}
	if err := unix.Renameat2(f.up.work, temp, dir, name, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	f.up.discard(temp)
	return nil
}

// Mknod makes a device, FIFO, socket or regular file. A character device 0:0 would be a whiteout: EPERM.
func (f *FS) Mknod(_ context.Context, c Caller, dir ID, name string, mode uint32, rdev uint64) (ID, Attr, error) {
	typ := mode & unix.S_IFMT
	if typ == 0 {
		typ = unix.S_IFREG
	}
	if typ == unix.S_IFCHR && rdev == 0 {
		return 0, Attr{}, unix.EPERM
	}
	return f.bear(dir, name, birth{caller: c, typ: typ, mode: mode &^ unix.S_IFMT, make: func(dir int, name string, mode uint32) error {
		return unix.Mknodat(dir, name, typ|mode, int(rdev))
	}})
}

// Mkdir makes a directory.
func (f *FS) Mkdir(_ context.Context, c Caller, dir ID, name string, mode uint32) (ID, Attr, error) {
	return f.bear(dir, name, birth{caller: c, typ: unix.S_IFDIR, mode: mode &^ unix.S_IFMT, make: func(dir int, name string, mode uint32) error {
		return unix.Mkdirat(dir, name, mode)
	}})
}

// Symlink makes a symlink.
func (f *FS) Symlink(_ context.Context, c Caller, dir ID, name, target string) (ID, Attr, error) {
	return f.bear(dir, name, birth{caller: c, typ: unix.S_IFLNK, mode: 0o777, make: func(dir int, name string, _ uint32) error {
		return unix.Symlinkat(target, dir, name)
	}})
}

// Create makes and opens a regular file; one that is there already is EEXIST. flags are those of open(2).
func (f *FS) Create(_ context.Context, c Caller, dir ID, name string, flags int, mode uint32) (ID, Attr, *File, error) {
	fd := -1
	f.life.RLock()
	defer f.life.RUnlock()
	id, a, err := f.bear(dir, name, birth{caller: c, typ: unix.S_IFREG, mode: mode &^ unix.S_IFMT, make: func(dir int, name string, mode uint32) (err error) {
		fd, err = openAt(dir, name, unix.O_CREAT|unix.O_EXCL|openFlags(flags), mode)
		return err
	}})
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return 0, Attr{}, nil, err
	}
	h := &File{fs: f, id: id, flags: openFlags(flags), fd: fd}
	if n := f.upperOf(id); n != nil {
		h.keep(n)
	}
	return id, a, h, nil
}

// Link gives a node that is no directory one more name. It takes a reference, as Lookup does.
func (f *FS) Link(ctx context.Context, id, dir ID, name string) (ID, Attr, error) {
	if err := checkName(name); err != nil {
		return 0, Attr{}, err
	}
	f.life.RLock()
	defer f.life.RUnlock()
	n, err := f.copyUp(ctx, id, wholeFile)
	if err != nil {
		return 0, Attr{}, err
	}
	if n.typ == unix.S_IFDIR {
		return 0, Attr{}, unix.EPERM
	}
	defer f.named(n)
	return f.bear(dir, name, birth{typ: n.typ, link: true, make: func(dir int, name string, _ uint32) error {
		return f.withPath(n, func(fd int) error {
			return unix.Linkat(unix.AT_FDCWD, procPath(fd, ""), dir, name, unix.AT_SYMLINK_FOLLOW)
		})
	}})
}

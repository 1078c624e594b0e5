package union

import (
	"context"

	"golang.org/x/sys/unix"
)

// Tmpfile makes and opens a regular file without a name (O_TMPFILE of open(2)),
// as if in a directory. Link may give it one. It takes a reference, as Lookup does.
func (f *FS) Tmpfile(_ context.Context, c Caller, dir ID, flags int, mode uint32) (ID, Attr, *File, error) {
	if f.ReadOnly() {
		return 0, Attr{}, nil, unix.EROFS
	}
	if f.ids.chownable(&c.UID, &c.GID) != nil {
		return 0, Attr{}, nil, unix.EOVERFLOW
	}
	f.life.RLock()
	defer f.life.RUnlock()
	f.ns.Lock()
	defer f.ns.Unlock()
	d, err := f.copyUpDir(dir)
	if err != nil {
		return 0, Attr{}, nil, err
	}
	fd, err := openAt(f.up.work, ".", unix.O_TMPFILE|unix.O_RDWR|openFlags(flags)&^unix.O_ACCMODE, 0o600)
	if err != nil {
		return 0, Attr{}, nil, err
	}
	b := birth{caller: c, typ: unix.S_IFREG, mode: mode &^ unix.S_IFMT}
	n, st, err := f.bornWithoutName(d, fd, b)
	if err != nil {
		_ = unix.Close(fd)
		return 0, Attr{}, nil, err
	}
	h := &File{fs: f, id: n.id, flags: openFlags(flags), fd: fd}
	h.keep(n)
	return n.id, f.statAttr(n, &st), h, nil
}

// bornWithoutName gives an open file its owner and mode, and a node that is kept by a descriptor.
func (f *FS) bornWithoutName(d *node, fd int, b birth) (n *node, st unix.Stat_t, err error) {
	err = f.dir(d, func(dir int) error { return f.dressOpen(dir, fd, b) })
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		return nil, st, err
	}
	kept, err := unix.Open(procPath(fd, ""), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, err
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	return f.enterLocked(&node{typ: unix.S_IFREG, fd: kept, ino: st.Ino, refs: 1}), st, nil
}

// dressOpen is dress for a file that has only a descriptor.
func (f *FS) dressOpen(dir, fd int, b birth) error {
	var parent unix.Stat_t
	if err := unix.Fstat(dir, &parent); err != nil {
		return err
	}
	acl, err := b.inherited(dir)
	if err != nil {
		return err
	}
	gid, mode := b.caller.GID, b.mode
	if parent.Mode&unix.S_ISGID != 0 {
		gid = parent.Gid
	}
	if err := unix.Fchown(fd, int(b.caller.UID), int(gid)); err != nil {
		return err
	}
	if acl == nil {
		mode &^= b.caller.Umask
	} else if mode, err = inherit(procPath(fd, ""), b.typ, mode, acl); err != nil {
		return err
	}
	return unix.Fchmod(fd, mode)
}

// named lets go of the descriptor of a node that has a name by now.
func (f *FS) named(n *node) {
	f.ns.Lock()
	defer f.ns.Unlock()
	f.tab.Lock()
	defer f.tab.Unlock()
	if n.fd >= 0 && len(n.places) > 0 {
		_ = unix.Close(n.fd)
		n.fd = -1
	}
}

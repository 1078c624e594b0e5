package union

import (
	"context"

	"golang.org/x/sys/unix"
)

// Unlink removes a name that is no directory.
func (f *FS) Unlink(_ context.Context, dir ID, name string) error {
	return f.remove(dir, name, false)
}

// Rmdir removes an empty directory.
func (f *FS) Rmdir(_ context.Context, dir ID, name string) error {
	return f.remove(dir, name, true)
}

func (f *FS) remove(dir ID, name string, rmdir bool) error {
	if f.ReadOnly() {
		return unix.EROFS
	}
	f.ns.Lock()
	defer f.ns.Unlock()
	h, err := f.find(dir, name, false)
	if err != nil {
		return err
	}
	if err := f.removable(h, rmdir); err != nil {
		return err
	}
	d, err := f.copyUpDir(dir)
	if err != nil {
		return err
	}
	if err := f.keep(h, d, name); err != nil {
		return err
	}
	f.beforeUnlink(h, d, name)
	err = f.dir(d, func(fd int) error { return f.removeIn(d, fd, name, h) })
	f.removed(h, d, name, err == nil)
	return err
}

func (f *FS) removable(h hit, rmdir bool) error {
	isDir := f.typeOf(h) == unix.S_IFDIR
	switch {
	case rmdir && !isDir:
		return unix.ENOTDIR
	case !rmdir && isDir:
		return unix.EISDIR
	case !rmdir:
		return nil
	}
	empty, err := f.emptyDir(h)
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	return err
}

func (f *FS) typeOf(h hit) uint32 {
	if h.n != nil {
		return h.n.typ
	}
	return f.tree().Mode(h.id) & unix.S_IFMT
}

// hidesLower tells whether a name taken away from an upper directory would let a lower entry show.
func (f *FS) hidesLower(d *node, name string) bool {
	if !d.merged() {
		return false
	}
	_, ok := f.tree().Lookup(d.lower, name)
	return ok
}

// removeIn takes a name away: for what is in the upper directory it goes (a
// directory by way of the work directory, since it may hold whiteouts), for
// what shows from below a whiteout comes.
func (f *FS) removeIn(d *node, dir int, name string, h hit) error {
	whiteout := f.hidesLower(d, name)
	inUpper := h.n != nil
	switch {
	case !inUpper:
		return f.up.makeWhiteout(dir, name)
	case !whiteout && h.n.survives():
		return f.unlinkKept(h.n, dir, name)
	case !whiteout && h.n.typ != unix.S_IFDIR:
		return unix.Unlinkat(dir, name, 0)
	}
	temp := f.up.temp()
	if h.n.survives() {
		temp = orphanName(h.n.id)
	}
	if !whiteout {
		if err := unix.Renameat(dir, name, f.up.work, temp); err != nil {
			return err
		}
		f.up.discard(temp)
		return nil
	}
	if err := f.up.makeWhiteout(f.up.work, temp); err != nil {
		return err
	}
	err := f.up.whiteoutsIn(dir)
	if err == nil {
		err = unix.Renameat2(f.up.work, temp, dir, name, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		_ = unix.Unlinkat(f.up.work, temp, 0)
		return err
	}
	if h.n.survives() {
		h.n.orphan = true
		return nil
	}
	f.up.discard(temp)
	return nil
}

// survives tells whether a node that keep has kept gets a name in the work directory. A directory
// without a name is empty and cannot be written to: there is nothing to survive.
func (n *node) survives() bool { return n.fd >= 0 && n.typ != unix.S_IFDIR }

// keep makes sure that a node whose last known name goes can still be reached by those who use it.
func (f *FS) keep(h hit, d *node, name string) error {
	n := h.n
	if n == nil || n.fd >= 0 {
		return nil
	}
	f.tab.Lock()
	others := len(n.places) > 1 || n.refs == 0 && !n.resumed && !f.tree().Has(n.id)
	f.tab.Unlock()
	if others {
		return nil
	}
	fd, err := f.pathFD(n, 0)
	if err != nil {
		return err
	}
	f.tab.Lock()
	n.fd = fd
	f.tab.Unlock()
	return nil
}

// removed brings the table up to date after a removal, or takes keep back.
func (f *FS) removed(h hit, d *node, name string, done bool) {
	f.tab.Lock()
	defer f.tab.Unlock()
	n := h.n
	if done {
		f.linkedLocked(d, h, -1)
	}
	if n == nil {
		if done && f.tree().IsDir(h.id) {
			f.nodes[h.id] = &node{id: h.id, lower: h.id, typ: unix.S_IFDIR, fd: -1, gone: true}
		}
		return
	}
	if done {
		n.dropPlace(d, name)
		n.gone = len(n.places) == 0 && (n.typ == unix.S_IFDIR || f.linksLeft(n) == 0)
	}
	if !n.gone {
		f.dropOrphanLocked(n)
	}
	if n.gone {
		f.fds.drop(n)
		delete(f.byIno, n.ino)
	}
	if len(n.places) > 0 && n.fd >= 0 {
		_ = unix.Close(n.fd)
		n.fd = -1
	}
	f.releaseLocked(n)
	f.releaseLocked(d)
}

// linksLeft asks a node that is kept by its descriptor for its names; one that nobody uses has none that matter.
func (f *FS) linksLeft(n *node) uint64 {
	var st unix.Stat_t
	if n.fd < 0 || unix.Fstat(n.fd, &st) != nil {
		return 0
	}
	own := f.ownLinks(st.Ino)
	if n.orphan {
		own++
	}
	return uint64(st.Nlink) - own
}

// emptyDir tells whether a directory shows no names. FS.ns is held.
func (f *FS) emptyDir(h hit) (bool, error) {
	l, err := f.list(h.id)
	return len(l) == 0, err
}

package union

import (
	"context"

	"golang.org/x/sys/unix"
)

// A move is a rename under way.
type move struct {
	oldDir, newDir   ID
	oldName, newName string
	exchange         bool
	src, dst         hit
	there            bool // dst is there
	from, to         *node
}

// Rename moves a name, as renameat2(2) does with RENAME_NOREPLACE and
// RENAME_EXCHANGE; RENAME_WHITEOUT is EINVAL. A lower directory moves without
// its content: it leaves a redirect (overlayfs.rst, "redirect_dir").
func (f *FS) Rename(ctx context.Context, oldDir ID, oldName string, newDir ID, newName string, flags uint32) error {
	if f.ReadOnly() {
		return unix.EROFS
	}
	if flags != 0 && flags != unix.RENAME_NOREPLACE && flags != unix.RENAME_EXCHANGE {
		return unix.EINVAL
	}
	if err := checkName(newName); err != nil {
		return err
	}
	m := &move{oldDir: oldDir, newDir: newDir, oldName: oldName, newName: newName, exchange: flags == unix.RENAME_EXCHANGE}
	for {
		again, err := f.tryRename(ctx, m, flags)
		if !again {
			return err
		}
	}
}

// tryRename copies up what moves and then moves it, unless another call came between: then again is true.
func (f *FS) tryRename(ctx context.Context, m *move, flags uint32) (again bool, err error) {
	if err := f.liftEnds(ctx, m); err != nil {
		return false, err
	}
	f.ns.Lock()
	defer f.ns.Unlock()
	if err := f.ends(m); err != nil {
		return false, err
	}
	if f.needsContent(m.src) || m.exchange && f.needsContent(m.dst) {
		return true, nil
	}
	if m.there && m.src.id == m.dst.id {
		return false, sameNode(flags)
	}
	if err := f.renamable(m, flags); err != nil {
		return false, err
	}
	return false, f.rename(m)
}

// sameNode: two names of one node stay as they are (rename(2)).
func sameNode(flags uint32) error {
	if flags == unix.RENAME_NOREPLACE {
		return unix.EEXIST
	}
	return nil
}

// ends looks both names up. FS.ns is held.
func (f *FS) ends(m *move) (err error) {
	if m.src, err = f.find(m.oldDir, m.oldName, false); err != nil {
		return err
	}
	m.dst, err = f.find(m.newDir, m.newName, false)
	m.there = err == nil
	if err == unix.ENOENT && !m.exchange {
		return nil
	}
	return err
}

// needsContent tells whether a node has to be copied up, which may take long, before it can move.
func (f *FS) needsContent(h hit) bool { return h.n == nil && f.typeOf(h) != unix.S_IFDIR }

// liftEnds copies up what has to be before the move, without holding FS.ns over
// it: files that are to move, and of directories those that have a name
// elsewhere too, because no layer could say that the two names are one file.
func (f *FS) liftEnds(ctx context.Context, m *move) error {
	f.ns.RLock()
	err := f.ends(m)
	f.ns.RUnlock()
	if err != nil {
		return err
	}
	if err := f.lift(ctx, m.src); err != nil || !m.exchange {
		return err
	}
	return f.lift(ctx, m.dst)
}

func (f *FS) lift(ctx context.Context, h hit) error {
	if f.needsContent(h) {
		_, err := f.copyUp(ctx, h.id, wholeFile)
		return err
	}
	if f.typeOf(h) != unix.S_IFDIR {
		return nil
	}
	dir := h.id
	if h.n != nil {
		dir = h.n.lower
	}
	for _, id := range f.tree().linkedOut(dir) {
		if _, err := f.copyUp(ctx, id, wholeFile); err != nil {
			return err
		}
	}
	return nil
}

// renamable checks what rename(2) wants of the two ends.
func (f *FS) renamable(m *move, flags uint32) error {
	if !m.there || m.exchange {
		return nil
	}
	srcDir, dstDir := f.typeOf(m.src) == unix.S_IFDIR, f.typeOf(m.dst) == unix.S_IFDIR
	switch {
	case flags == unix.RENAME_NOREPLACE:
		return unix.EEXIST
	case srcDir && !dstDir:
		return unix.ENOTDIR
	case !srcDir && dstDir:
		return unix.EISDIR
	case !dstDir:
		return nil
	}
	empty, err := f.emptyDir(m.dst)
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	return err
}

// rename is the move itself: everything in the upper directory, the parents too.
func (f *FS) rename(m *move) (err error) {
	if m.from, err = f.copyUpDir(m.oldDir); err != nil {
		return err
	}
	if m.to, err = f.copyUpDir(m.newDir); err != nil {
		return err
	}
	if err := f.prepareDir(&m.src, m.from, m.oldName, m.to, m.newName); err != nil {
		return err
	}
	if m.exchange {
		err = f.prepareDir(&m.dst, m.to, m.newName, m.from, m.oldName)
	} else if m.there {
		err = f.giveWay(m)
	}
	if err != nil {
		return err
	}
	err = f.dir(m.from, func(from int) error {
		return f.dir(m.to, func(to int) error { return f.renameIn(m, from, to) })
	})
	f.renamed(m, err == nil)
	return err
}

// prepareDir makes a directory ready to stand elsewhere: one that merges with a
// lower directory takes a redirect along, another must not merge with what it covers there.
func (f *FS) prepareDir(h *hit, from *node, oldName string, to *node, newName string) (err error) {
	if f.typeOf(*h) != unix.S_IFDIR {
		return nil
	}
	if h.n == nil {
		if h.n, err = f.copyUpDir(h.id); err != nil {
			return err
		}
	}
	return f.dir(from, func(dir int) error {
		if h.n.merged() {
			return f.up.markRedirect(dir, oldName, "/"+f.tree().Path(h.n.lower))
		}
		if f.hidesLower(to, newName) {
			return f.markOpaque(dir, oldName)
		}
		return nil
	})
}

// giveWay prepares the node that is replaced: who uses it can go on, and a
// directory that shows nothing really becomes empty. It is opaque before its
// whiteouts go, so that nothing reappears at any moment.
func (f *FS) giveWay(m *move) error {
	n := m.dst.n
	if n == nil {
		return nil
	}
	if err := f.keep(m.dst, m.to, m.newName); err != nil {
		return err
	}
	f.beforeUnlink(m.dst, m.to, m.newName)
	if n.survives() {
		return f.dir(m.to, func(dir int) error { return f.linkKept(n, dir, m.newName) })
	}
	if n.typ != unix.S_IFDIR {
		return nil
	}
	if err := f.dir(m.to, func(dir int) error { return f.markOpaque(dir, m.newName) }); err != nil {
		return err
	}
	return f.dir(n, func(fd int) error {
		names, err := readNames(fd)
		for _, name := range names {
			if err == nil {
				err = removeAll(fd, name)
			}
		}
		return err
	})
}

// renameIn renames in the upper directory and leaves a whiteout where a lower
// entry would show. A directory cannot replace a whiteout: they exchange.
func (f *FS) renameIn(m *move, from, to int) error {
	whiteout := f.hidesLower(m.from, m.oldName)
	var st unix.Stat_t
	covered := unix.Fstatat(to, m.newName, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
	switch {
	case m.exchange, covered && !m.there && m.src.n.typ == unix.S_IFDIR:
		err := unix.Renameat2(from, m.oldName, to, m.newName, unix.RENAME_EXCHANGE)
		if err == nil && !m.exchange && !whiteout {
			return unix.Unlinkat(from, m.oldName, 0)
		}
		return err
	case !whiteout:
		return unix.Renameat(from, m.oldName, to, m.newName)
	}
	err := unix.Renameat2(from, m.oldName, to, m.newName, unix.RENAME_WHITEOUT)
	if err != unix.EINVAL && err != unix.EPERM && err != unix.EOPNOTSUPP {
		return err
	}
	return f.renameTwice(m, from, to)
}

// renameTwice is for file systems without RENAME_WHITEOUT. A crash between the two steps shows the lower entry again.
func (f *FS) renameTwice(m *move, from, to int) error {
	temp := f.up.temp()
	if err := f.up.makeWhiteout(f.up.work, temp); err != nil {
		return err
	}
	err := f.up.whiteoutsIn(from)
	if err == nil {
		err = unix.Renameat(from, m.oldName, to, m.newName)
	}
	if err != nil {
		f.up.discard(temp)
		return err
	}
	return unix.Renameat(f.up.work, temp, from, m.oldName)
}

// renamed brings the table up to date, or takes keep back.
func (f *FS) renamed(m *move, done bool) {
	if m.there && !m.exchange {
		f.removed(m.dst, m.to, m.newName, done)
	}
	if !done {
		return
	}
	f.afterRename(m.src.n, m.to, m.newName)
	if m.exchange {
		f.afterRename(m.dst.n, m.from, m.oldName)
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	m.src.n.dropPlace(m.from, m.oldName)
	f.linkedLocked(m.from, m.src, -1)
	f.linkedLocked(m.to, m.src, 1)
	if m.exchange {
		f.linkedLocked(m.to, m.dst, -1)
		f.linkedLocked(m.from, m.dst, 1)
		m.dst.n.dropPlace(m.to, m.newName)
		m.dst.n.addPlace(m.from, m.oldName)
	}
	m.src.n.addPlace(m.to, m.newName)
}

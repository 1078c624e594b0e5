package union

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// How the upper directory of a live mount is replaced (Moment.Continue).

// make makes the new upper directory in the work directory, and puts it in the place of the old one, which gets its name:
//
//	mkdirat, linkat, mknodat, fsetxattr, fchownat, fchmodat, utimensat …
//	syncfs
//	renameat2(RENAME_EXCHANGE)
//	fsync of the directory above
func (c *continuing) make(temp string) error {
	f := c.fs
	if err := unix.Mkdirat(f.up.work, temp, 0o700); err != nil {
		return err
	}
	if err := c.makeDir(f.up.work, temp, c.root); err != nil {
		return err
	}
	if err := c.markRoot(temp); err != nil {
		return err
	}
	above, err := openDir(filepath.Dir(f.up.dir))
	if err != nil {
		return err
	}
	defer unix.Close(above)
	if !f.up.o.Volatile {
		if err := unix.Syncfs(f.up.work); err != nil {
			return err
		}
	}
	if err := unix.Renameat2(f.up.work, temp, above, filepath.Base(f.up.dir), unix.RENAME_EXCHANGE); err != nil {
		if err == unix.EBUSY || err == unix.EXDEV {
			return fmt.Errorf("%w: the upper directory %s is a mountpoint", ErrNoContinue, f.up.dir)
		}
		return err
	}
	if !f.up.o.Volatile {
		if err := unix.Fsync(above); err != nil {
			f.up.log.Warn("sync the directory above the upper directory", "err", err)
		}
	}
	return nil
}

// makeDir fills a directory that was made.
func (c *continuing) makeDir(above int, name string, d *keptDir) error {
	dst, err := openAt(above, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return c.fs.dir(d.n, func(src int) error {
		for _, e := range d.entries {
			if err := unix.Linkat(src, e.name, dst, e.name, 0); err != nil {
				return fmt.Errorf("link %s: %w", e.name, err)
			}
		}
		for _, name := range d.whiteouts {
			if err := c.fs.up.makeWhiteout(dst, name); err != nil {
				return fmt.Errorf("hide %s: %w", name, err)
			}
		}
		for _, k := range d.dirs {
			if err := unix.Mkdirat(dst, k.name, 0o700); err != nil {
				return err
			}
			if err := c.makeDir(dst, k.name, k); err != nil {
				return err
			}
		}
		return c.dressDir(src, dst, d)
	})
}

// dressDir gives a directory the attributes of the old one, and its marks.
func (c *continuing) dressDir(src, dst int, d *keptDir) error {
	p := c.fs.up.prefix
	names, err := listxattrAt(src, ".")
	if err != nil {
		return err
	}
	for _, name := range names {
		if rest, own := strings.CutPrefix(name, p); own && !strings.HasPrefix(rest, xattrEscape) {
			continue
		}
		value, err := lgetxattrAt(src, ".", name)
		if err == nil {
			err = unix.Fsetxattr(dst, name, value, 0)
		}
		if err != nil {
			return fmt.Errorf("copy the attribute %s: %w", name, err)
		}
	}
	if d.opaque {
		err = unix.Fsetxattr(dst, p+xattrOpaque, []byte("y"), 0)
	}
	if d.redirect != "" {
		err = unix.Fsetxattr(dst, p+xattrRedirect, []byte(d.redirect), 0)
	}
	return errors.Join(err,
		unix.Fchown(dst, int(d.st.Uid), int(d.st.Gid)),
		unix.Fchmod(dst, d.st.Mode&^unix.S_IFMT),
		setTimes(dst, d.st.Atim, d.st.Mtim))
}

// markRoot writes what a mount wants to know of an upper directory.
func (c *continuing) markRoot(temp string) error {
	u := c.fs.up
	fd, err := openAt(u.work, temp, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = errors.Join(
		unix.Fsetxattr(fd, u.prefix+xattrBase, []byte(c.next.Digest()), 0),
		unix.Fsetxattr(fd, u.prefix+xattrBaseRef, []byte(c.ref), 0),
		unix.Fsetxattr(fd, u.prefix+xattrNote, []byte(c.note), 0))
	if c.root.moved() {
		err = errors.Join(err, unix.Fsetxattr(fd, u.prefix+xattrMoved, []byte("y"), 0))
	}
	return errors.Join(err, setTimes(fd, c.root.st.Atim, c.root.st.Mtim))
}

func (d *keptDir) moved() bool {
	for _, k := range d.dirs {
		if k.redirect != "" || k.moved() {
			return true
		}
	}
	return false
}

// settle takes up what is on the disk now. Nothing in it may fail: what cannot be
// had any more is logged, and costs no more than an inode number after the next mount.
func (c *continuing) settle(temp string) {
	f := c.fs
	f.fds.closeAll()
	c.swapRoot()
	stays := map[*node]bool{}
	c.enter(c.root, f.up.root, stays)
	f.tab.Lock()
	for id, n := range f.nodes {
		if !n.gone && !stays[n] {
			delete(f.nodes, id)
		}
	}
	byIno := make(map[uint64]*node, len(f.nodes))
	for _, n := range f.byIno {
		if f.nodes[n.id] == n {
			byIno[n.ino] = n
		}
	}
	f.byIno = byIno
	c.recount()
	f.tab.Unlock()
	f.up.redirects, f.up.dotWh = c.root.moved(), false
	f.up.o.Base, f.up.o.BaseRef, f.up.o.Note = c.next.Digest(), c.ref, c.note
	f.up.baseRef, f.up.note = c.ref, c.note
	f.rec.stop()
	f.lower.Store(c.live)
	f.epoch.Add(1)
	c.markFiles(c.root)
	c.dropOld(f.up.work, temp, c.root)
	c.m.mu.Lock()
	c.m.dirs, c.m.list, c.m.n = nil, nil, 0
	c.m.mu.Unlock()
	if f.moment.CompareAndSwap(c.m, nil) {
		c.m.dropKept()
	}
}

// swapRoot has the descriptor of the upper directory, which others use meanwhile, mean the new one.
func (c *continuing) swapRoot() {
	u := c.fs.up
	fd, err := openDir(u.dir)
	if err == nil {
		err = errors.Join(unix.Dup3(fd, u.root, unix.O_CLOEXEC), unix.Close(fd))
	}
	if err != nil {
		u.log.Error("open the new upper directory", "err", err)
	}
}

// enter gives the nodes that stay what they are on the new tree. fd is the new directory of d.
func (c *continuing) enter(d *keptDir, fd int, stays map[*node]bool) {
	var st unix.Stat_t
	_ = unix.Fstat(fd, &st) // of an open directory
	stays[d.n] = true
	c.place(d.n, d.lower)
	c.fs.tab.Lock()
	d.n.ino, d.n.links = st.Ino, 0
	c.fs.tab.Unlock()
	for _, e := range d.entries {
		stays[e.n] = true
		lower := ID(0)
		if c.live.Has(e.n.id) {
			lower = e.n.id
		}
		c.place(e.n, lower)
	}
	for _, k := range d.dirs {
		sub, err := openAt(fd, k.name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			c.fs.up.log.Error("open a directory of the new upper directory", "name", k.name, "err", err)
			continue
		}
		c.enter(k, sub, stays)
		_ = unix.Close(sub)
	}
}

// place: the st_ino of a node that the tree has not must not follow what Continue changes.
func (c *continuing) place(n *node, lower ID) {
	ino := c.fs.statIno(n)
	c.fs.tab.Lock()
	defer c.fs.tab.Unlock()
	if n.lower = lower; !c.live.Has(n.id) {
		n.shown = ino
	}
}

// recount counts anew how many places each directory has in it, and forgets the
// Moment's references. FS.tab is held.
func (c *continuing) recount() {
	for _, n := range c.fs.nodes {
		n.kids = 0
	}
	for _, n := range c.fs.nodes {
		for _, p := range n.places {
			p.dir.kids++
		}
	}
	for _, n := range c.m.dirs {
		n.refs -= min(1, n.refs)
	}
}

// markFiles writes on what stays where it is in the new tree, and notes what the layer has.
func (c *continuing) markFiles(d *keptDir) {
	f := c.fs
	err := f.dir(d.n, func(fd int) error {
		for _, e := range d.entries {
			c.markFile(fd, e)
		}
		return nil
	})
	if err != nil {
		f.up.log.Error("open a directory of the new upper directory", "err", err)
	}
	for _, k := range d.dirs {
		c.markFiles(k)
	}
}

func (c *continuing) markFile(fd int, e *keptEntry) {
	f := c.fs
	p, err := procPath(fd, e.name), error(nil)
	if c.live.Has(e.n.id) {
		err = unix.Lsetxattr(p, f.up.prefix+xattrOrigin, []byte(c.live.originMark(e.n.id)), 0)
	} else if _, none := lgetxattrAt(fd, e.name, f.up.prefix+xattrOrigin); none == nil {
		err = unix.Lremovexattr(p, f.up.prefix+xattrOrigin)
	}
	if err != nil && e.n.typ == unix.S_IFREG {
		f.up.log.Warn("mark where a file comes from", "name", e.name, "err", err)
	}
}

// dropOld takes the names that are in the new upper directory out of the old one, so
// that link counts are right again, and notes what the layer has.
func (c *continuing) dropOld(above int, name string, d *keptDir) {
	fd, err := openAt(above, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		c.fs.up.log.Error("open the old upper directory", "err", err)
		return
	}
	defer unix.Close(fd)
	for _, e := range d.entries {
		if err := unix.Unlinkat(fd, e.name, 0); err != nil {
			c.fs.up.log.Error("clear the old upper directory", "name", e.name, "err", err)
		}
	}
	for _, k := range d.dirs {
		c.dropOld(fd, k.name, k)
	}
	for _, e := range d.entries {
		var st unix.Stat_t
		e.n.sent = Time{}
		if e.sent && c.fs.statNode(e.n, &st) == nil {
			e.n.sent = statTime(st.Ctim)
		}
	}
}

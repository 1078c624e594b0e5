package union

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// What of an upper directory stays when a layer has the rest (Moment.Continue).

// A keptDir is an upper directory as it is to be on the new tree.
type keptDir struct {
	n         *node
	name      string
	st        unix.Stat_t
	lower     ID     // what it merges with
	opaque    bool   // it must not merge with what is at its path
	redirect  string // where it merges with something at another path
	same      bool   // its attributes are those of lower
	entries   []*keptEntry
	dirs      []*keptDir
	whiteouts []string
}

// A keptEntry is an upper entry that is no directory.
type keptEntry struct {
	n     *node
	name  string
	links uint32
	sent  bool // the layer has it, at this path, and it is as it was at the Moment
	same  bool // so it shows through just as it is
}

// plan decides what stays.
func (c *continuing) plan() error {
	f := c.fs
	c.links = map[uint64]uint32{}
	c.root = &keptDir{n: f.node(Root), name: ".", lower: Root}
	if err := unix.Fstat(f.up.root, &c.root.st); err != nil {
		return err
	}
	if err := c.planDir(c.root); err != nil {
		return err
	}
	c.drop(c.root)
	return nil
}

// planDir looks through an upper directory.
func (c *continuing) planDir(d *keptDir) error {
	f := c.fs
	return f.dir(d.n, func(fd int) error {
		same, err := c.sameAttr(d.n, fd, ".", &d.st, d.lower)
		if err != nil {
			return err
		}
		d.same = same
		entries, err := readEntries(fd)
		if err != nil {
			return err
		}
		shows := map[string]bool{}
		for _, e := range entries {
			if reserved(e.name) {
				continue
			}
			var st unix.Stat_t
			err := f.statIn(d.n, fd, e.name, &st)
			if err == unix.ENOENT {
				shows[e.name] = false
				continue
			}
			if err == nil {
				err = c.planEntry(d, fd, e.name, &st)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			shows[e.name] = true
		}
		slices.SortFunc(d.entries, func(a, b *keptEntry) int { return cmp.Compare(a.name, b.name) })
		return c.planWhiteouts(d, fd, shows)
	})
}

func (c *continuing) planEntry(d *keptDir, fd int, name string, st *unix.Stat_t) error {
	f := c.fs
	n := f.adopt(d.n, fd, name, st, false)
	at := c.live.childOf(d.lower, name)
	if n.typ == unix.S_IFDIR {
		k := &keptDir{n: n, name: name, st: *st}
		if c.live.Has(n.id) && c.live.IsDir(n.id) {
			k.lower = n.id
		}
		switch {
		case k.lower == 0:
			k.opaque = at != 0
		case k.lower != at:
			k.redirect = "/" + c.live.Path(k.lower)
		}
		d.dirs = append(d.dirs, k)
		return c.planDir(k)
	}
	e := &keptEntry{n: n, name: name, links: uint32(st.Nlink)}
	d.entries = append(d.entries, e)
	if e.sent = at == n.id && at != 0 && (c.unchanged(st) || n.sent == statTime(st.Ctim)); !e.sent {
		return nil
	}
	var err error
	if e.same, err = c.sameAttr(n, fd, name, st, at); e.same {
		e.same = n.open == 0 && !c.fs.unseen.has(n.id)
	}
	if e.same {
		c.links[st.Ino]++
	}
	return err
}

// childOf is what a directory has at a name; 0 is none.
func (t *Tree) childOf(dir ID, name string) ID {
	if dir == 0 {
		return 0
	}
	id, _ := t.Lookup(dir, name)
	return id
}

// sameAttr tells whether a node of the new tree has all that an upper one shows, but for its content.
func (c *continuing) sameAttr(n *node, fd int, name string, st *unix.Stat_t, id ID) (bool, error) {
	if id == 0 {
		return false, nil
	}
	now, was := c.fs.statAttr(&node{ino: st.Ino}, st), c.live.Attr(id)
	if now.Mode != was.Mode || now.UID != was.UID || now.GID != was.GID || now.Rdev != was.Rdev || now.Mtime != was.Mtime {
		return false, nil
	}
	it := &item{dir: fd, name: name}
	switch now.Type() {
	case unix.S_IFREG:
		if now.Size != was.Size {
			return false, nil
		}
	case unix.S_IFLNK:
		target, err := c.fs.itemLink(it)
		if err != nil || target != c.live.Readlink(id) {
			return false, err
		}
	}
	xattrs, err := c.fs.itemXattrs(it)
	return sameXattrs(xattrs, c.live.Xattrs(id)), err
}

// planWhiteouts finds what the new tree has in a directory and the mount does not show;
// and makes sure that it has all that showed through.
func (c *continuing) planWhiteouts(d *keptDir, fd int, shows map[string]bool) error {
	f, old := c.fs, c.fs.tree()
	hidden := func(name string) bool {
		s, touched := shows[name]
		return touched && !s || !touched && f.dotWhiteout(fd, name)
	}
	if d.n.merged() {
		for name, id := range old.Children(d.n.lower) {
			if _, touched := shows[name]; !touched && !hidden(name) && !reserved(name) && c.live.childOf(d.lower, name) != id {
				return fmt.Errorf("%w: %s is not in the new image as it was", ErrNoContinue, name)
			}
		}
	}
	if d.lower == 0 {
		return nil
	}
	for name := range c.live.Children(d.lower) {
		through := d.n.merged() && old.childOf(d.n.lower, name) != 0 && !hidden(name)
		if !shows[name] && !through && !reserved(name) {
			d.whiteouts = append(d.whiteouts, name)
		}
	}
	return nil
}

// drop takes out of the plan what shows through the new tree, and tells whether anything stays.
func (c *continuing) drop(d *keptDir) (stays bool) {
	d.entries = slices.DeleteFunc(d.entries, func(e *keptEntry) bool {
		return e.same && (e.links <= 1 || c.links[e.n.ino] == e.links)
	})
	d.dirs = slices.DeleteFunc(d.dirs, func(k *keptDir) bool { return !c.drop(k) })
	return !d.same || d.opaque || d.redirect != "" || len(d.entries)+len(d.dirs)+len(d.whiteouts) > 0
}

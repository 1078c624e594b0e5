package union

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoContinue says that an upper directory cannot be emptied while it is mounted.
var ErrNoContinue = errors.New("the mount cannot go on from the new image")

// Continue makes next, the merged tree of the image that the Moment was committed
// to, the tree below, and takes out of the upper directory what it has: the layers
// below, with the one that WriteTar wrote above them. ref and note are as in UpperOptions.
//
// Nobody notices: IDs and inode numbers stay, what is open stays open, and what
// changed since the Moment stays in the upper directory. What is in the layer and
// stays there too (a file that is open; one of which the layer has not all) is in the
// next commit only if it changes. FS calls wait while it looks through the upper
// directory, which takes no content to read.
//
// The new upper directory is made beside the old one, and they change places in one
// system call: a crash leaves either the old one, on the old base, or the new one. An
// error leaves everything as it was. It needs no Close afterwards, and suffers one.
func (m *Moment) Continue(ctx context.Context, next *Tree, ref, note string) error {
	f := m.fs
	if f.ReadOnly() || f.moment.Load() != m {
		return fmt.Errorf("%w: it is read-only", ErrNoContinue)
	}
	old := f.tree()
	if n := len(old.layers); len(next.layers) < n || len(next.layers) > n+1 || commonLayers(old.layers, next.layers) != n {
		return fmt.Errorf("%w: its layers are not those of the mount and one more", ErrNoContinue)
	}
	c := &continuing{fs: f, m: m, next: next, ids: make([]ID, next.Len()), records: map[ID]*record{}, ref: ref, note: note}
	c.snap = m.snapshot()
	c.pair(Root, c.snap.rootSpot())
	c.ids[Root-1] = Root
	if err := c.adopt(); err != nil {
		return err
	}
	if !f.up.o.Volatile {
		_ = unix.Syncfs(f.up.work) // so that the one that others wait for has little to do
	}
	temp, err := c.run(ctx)
	if temp != "" {
		f.up.discard(temp) // the old upper directory, or what there was of the new one
	}
	return err
}

// run is what others wait for; temp is a name in the work directory that nobody needs any more.
func (c *continuing) run(ctx context.Context) (temp string, err error) {
	f := c.fs
	if err := f.still(ctx); err != nil {
		return "", err
	}
	defer f.life.Unlock()
	f.ns.Lock()
	defer f.ns.Unlock()
	f.writes.Lock()
	defer f.writes.Unlock()
	c.number()
	if err := c.plan(); err != nil {
		return "", fmt.Errorf("look through the upper directory: %w", err)
	}
	temp = f.up.temp()
	if err := c.make(temp); err != nil {
		return temp, fmt.Errorf("make the next upper directory: %w", err)
	}
	c.settle(temp)
	return temp, nil
}

// stillPatience is how long Continue waits for calls that are under way without
// keeping new ones waiting: a copy-up may have to fetch.
const stillPatience = 2 * time.Second

// still waits until no call is under way, and takes FS.life.
func (f *FS) still(ctx context.Context) error {
	for begun := time.Now(); time.Since(begun) < stillPatience; time.Sleep(time.Millisecond) {
		if f.life.TryLock() {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	f.life.Lock()
	return nil
}

// A continuing is a Continue under way.
type continuing struct {
	fs   *FS
	m    *Moment
	next *Tree // as Merge made it
	ref  string
	note string
	snap *snapshot

	ids     []ID           // by the ID in next, -1: the ID on the mount
	records map[ID]*record // by the ID in next: what the Moment has of a node, if its ID depends on the table
	live    *Tree          // next, renumbered
	root    *keptDir
	links   map[uint64]uint32 // by inode number: how many names could go
}

// pair finds for every node of next what the Moment had at its path.
func (c *continuing) pair(dir ID, s spot) {
	for name, id := range c.next.Children(dir) {
		p := c.snap.child(s, name)
		switch {
		case c.ids[id-1] != 0 || c.records[id] != nil:
		case p.up != nil:
			c.records[id] = p.up.rec
		default:
			c.ids[id-1] = p.lower
		}
		if c.next.IsDir(id) {
			c.pair(id, p)
		}
	}
}

// adopt enters what is as it was at the Moment into the table, where it has an ID.
func (c *continuing) adopt() error {
	f := c.fs
	for r := range c.m.records() {
		if r.kind != recordUpper || r.dir == nil || r.dir.n == nil || r.typ() == unix.S_IFDIR {
			continue
		}
		f.ns.RLock()
		err := f.dir(r.dir.n, func(fd int) error {
			var st unix.Stat_t
			if f.statIn(r.dir.n, fd, r.name, &st) == nil && st.Ino == r.num && c.unchanged(&st) {
				f.adopt(r.dir.n, fd, r.name, &st, false)
			}
			return nil
		})
		f.ns.RUnlock()
		if err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// unchanged tells whether a node was last changed before the Moment.
func (c *continuing) unchanged(st *unix.Stat_t) bool { return statTime(st.Ctim).before(c.m.since) }

// number makes live. A node that the kernel may know has its ID from the table.
func (c *continuing) number() {
	f, old := c.fs, c.fs.tree()
	taken := make(map[ID]bool, len(c.ids))
	for _, id := range c.ids {
		taken[id] = true
	}
	inos := map[ID]uint64{}
	for i := range c.ids {
		if c.ids[i] != 0 {
			continue
		}
		r := c.records[ID(i+1)]
		id := c.idOf(r)
		if id == 0 || taken[id] {
			f.tab.Lock()
			id = f.next
			f.next++
			f.tab.Unlock()
		}
		c.ids[i], taken[id] = id, true
		if n := f.node(id); n != nil && !old.Has(id) {
			inos[id] = f.statIno(n)
		} else if r != nil && !old.Has(id) {
			inos[id] = f.bornAs(r.num)
		}
	}
	f.tab.Lock()
	top := f.next - 1
	f.tab.Unlock()
	c.live = c.next.renumbered(old, c.ids, inos, top)
}

// idOf is the ID of what the Moment noted; 0: nobody knows it.
func (c *continuing) idOf(r *record) ID {
	if r == nil {
		return 0
	}
	f := c.fs
	f.tab.Lock()
	n := f.byIno[r.num]
	f.tab.Unlock()
	if n == nil || n.typ != r.typ() || n.id == r.id {
		return r.id
	}
	var st unix.Stat_t
	if n.typ == unix.S_IFDIR && !n.gone || f.statNode(n, &st) == nil && c.unchanged(&st) {
		return n.id // else a file system may have given the inode number again
	}
	return r.id
}

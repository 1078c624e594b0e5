package union

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// A node is a node that has, or had, a part in the upper directory, or that was removed.
//
// id and typ never change, ino only by Moment.Continue. The rest is protected by FS.tab; places, fd and
// gone change only while FS.ns is held for writing, so that a reader of FS.ns
// sees one state of them (a lookup may add a place).
type node struct {
	id     ID
	lower  ID      // the lower node: of a directory what it merges with, of others where it was copied up from; 0: none
	typ    uint32  // S_IFMT
	ino    uint64  // of the backing node; 0: none
	places []place // names that are known, in the upper directory; empty for the root and for what has none left
	fd     int     // an O_PATH descriptor that keeps a node without places; else -1
	gone   bool    // removed: no name leads here any more
	refs   uint64  // lookups of the kernel
	// resumed: the kernel may have references that an earlier FS gave, and that refs does not count.
	resumed bool
	orphan  bool   // it has a name in the work directory, see orphanName
	kids    int    // places of other nodes in this directory
	links   uint32 // st_nlink of a merged directory; 0: not counted
	open    int    // files that are open on it
	shown   uint64 // st_ino of a born node that had it before Continue; 0: that of ino
	sent    Time   // a layer of the tree has it as it was at this time of change (Moment.Continue); zero: none
}

// A place is a name in an upper directory.
type place struct {
	dir  *node
	name string
}

// merged tells whether lower entries show through a directory.
func (n *node) merged() bool { return n.lower != 0 && n.typ == unix.S_IFDIR }

func (n *node) addPlace(dir *node, name string) {
	p := place{dir, name}
	if !slices.Contains(n.places, p) {
		n.places = append(n.places, p)
		dir.kids++
	}
}

func (n *node) dropPlace(dir *node, name string) {
	if i := slices.Index(n.places, place{dir, name}); i >= 0 {
		n.places = slices.Delete(n.places, i, i+1)
		dir.kids--
	}
}

// dirFDs keeps descriptors of upper directories, at most dirFDLimit of them.
type dirFDs struct {
	mu    sync.Mutex // a leaf: nothing else is locked under it
	open  map[*node]*dirFD
	clock uint64
}

type dirFD struct {
	fd, users int
	used      uint64
	dropped   bool
}

const dirFDLimit = 512

// get returns a kept descriptor.
func (c *dirFDs) get(n *node) *dirFD {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.open[n]
	if d != nil {
		c.clock++
		d.users, d.used = d.users+1, c.clock
	}
	return d
}

// put keeps a descriptor just opened; when another caller was faster, his is used and ours closed.
func (c *dirFDs) put(n *node, fd int) *dirFD {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock++
	if d := c.open[n]; d != nil {
		_ = unix.Close(fd)
		d.users, d.used = d.users+1, c.clock
		return d
	}
	if len(c.open) >= dirFDLimit {
		c.evictLocked()
	}
	d := &dirFD{fd: fd, users: 1, used: c.clock}
	c.open[n] = d
	return d
}

// evictLocked drops the older half.
func (c *dirFDs) evictLocked() {
	used := make([]uint64, 0, len(c.open))
	for _, d := range c.open {
		used = append(used, d.used)
	}
	slices.Sort(used)
	for n, d := range c.open {
		if d.used <= used[len(used)/2] {
			c.dropLocked(n, d)
		}
	}
}

func (c *dirFDs) dropLocked(n *node, d *dirFD) {
	delete(c.open, n)
	d.dropped = true
	if d.users == 0 {
		_ = unix.Close(d.fd)
	}
}

func (c *dirFDs) release(d *dirFD) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.users--; d.users == 0 && d.dropped {
		_ = unix.Close(d.fd)
	}
}

func (c *dirFDs) drop(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.open[n]; d != nil {
		c.dropLocked(n, d)
	}
}

func (c *dirFDs) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, d := range c.open {
		c.dropLocked(n, d)
	}
}

// dir gives the O_PATH descriptor of an upper directory to f. FS.ns is held.
func (f *FS) dir(n *node, use func(fd int) error) error {
	d, err := f.openDirFD(n)
	if err != nil {
		return err
	}
	defer f.fds.release(d)
	return use(d.fd)
}

func (f *FS) openDirFD(n *node) (*dirFD, error) {
	if d := f.fds.get(n); d != nil {
		return d, nil
	}
	fd, err := f.pathFD(n, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return f.fds.put(n, fd), nil
}

// pathFD opens an O_PATH descriptor of a node with an upper part; the caller closes it. FS.ns is held.
func (f *FS) pathFD(n *node, flags int) (fd int, err error) {
	if n.id == Root {
		return openAt(f.up.root, ".", unix.O_PATH|flags, 0)
	}
	p, kept, err := f.place(n)
	if err != nil {
		return -1, err
	}
	if kept >= 0 {
		return unix.FcntlInt(uintptr(kept), unix.F_DUPFD_CLOEXEC, 0)
	}
	err = f.dir(p.dir, func(dir int) error {
		fd, err = openAt(dir, p.name, unix.O_PATH|flags, 0)
		return err
	})
	return fd, err
}

// place is where a node is to be found: a name, or the descriptor that keeps it. FS.ns is held.
func (f *FS) place(n *node) (p place, fd int, err error) {
	f.tab.Lock()
	defer f.tab.Unlock()
	switch {
	case n.fd >= 0:
		return p, n.fd, nil
	case len(n.places) > 0:
		return n.places[0], -1, nil
	}
	return p, -1, unix.ENOENT
}

// withPath gives an O_PATH descriptor of a node with an upper part to use. FS.ns is held.
func (f *FS) withPath(n *node, use func(fd int) error) error {
	fd, err := f.pathFD(n, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return use(fd)
}

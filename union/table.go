package union

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// adopt finds or makes the table's entry of an upper node.
func (f *FS) adopt(d *node, fd int, name string, st *unix.Stat_t, ref bool) *node {
	f.tab.Lock()
	n := f.byIno[st.Ino]
	f.tab.Unlock()
	var fresh *node
	if n == nil {
		fresh = &node{typ: st.Mode & unix.S_IFMT, fd: -1, ino: st.Ino, lower: f.lowerOf(d, fd, name, st)}
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	if n = f.byIno[st.Ino]; n == nil {
		n = f.enterLocked(fresh)
	}
	n.addPlace(d, name)
	if ref {
		n.refs++
	}
	return n
}

// enterLocked gives a node its ID, the lower one where that is free, and puts it in the table.
func (f *FS) enterLocked(n *node) *node {
	if n.id = n.lower; n.lower == 0 || f.nodes[n.lower] != nil {
		n.id = f.bornIDLocked(n.ino)
	}
	f.nodes[n.id], f.byIno[n.ino] = n, n
	return n
}

// lowerOf finds the lower node of an upper entry that the table does not know yet: what
// a directory merges with, or what a file was copied up from. 0 is none.
func (f *FS) lowerOf(d *node, fd int, name string, st *unix.Stat_t) ID {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return f.originOf(fd, name, st.Mode&unix.S_IFMT)
	}
	if f.up.isOpaque(fd, name) {
		return 0
	}
	if to, err := lgetxattrAt(fd, name, f.up.prefix+xattrRedirect); err == nil {
		return f.redirected(d.lower, string(to))
	}
	if !d.merged() {
		return 0
	}
	if id, ok := f.tree().Lookup(d.lower, name); ok && f.tree().IsDir(id) {
		return id
	}
	return 0
}

// redirected resolves overlayfs's redirect: an absolute path in the lower
// tree, or another name in the lower directory (0: none).
func (f *FS) redirected(dir ID, to string) ID {
	var id ID
	var err error
	if strings.HasPrefix(to, "/") {
		id, err = f.tree().Resolve(to)
	} else if dir != 0 {
		id, _ = f.tree().Lookup(dir, to)
	}
	if err != nil || id == 0 || !f.tree().IsDir(id) {
		return 0
	}
	return id
}

// originOf reads our own mark of where a file was copied up from. It holds for one tree only.
func (f *FS) originOf(fd int, name string, typ uint32) ID {
	v, err := lgetxattrAt(fd, name, f.up.prefix+xattrOrigin)
	if err != nil {
		return 0
	}
	t := f.tree()
	if id := t.originID(string(v)); t.Has(id) && t.Mode(id)&unix.S_IFMT == typ {
		return id
	}
	return 0
}

// Forget gives references back. A node born in the upper directory that has none left leaves the table.
func (f *FS) Forget(id ID, refs uint64) {
	if f.up == nil || f.tree().Has(id) {
		return // lower nodes stay: the kernel's references to them before a copy-up were never counted
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	n := f.nodes[id]
	if n == nil {
		return
	}
	n.refs -= min(refs, n.refs)
	n.resumed = false // the kernel gives all its references back at once
	f.releaseLocked(n)
}

// releaseLocked takes a node that nobody refers to out of the table, and its directories likewise.
func (f *FS) releaseLocked(n *node) {
	if f.tree().Has(n.id) || n.refs > 0 || n.resumed || n.kids > 0 || f.nodes[n.id] != n {
		return
	}
	delete(f.nodes, n.id)
	if f.byIno[n.ino] == n {
		delete(f.byIno, n.ino)
	}
	f.fds.drop(n)
	f.dropOrphanLocked(n)
	if n.fd >= 0 {
		_ = unix.Close(n.fd)
		n.fd = -1
	}
	for _, p := range n.places {
		p.dir.kids--
		f.releaseLocked(p.dir)
	}
	n.places = nil
}

// idLocks are locks by ID.
type idLocks struct {
	mu    sync.Mutex
	locks map[ID]*idLock
}

type idLock struct {
	sync.Mutex
	users int
}

func (l *idLocks) lock(id ID) (unlock func()) {
	l.mu.Lock()
	k := l.locks[id]
	if k == nil {
		if l.locks == nil {
			l.locks = map[ID]*idLock{}
		}
		k = &idLock{}
		l.locks[id] = k
	}
	k.users++
	l.mu.Unlock()
	k.Lock()
	return func() {
		k.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.locks, id)
		}
	}
}

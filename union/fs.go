package union

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// An FS is the tree of an image, with an upper directory above it or without.
// Its methods are what the kernel asks of a file system; their errors are
// syscall.Errno, *DataError or the context's. They may be called in parallel.
//
// Locks, in this order: life, File.mu, copying (of one node, over a copy-up of content), ns
// (the names in the upper directory; held for writing by what changes them),
// writes (by what changes content and metadata), tab (the node table, for
// moments), Moment.mu. None but writes is held over a read or write of a file's content.
type FS struct {
	lower atomic.Pointer[Tree] // replaced by Moment.Continue, under life and ns
	up    *Upper               // nil: read-only
	rec   *Recorder

	life    sync.RWMutex           // held for reading over a call that uses a node after it let go of ns; for writing by Moment.Continue
	writes  sync.RWMutex           // held for reading over what changes a node that has its name already; for writing by Mark
	moment  atomic.Pointer[Moment] // the open one of Mark
	unseen  unseen                 // files that are written to without us
	copying idLocks
	ns      sync.RWMutex
	tab     sync.Mutex
	nodes   map[ID]*node     // protected by tab; a lower node is here from its copy-up or removal on
	byIno   map[uint64]*node // protected by tab; the same by backing inode number
	next    ID               // protected by tab; the next ID for a node born in the upper directory
	epoch   atomic.Uint64    // how often Continue emptied the upper directory
	fds     dirFDs
	ids     IDMap
	contain bool // see Contain
}

// New puts an upper directory above a tree; nil makes a read-only FS. The FS
// owns neither. The process's umask must be 0, since modes come from the kernel as they are to be.
func New(t *Tree, up *Upper) *FS {
	f := &FS{up: up, nodes: map[ID]*node{}, byIno: map[uint64]*node{}, next: ID(t.Len()) + 1}
	f.lower.Store(t)
	f.fds.open = map[*node]*dirFD{}
	if up != nil {
		f.ids = up.ids
		f.next = max(f.next, up.lastID+1)
		var st unix.Stat_t
		_ = unix.Fstat(up.root, &st)
		root := &node{id: Root, lower: Root, typ: unix.S_IFDIR, fd: -1, ino: st.Ino}
		if up.isOpaque(up.root, ".") {
			root.lower = 0
		}
		f.nodes[Root], f.byIno[st.Ino] = root, root
		if up.redirects {
			f.adoptDirs(root)
		}
		if up.fresh {
			f.dressRoot()
		}
		f.finishLinks()
	}
	return f
}

// dressRoot gives a new upper directory the metadata of the tree's root. Where
// that is not possible the root only differs: the mount works all the same.
func (f *FS) dressRoot() {
	if err := f.copyMeta(f.up.root, ".", Root, f.tree().Attr(Root)); err != nil {
		f.up.log.Warn("copy the metadata of the root directory", "err", err)
	}
}

// adoptDirs enters all upper directories into the table. A renamed directory
// must be known before somebody asks where the names of a lower node have gone.
func (f *FS) adoptDirs(d *node) {
	list, err := f.list(d.id)
	if err != nil {
		f.up.log.Error("look for renamed directories", "err", err)
		return
	}
	for _, e := range list {
		if e.Mode != unix.S_IFDIR {
			continue
		}
		if h, err := f.find(d.id, e.Name, false); err == nil && h.n != nil {
			f.adoptDirs(h.n)
		}
	}
}

// Record has the reads of lower files noted from now on. It is called before the FS is used.
func (f *FS) Record(r *Recorder) { f.rec = r }

// Recorder is what Record was given, or nil, whose methods do nothing.
func (f *FS) Recorder() *Recorder { return f.rec }

// readLower reads a lower file for somebody who asked for its content.
func (f *FS) readLower(ctx context.Context, id ID, p []byte, off int64) (int, error) {
	n, err := f.tree().ReadAt(ctx, id, p, off)
	f.rec.note(id, off, n)
	return n, err
}

// Tree is the lower tree.
func (f *FS) Tree() *Tree { return f.lower.Load() }

func (f *FS) tree() *Tree { return f.lower.Load() }

// ReadOnly tells whether there is no upper directory, or one that was opened only to be read.
func (f *FS) ReadOnly() bool { return f.up == nil || f.up.o.ReadOnly }

// HasXattrs is false when no node has, or can get, extended attributes.
func (f *FS) HasXattrs() bool { return f.up != nil || f.tree().HasXattrs() }

// Close closes the descriptors the FS keeps. No call may be under way.
func (f *FS) Close() error {
	f.fds.closeAll()
	f.tab.Lock()
	defer f.tab.Unlock()
	for _, n := range f.nodes {
		f.dropOrphanLocked(n)
		if n.fd >= 0 {
			_ = unix.Close(n.fd)
			n.fd = -1
		}
	}
	return nil
}

// node is the table's entry of an ID: nil for a lower node that is as it was.
func (f *FS) node(id ID) *node {
	if f.up == nil {
		return nil
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	return f.nodes[id]
}

// upperOf is the table's entry of a node that can be reached in the upper directory; else nil.
func (f *FS) upperOf(id ID) *node {
	if f.up == nil {
		return nil
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	if n := f.nodes[id]; n != nil && (!n.gone || n.fd >= 0) {
		return n
	}
	return nil
}

// A hit is what a name leads to: an upper part, or a lower node alone.
type hit struct {
	n  *node // nil: lower only
	id ID
	st unix.Stat_t // of the upper part
}

// find resolves a name. FS.ns is held. ref takes a reference on an upper node.
func (f *FS) find(dir ID, name string, ref bool) (hit, error) {
	d := f.node(dir)
	if d == nil {
		return f.findLower(dir, name, ref)
	}
	switch {
	case d.typ != unix.S_IFDIR:
		return hit{}, unix.ENOTDIR
	case d.gone, reserved(name):
		return hit{}, unix.ENOENT
	case len(name) > nameMax:
		return hit{}, unix.ENAMETOOLONG
	}
	var h hit
	err := f.dir(d, func(fd int) (err error) {
		h, err = f.findUpper(d, fd, name, ref)
		return err
	})
	if err == errLower {
		return f.findLower(d.lower, name, ref)
	}
	return h, err
}

// nameMax is NAME_MAX of linux/limits.h.
const nameMax = 255

// reserved tells whether a name cannot exist in an image: it would be a whiteout in a layer.
func reserved(name string) bool { return strings.HasPrefix(name, whiteoutPrefix) }

// errLower says that the upper directory has nothing to say of a name; it never leaves this package.
var errLower = fmt.Errorf("look below")

func (f *FS) findUpper(d *node, fd int, name string, ref bool) (h hit, err error) {
	if err := f.statIn(d, fd, name, &h.st); err != nil {
		return h, err
	}
	h.n = f.adopt(d, fd, name, &h.st, ref)
	h.id = h.n.id
	return h, nil
}

// statIn is stat of a name in an upper directory: ENOENT where that hides it, errLower where it has nothing to say.
func (f *FS) statIn(d *node, fd int, name string, st *unix.Stat_t) error {
	err := unix.Fstatat(fd, name, st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT && d.merged() && !f.dotWhiteout(fd, name) {
		return errLower
	}
	if err == nil && f.up.isWhiteout(fd, name, st) {
		return unix.ENOENT
	}
	return err
}

// dotWhiteout tells whether another program left a whiteout in the form of a file .wh.NAME.
func (f *FS) dotWhiteout(fd int, name string) bool {
	var st unix.Stat_t
	return f.up.dotWh && unix.Fstatat(fd, whiteoutPrefix+name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

func (f *FS) findLower(dir ID, name string, ref bool) (hit, error) {
	if !f.tree().Has(dir) {
		return hit{}, unix.ESTALE
	}
	if len(name) > nameMax {
		return hit{}, unix.ENAMETOOLONG
	}
	id, ok := f.tree().Lookup(dir, name)
	if !ok {
		if !f.tree().IsDir(dir) {
			return hit{}, unix.ENOTDIR
		}
		return hit{}, unix.ENOENT
	}
	if n := f.upperOf(id); n != nil {
		h := hit{n: n, id: id}
		return h, f.statNode(n, &h.st)
	}
	return hit{id: id}, nil
}

// Lookup finds a name in a directory. It takes a reference on the node, which Forget gives back.
func (f *FS) Lookup(_ context.Context, dir ID, name string) (ID, Attr, error) {
	if f.up == nil {
		h, err := f.findLower(dir, name, false)
		if err != nil {
			return 0, Attr{}, err
		}
		return h.id, f.ids.OnHost(f.tree().Attr(h.id)), nil
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	h, err := f.find(dir, name, true)
	if err != nil {
		return 0, Attr{}, err
	}
	return h.id, f.attr(h), nil
}

// attr is the attributes of what a name led to.
func (f *FS) attr(h hit) Attr {
	if h.n == nil {
		return f.lowerAttr(h.id)
	}
	return f.statAttr(h.n, &h.st)
}

// bornIno marks the inode numbers of nodes born in the upper directory, so
// that they cannot meet those of the tree, and bornEpoch those that were born after
// Continue, when a file system may give the numbers of what went to a layer again.
// File systems number below them.
const (
	bornIno   = 1 << 62
	bornEpoch = 1 << 54
)

// bornAs is the st_ino of a node born in the upper directory.
func (f *FS) bornAs(ino uint64) uint64 { return ino + bornIno + f.epoch.Load()%(1<<7)*bornEpoch }

// statIno is the st_ino of an upper node: the lower node's where it comes from one.
func (f *FS) statIno(n *node) uint64 {
	switch t := f.tree(); {
	case t.Has(n.id):
		return t.ino(n.id)
	case n.shown != 0:
		return n.shown
	}
	return f.bornAs(n.ino)
}

func (f *FS) statAttr(n *node, st *unix.Stat_t) Attr {
	a := Attr{Ino: f.statIno(n), Mode: st.Mode, Nlink: uint32(uint64(st.Nlink) - f.ownLinks(st.Ino)), UID: st.Uid, GID: st.Gid, Rdev: st.Rdev,
		Size: st.Size, Blocks: st.Blocks, Blksize: uint32(st.Blksize),
		Atime: statTime(st.Atim), Mtime: statTime(st.Mtim), Ctime: statTime(st.Ctim)}
	if n.orphan && a.Nlink > 0 {
		a.Nlink--
	}
	if a.IsDir() && !n.gone && n.merged() {
		a.Nlink = f.dirLinks(n, a.Nlink)
	}
	return a
}

// dirLinks is st_nlink of a directory through which a lower one shows: 2 and
// one for each directory in it. It is counted once and then kept up to date. FS.ns is held.
func (f *FS) dirLinks(n *node, backing uint32) uint32 {
	f.tab.Lock()
	known := n.links
	f.tab.Unlock()
	if known > 0 {
		return known
	}
	links := f.tree().nodes[n.lower-1].nlink
	err := f.dir(n, func(fd int) error {
		entries, err := readEntries(fd)
		for _, e := range entries {
			if id, ok := f.tree().Lookup(n.lower, e.name); ok && f.tree().IsDir(id) {
				links-- // merged with the upper one, or hidden
			}
			if e.typ == unix.S_IFDIR {
				links++
			}
		}
		return err
	})
	if err != nil {
		return backing
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	n.links = links
	return links
}

// linkedLocked adds to what dirLinks has counted: a directory came to d, or went, when h is one. tab is held.
func (f *FS) linkedLocked(d *node, h hit, by int32) {
	if d.links > 0 && f.typeOf(h) == unix.S_IFDIR {
		d.links = uint32(int32(d.links) + by)
	}
}

func statTime(t unix.Timespec) Time { return Time{t.Sec, uint32(t.Nsec)} }

// lowerAttr is the attributes of a node without an upper part. Names of it
// that are hidden by now do not count as links.
func (f *FS) lowerAttr(id ID) Attr {
	a := f.ids.OnHost(f.tree().Attr(id))
	if f.up == nil || a.IsDir() && f.node(id) == nil {
		return a
	}
	if n := f.node(id); n != nil && n.gone {
		a.Nlink = 0
	} else if a.Nlink > 1 {
		a.Nlink = uint32(len(f.visibleNames(id)))
	}
	return a
}

// visibleNames lists the names at which a lower node without an upper part still shows. FS.ns is held.
func (f *FS) visibleNames(id ID) []Name {
	var names []Name
	for _, n := range f.tree().Names(id) {
		if f.visible(n, id) {
			names = append(names, n)
		}
	}
	return names
}

func (f *FS) visible(at Name, id ID) bool {
	if !f.alive(at.Dir) {
		return false
	}
	h, err := f.find(at.Dir, at.Name, false)
	return err == nil && h.id == id
}

// alive tells whether a lower directory can still be reached.
func (f *FS) alive(dir ID) bool {
	if n := f.node(dir); n != nil {
		return !n.gone
	}
	return f.visible(f.tree().Names(dir)[0], dir)
}

// statNode is fstat of a node with an upper part. FS.ns is held.
func (f *FS) statNode(n *node, st *unix.Stat_t) error {
	if n.id == Root {
		return unix.Fstat(f.up.root, st)
	}
	p, kept, err := f.place(n)
	if err != nil {
		return err
	}
	if kept >= 0 {
		return unix.Fstat(kept, st)
	}
	return f.dir(p.dir, func(dir int) error { return unix.Fstatat(dir, p.name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

// Getattr is stat(2) of a node; h is an open file of it, or nil.
func (f *FS) Getattr(_ context.Context, id ID, h *File) (Attr, error) {
	if f.up == nil {
		if !f.tree().Has(id) {
			return Attr{}, unix.ESTALE
		}
		return f.ids.OnHost(f.tree().Attr(id)), nil
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	return f.getattr(id)
}

func (f *FS) getattr(id ID) (Attr, error) {
	if n := f.upperOf(id); n != nil {
		var st unix.Stat_t
		if err := f.statNode(n, &st); err != nil {
			return Attr{}, err
		}
		return f.statAttr(n, &st), nil
	}
	if !f.tree().Has(id) {
		return Attr{}, unix.ESTALE
	}
	return f.lowerAttr(id), nil
}

// Readlink is the target of a symlink; see Contain.
func (f *FS) Readlink(_ context.Context, id ID) (string, error) {
	if f.up != nil {
		f.ns.RLock()
		defer f.ns.RUnlock()
	}
	target, err := f.rawLink(id)
	if err == nil && f.contain {
		return f.contained(id, target)
	}
	return target, err
}

// rawLink is the target of a symlink as it stands in the archive or the upper directory. FS.ns is held.
func (f *FS) rawLink(id ID) (string, error) {
	if n := f.upperOf(id); n != nil {
		return f.readlinkUpper(n)
	}
	if !f.tree().Has(id) {
		return "", unix.ESTALE
	}
	if f.tree().Mode(id)&unix.S_IFMT != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	return f.tree().Readlink(id), nil
}

func (f *FS) readlinkUpper(n *node) (target string, err error) {
	err = f.withPath(n, func(fd int) error {
		target, err = readlinkAt(fd, "")
		return err
	})
	return target, err
}

// Statfs is the upper directory's file system, or the size of the tree.
func (f *FS) Statfs(context.Context) (Statfs, error) {
	if f.ReadOnly() {
		n := uint64(f.tree().size+blockSize-1) / blockSize
		return Statfs{Blocks: n, Files: uint64(f.tree().Len()), Bsize: blockSize, NameLen: nameMax}, nil
	}
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(f.up.root, &st); err != nil {
		return Statfs{}, err
	}
	return Statfs{Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: nameMax}, nil
}

// Layer tells which layer (0 is the base) has the node's attributes and content; ok is false when the upper directory has them, or nobody.
func (f *FS) Layer(id ID) (layer int, ok bool) {
	if f.up != nil {
		f.ns.RLock()
		defer f.ns.RUnlock()
	}
	t := f.tree()
	if f.upperOf(id) != nil || !t.Has(id) {
		return 0, false
	}
	layer, _ = t.Origin(id)
	return layer, layer >= 0
}

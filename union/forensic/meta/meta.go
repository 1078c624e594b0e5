// Package meta is the hidden folder of a mount, which holds what its image was made of: the manifest and the config, every layer by itself, what later layers deleted, and every version of every file.
//
//	manifest.json config.json history.json status.json   what the program gives
//	layers/N/…        layer N as its archive has it, whiteouts as .wh. files (image-spec layer.md, "Whiteouts")
//	deleted/PATH      the newest version of what the image does not show any more
//	versions/PATH/N   what layer N has at PATH; directories are only the way there
//
// Layers count from 1 at the base. Nothing of it can be changed, and nothing is
// fetched but what is read. A [Folder] is a tree of nodes for package fuse,
// which shows it below a name of the mount's root.
package meta

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
)

// Name is the folder's name in the root of the mount.
const Name = ".layerfs"

// Options of a [Folder].
type Options struct {
	Layers []*layer.Layer // the base first. They stay open as long as the folder is used
	First  int            // the number of layers below Layers[0] that the mount does not show
	Tree   *union.Tree    // of the layers
	Steps  []string       // the build steps of the layers; "" where the history says nothing
	Files  []File         // at the top of the folder, at most 100
	IDs    union.IDMap    // of the mount
	Time   time.Time      // of the folder's own directories
}

// A File is made when its name is looked up: who opens it reads what was true then.
type File struct {
	Name string
	Data func() ([]byte, error) // from any goroutine
}

// A Folder is the hidden folder of one mount. Its methods may be called in parallel.
type Folder struct {
	o     Options
	files files

	mu    sync.RWMutex
	shown []*set // protected by mu; the last is what names lead to, the others keep their nodes
}

// A set is the layers of the image that a mount shows, or showed.
type set struct {
	layers []*layer.Layer
	tree   *union.Tree
	steps  []string

	deleted, versions func() *past // made when they are first used
}

// New makes the folder of a mount.
func New(o Options) *Folder {
	f := &Folder{o: o}
	f.files.init(len(o.Files))
	f.Show(o.Layers, o.Tree, o.Steps)
	return f
}

// Show goes on with another image, whose first layers are those of the image before. Nodes of earlier ones stay.
func (f *Folder) Show(layers []*layer.Layer, tree *union.Tree, steps []string) {
	s := &set{layers: layers, tree: tree, steps: steps}
	s.deleted = sync.OnceValue(func() *past { return deletedOf(s) })
	s.versions = sync.OnceValue(func() *past { return versionsOf(s, f.o.First) })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shown = append(f.shown, s)
}

// latest is what is shown, and its number.
func (f *Folder) latest() (*set, int) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.shown[len(f.shown)-1], len(f.shown) - 1
}

func (f *Folder) set(i int) *set {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if i >= len(f.shown) {
		return nil
	}
	return f.shown[i]
}

// A node is what an ID of the folder says. IDs are the same for every server of
// a mount, so that a later one answers for what an earlier one gave out; those of
// files alone are not, and are known to nobody then.
type node struct {
	kind   kind
	hi, lo uint32 // hi has 20 bits
}

type kind uint8

const (
	rootNode    kind = iota
	fileNode         // hi: which file; lo: which state of it
	layersNode       // the directory of the layers
	entryNode        // hi: the layer, from 0; lo: its layer.ID
	markNode         // the whiteouts of layer hi: empty files, and all of them one
	deletedNode      // hi: the set; lo: in its past
	versionNode      // likewise
)

// Base is the first ID of the folder. Those of the mount's own tree are below.
const Base = union.ID(1) << 62

func (n node) id() union.ID {
	return Base | union.ID(n.kind)<<52 | union.ID(n.hi&(1<<20-1))<<32 | union.ID(n.lo)
}

func nodeOf(id union.ID) node {
	return node{kind(id >> 52), uint32(id>>32) & (1<<20 - 1), uint32(id)}
}

// Root is the folder itself.
func (f *Folder) Root() union.ID { return Base }

// Name is what the folder is called.
func (f *Folder) Name() string { return Name }

// TTL is how long a name that leads to a node may be remembered. A file is another one at each look.
func (f *Folder) TTL(id union.ID) time.Duration {
	if nodeOf(id).kind == fileNode {
		return 0
	}
	return time.Second
}

// at is where a node of a layer's entry is, also where the node is a version of a path; ok is false for the others.
func (f *Folder) at(n node) (s *set, e ref, ok bool) {
	switch n.kind {
	case entryNode:
		s, _ = f.latest()
		e = ref{int32(n.hi), layer.ID(n.lo)}
	case deletedNode, versionNode:
		p := (*past)(nil)
		if s, p = f.past(n); p != nil && int(n.lo) < len(p.nodes) {
			e = p.nodes[n.lo].ref
		} else {
			return nil, e, false
		}
	default:
		return nil, e, false
	}
	ok = e.layer >= 0 && int(e.layer) < len(s.layers) && int(e.id) < s.layers[e.layer].Len()
	return s, e, ok
}

// past is where a node of deleted/ or versions/ lives.
func (f *Folder) past(n node) (*set, *past) {
	s := f.set(int(n.hi))
	switch {
	case s == nil:
		return nil, nil
	case n.kind == deletedNode:
		return s, s.deleted()
	}
	return s, s.versions()
}

// Getattr is what stat(2) says of a node; ESTALE for one that nobody knows.
func (f *Folder) Getattr(id union.ID) (union.Attr, error) {
	n := nodeOf(id)
	t := union.Time{Sec: f.o.Time.Unix()}
	a := union.Attr{Ino: uint64(id), Mode: syscall.S_IFDIR | 0o555, Nlink: 1, Size: 4096, Blksize: 4096, Atime: t, Mtime: t, Ctime: t}
	switch s, e, ok := f.at(n); {
	case ok:
		a = union.EntryAttr(s.layers[e.layer].Entry(e.id))
		a.Ino, a.Nlink = uint64(id), max(1, s.layers[e.layer].Entry(e.id).Nlink)
		a.Blocks = (a.Size + 511) / 512
	case n.kind == fileNode:
		size, err := f.files.size(id)
		if err != nil {
			return a, err
		}
		a.Ino = uint64(node{kind: fileNode, hi: n.hi}.id())
		a.Mode, a.Size, a.Blocks = syscall.S_IFREG|0o444, size, (size+511)/512
	case n.kind == markNode:
		a.Mode, a.Size = syscall.S_IFREG, 0
	case !f.isDir(n):
		return a, syscall.ESTALE
	}
	return f.o.IDs.OnHost(a), nil
}

// isDir tells whether a node that is no entry is one of the folder's own directories.
func (f *Folder) isDir(n node) bool {
	switch n.kind {
	case rootNode, layersNode:
		return true
	case deletedNode, versionNode:
		_, p := f.past(n)
		return p != nil && int(n.lo) < len(p.nodes)
	}
	return false
}

// Lookup finds a name. The reference it gives is taken back by Forget.
func (f *Folder) Lookup(dir union.ID, name string) (union.ID, union.Attr, error) {
	n := nodeOf(dir)
	if n.kind == rootNode {
		if i := slices.IndexFunc(f.o.Files, func(x File) bool { return x.Name == name }); i >= 0 {
			id, err := f.files.look(i, f.o.Files[i])
			if err != nil {
				return 0, union.Attr{}, err
			}
			a, err := f.Getattr(id)
			return id, a, err
		}
	}
	child, err := f.child(n, name)
	if err != nil {
		return 0, union.Attr{}, err
	}
	a, err := f.Getattr(child.id())
	return child.id(), a, err
}

// child is Lookup for all but the files.
func (f *Folder) child(n node, name string) (node, error) {
	s, now := f.latest()
	switch n.kind {
	case rootNode:
		for _, c := range topDirs(now) {
			if c.name == name {
				return c.node, nil
			}
		}
	case layersNode:
		if i, err := strconv.Atoi(name); err == nil && i > f.o.First && i <= f.o.First+len(s.layers) && strconv.Itoa(i) == name {
			return node{entryNode, uint32(i - 1 - f.o.First), uint32(layer.Root)}, nil
		}
	case entryNode:
		return f.inLayer(n, name)
	case deletedNode, versionNode:
		if _, p := f.past(n); p != nil {
			if lo, ok := p.kids[kid{n.lo, name}]; ok {
				return node{n.kind, n.hi, lo}, nil
			}
		}
	}
	return node{}, syscall.ENOENT
}

// A named node is what a directory of the folder lists.
type named struct {
	name string
	node node
}

// topDirs are the directories at the top, for the set that is shown.
func topDirs(now int) []named {
	return []named{{"layers", node{kind: layersNode}}, {"deleted", node{deletedNode, uint32(now), 0}}, {"versions", node{versionNode, uint32(now), 0}}}
}

// Forget takes references of Lookup back.
func (f *Folder) Forget(id union.ID, refs uint64) {
	if nodeOf(id).kind == fileNode {
		f.files.forget(id, refs)
	}
}

// Readlink is the target of a symlink, as it stands in the archive.
func (f *Folder) Readlink(id union.ID) (string, error) {
	s, e, ok := f.at(nodeOf(id))
	if !ok {
		return "", syscall.EINVAL
	}
	return s.layers[e.layer].Entry(e.id).Link, nil
}

// ReadAt reads as pread(2) does: fewer bytes than asked for only at the end of the file.
func (f *Folder) ReadAt(ctx context.Context, id union.ID, p []byte, off int64) (int, error) {
	n := nodeOf(id)
	switch s, e, ok := f.at(n); {
	case ok:
		return f.readEntry(ctx, s, e, p, off)
	case n.kind == fileNode:
		return f.files.readAt(id, p, off)
	case n.kind == markNode:
		return 0, nil
	}
	return 0, syscall.EISDIR
}

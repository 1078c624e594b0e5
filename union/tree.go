package union

import (
	"context"
	"crypto/sha256"
	"io"
	"iter"
	"slices"
	"sort"
	"strings"
	"syscall"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
)

// A Tree is the merged layers of an image: immutable, without locks, in flat arrays.
//
// The node with ID i is nodes[i-1]. A directory's children are contiguous in
// dirents and sorted by the bytes of their names.
type Tree struct {
	layers  []*layer.Layer
	nodes   []treeNode
	dirents []treeDirent
	names   []byte
	links   map[ID][]treeName // of the nodes with more than one name: all of them
	size    int64             // bytes of all regular files
	xattrs  bool
	defects []layer.Defect
	digest  digest.Digest
	numbers *numbering // nil: IDs are as Merge gave them
}

type treeNode struct {
	layer       int32 // -1: the root of a tree without layers; noLayer: no node
	entry       layer.ID
	parent      uint32 // the directory of the first name
	name        uint32 // the first name, an index into dirents
	kids, nkids uint32
	nlink       uint32
}

type treeDirent struct {
	name uint32
	len  uint16
	id   uint32
}

// A treeName is one place of a node in the tree.
type treeName struct {
	dir    ID
	dirent uint32
}

func newTree(layers []*layer.Layer) *Tree {
	var digests []digest.Digest
	for _, l := range layers {
		digests = append(digests, l.Identity())
	}
	return &Tree{layers: layers, links: map[ID][]treeName{}, digest: DigestOf(digests)}
}

// DigestOf is the digest of the tree of these layers, the base first.
func DigestOf(layers []digest.Digest) digest.Digest {
	h := sha256.New()
	for _, d := range layers {
		h.Write([]byte(d + "\n"))
	}
	return digest.NewDigest(digest.SHA256, h)
}

// empty is the tree of an image without layers: a root directory.
func (t *Tree) empty() *Tree {
	t.nodes = []treeNode{{layer: -1, parent: uint32(Root), nlink: 2}}
	return t
}

// finish notes what needs a look at every node.
func (t *Tree) finish() {
	for i := range t.nodes {
		n := &t.nodes[i]
		e := t.layers[n.layer].Entry(n.entry)
		t.xattrs = t.xattrs || len(e.Xattrs) > 0
		switch e.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			t.size += e.Size
		case syscall.S_IFDIR:
			n.nlink += 1 // its name, which the root has not, and "."
			if n.parent != uint32(i+1) {
				t.nodes[n.parent-1].nlink++ // ".."
			}
		}
	}
	t.nodes[Root-1].nlink++
	for _, l := range t.layers {
		t.defects = append(t.defects, l.Defects()...)
	}
}

// Len is the number of nodes; their IDs are 1 … Len.
func (t *Tree) Len() int { return len(t.nodes) }

// Has tells whether id is a node of the tree.
func (t *Tree) Has(id ID) bool {
	return id >= Root && id <= ID(len(t.nodes)) && t.nodes[id-1].layer != noLayer
}

// Digest is the digest of the list of layer digests. It names the tree: an upper directory belongs to one.
func (t *Tree) Digest() digest.Digest { return t.digest }

// Defects lists what the layers hold and the tree cannot show.
func (t *Tree) Defects() []layer.Defect { return t.defects }

// HasXattrs tells whether any node has extended attributes.
func (t *Tree) HasXattrs() bool { return t.xattrs }

func (t *Tree) entry(id ID) layer.Entry {
	n := &t.nodes[id-1]
	if n.layer < 0 {
		return layer.Entry{Mode: syscall.S_IFDIR | 0o755}
	}
	e := t.layers[n.layer].Entry(n.entry)
	if id == Root && !e.Explicit {
		e.Sec, e.Nsec = 0, 0 // no layer dates the root itself; unpackers say 1970 too
	}
	return e
}

// Attr is the node's attributes. Ino is the ID, but for a tree that took the place of another on a live mount.
func (t *Tree) Attr(id ID) Attr {
	a := EntryAttr(t.entry(id))
	a.Ino, a.Nlink = t.ino(id), t.nodes[id-1].nlink
	if a.Type() == syscall.S_IFREG {
		a.Blocks = t.blocks(id, a.Size)
	}
	return a
}

// blocks counts what is no hole, as st_blocks does.
func (t *Tree) blocks(id ID, size int64) int64 {
	var n int64
	for off := int64(0); off < size; {
		start, end := t.NextData(id, off)
		n += (end+511)/512 - start/512
		off = max(end, off+1)
	}
	return n
}

// Mode is the node's type and permissions.
func (t *Tree) Mode(id ID) uint32 { return t.entry(id).Mode }

// IsDir tells whether the node is a directory.
func (t *Tree) IsDir(id ID) bool { return t.Mode(id)&syscall.S_IFMT == syscall.S_IFDIR }

// Size is the size of a regular file or symlink.
func (t *Tree) Size(id ID) int64 { return t.entry(id).Size }

// Xattrs are the node's extended attributes.
func (t *Tree) Xattrs(id ID) []layer.Xattr { return t.entry(id).Xattrs }

// Readlink is the target of a symlink, as it stands in the archive.
func (t *Tree) Readlink(id ID) string { return t.entry(id).Link }

// Origin tells which layer (0 is the base) the node's attributes and content
// come from, and which entry of it; -1 for the root of an image without layers.
func (t *Tree) Origin(id ID) (lay int, entry layer.ID) {
	n := &t.nodes[id-1]
	return int(n.layer), n.entry
}

func (t *Tree) name(dirent uint32) string {
	d := &t.dirents[dirent]
	return string(t.names[d.name : d.name+uint32(d.len)])
}

// Lookup finds a name in a directory.
func (t *Tree) Lookup(dir ID, name string) (ID, bool) {
	n := &t.nodes[dir-1]
	kids := t.dirents[n.kids : n.kids+n.nkids]
	i := sort.Search(len(kids), func(i int) bool {
		return string(t.names[kids[i].name:kids[i].name+uint32(kids[i].len)]) >= name
	})
	if i == len(kids) || t.name(n.kids+uint32(i)) != name {
		return 0, false
	}
	return ID(kids[i].id), true
}

// Children lists a directory in the order of the bytes of the names.
func (t *Tree) Children(dir ID) iter.Seq2[string, ID] {
	return func(yield func(string, ID) bool) {
		n := &t.nodes[dir-1]
		for i := n.kids; i < n.kids+n.nkids; i++ {
			if !yield(t.name(i), ID(t.dirents[i].id)) {
				return
			}
		}
	}
}

// ChildAt is the i-th name of Children, from 0.
func (t *Tree) ChildAt(dir ID, i int) (name string, id ID, ok bool) {
	n := &t.nodes[dir-1]
	if i < 0 || i >= int(n.nkids) {
		return "", 0, false
	}
	d := n.kids + uint32(i)
	return t.name(d), ID(t.dirents[d].id), true
}

// Parent is the directory of a node's first name; the root is its own.
func (t *Tree) Parent(id ID) ID { return ID(t.nodes[id-1].parent) }

// A Name is one place of a node: hardlinked nodes have several.
type Name struct {
	Dir  ID
	Name string
}

// Names lists all names of a node, in the order of the tree. The root has none.
func (t *Tree) Names(id ID) []Name {
	if id == Root {
		return nil
	}
	if links := t.links[id]; links != nil {
		names := make([]Name, len(links))
		for i, l := range links {
			names[i] = Name{l.dir, t.name(l.dirent)}
		}
		return names
	}
	n := &t.nodes[id-1]
	return []Name{{ID(n.parent), t.name(n.name)}}
}

// linkedOut lists the hardlinked nodes that have names both below a directory and elsewhere.
func (t *Tree) linkedOut(dir ID) []ID {
	var list []ID
	if dir == 0 {
		return nil
	}
	for id, names := range t.links {
		inside := 0
		for _, n := range names {
			if t.below(n.dir, dir) {
				inside++
			}
		}
		if inside > 0 && inside < len(names) {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// below tells whether a directory is dir or below it.
func (t *Tree) below(d, dir ID) bool {
	for d != dir && d != Root {
		d = t.Parent(d)
	}
	return d == dir
}

// Path is one path of the node, relative to the root: "usr/bin/env"; of the root it is "".
func (t *Tree) Path(id ID) string {
	var parts []string
	for id != Root {
		n := &t.nodes[id-1]
		parts = append(parts, t.name(n.name))
		id = ID(n.parent)
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, "/")
}

// Resolve finds a path without following symlinks; "" and "/" are the root.
// The errors are ENOENT and ENOTDIR; ".." is the directory above and never leaves the tree.
func (t *Tree) Resolve(path string) (ID, error) {
	id := Root
	for name := range strings.SplitSeq(path, "/") {
		if err := t.walk(&id, name); err != nil {
			return 0, err
		}
	}
	return id, nil
}

// walk goes one name further.
func (t *Tree) walk(id *ID, name string) error {
	if name == "" {
		return nil
	}
	if !t.IsDir(*id) {
		return syscall.ENOTDIR
	}
	switch name {
	case ".":
	case "..":
		*id = t.Parent(*id)
	default:
		next, ok := t.Lookup(*id, name)
		if !ok {
			return syscall.ENOENT
		}
		*id = next
	}
	return nil
}

// maxSymlinks is how many symlinks a path may go through (path_resolution(7)).
const maxSymlinks = 40

// ResolveFollow finds a path as a process with the tree as its root would:
// symlinks are followed, absolute ones from the tree's root. After 40 of them it is ELOOP.
func (t *Tree) ResolveFollow(path string) (ID, error) {
	id, rest := Root, path
	for links := 0; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		dir := id
		if err := t.walk(&id, name); err != nil {
			return 0, err
		}
		if t.Mode(id)&syscall.S_IFMT != syscall.S_IFLNK {
			continue
		}
		if links++; links > maxSymlinks {
			return 0, syscall.ELOOP
		}
		target := t.Readlink(id)
		if id = dir; strings.HasPrefix(target, "/") {
			id = Root
		}
		rest = target + "/" + rest
	}
	return id, nil
}

// ReadAt reads a regular file as io.ReaderAt does, except that the end of the
// file is no error. What the layers cannot give is a *DataError.
func (t *Tree) ReadAt(ctx context.Context, id ID, p []byte, off int64) (int, error) {
	n := &t.nodes[id-1]
	got, err := t.layers[n.layer].ReadAt(ctx, n.entry, p, off)
	if err == io.EOF {
		return got, nil
	}
	if err != nil && ctx.Err() != nil {
		return got, ctx.Err()
	}
	if err != nil {
		return got, &DataError{Path: t.Path(id), Layer: int(n.layer), Err: err}
	}
	return got, nil
}

// Cached tells whether a regular file can be read without fetching anything.
func (t *Tree) Cached(id ID) bool {
	n := &t.nodes[id-1]
	return t.layers[n.layer].Cached(n.entry)
}

// NextData is the first range of data at or after off; start is the file's size when only a hole is left.
func (t *Tree) NextData(id ID, off int64) (start, end int64) {
	n := &t.nodes[id-1]
	return t.layers[n.layer].NextData(n.entry, off)
}

package meta

import (
	"context"
	"errors"
	"io"
	"iter"
	"strconv"
	"strings"
	"syscall"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
)

// A ref is an entry of a layer; layer -1 is none.
type ref struct {
	layer int32 // from 0
	id    layer.ID
}

var none = ref{layer: -1}

// What the archive of a layer calls its whiteouts (image-spec layer.md).
const (
	whiteoutPrefix = ".wh."
	opaqueMark     = ".wh..wh..opq"
)

func isDir(e layer.Entry) bool { return e.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// inLayer finds a name in a directory of a layer.
func (f *Folder) inLayer(n node, name string) (node, error) {
	s, e, ok := f.at(n)
	if !ok {
		return node{}, syscall.ESTALE
	}
	l := s.layers[e.layer]
	if id, ok := l.Lookup(e.id, name); ok {
		return node{entryNode, n.hi, uint32(id)}, nil
	}
	for m := range marks(l, e.id) {
		if m == name {
			return node{kind: markNode, hi: n.hi}, nil
		}
	}
	return node{}, syscall.ENOENT
}

// marks are the names of a directory's whiteouts.
func marks(l *layer.Layer, dir layer.ID) iter.Seq[string] {
	return func(yield func(string) bool) {
		if l.Entry(dir).Opaque && !yield(opaqueMark) {
			return
		}
		for name := range l.Whiteouts(dir) {
			if !yield(whiteoutPrefix + name) {
				return
			}
		}
	}
}

func (f *Folder) readEntry(ctx context.Context, s *set, e ref, p []byte, off int64) (int, error) {
	if isDir(s.layers[e.layer].Entry(e.id)) {
		return 0, syscall.EISDIR
	}
	n, err := s.layers[e.layer].ReadAt(ctx, e.id, p, off)
	if err == nil || errors.Is(err, io.EOF) {
		return n, nil
	}
	return n, &union.DataError{Path: f.pathOf(e), Layer: int(e.layer), Err: err}
}

// pathOf names an entry in an error.
func (f *Folder) pathOf(e ref) string {
	return "/" + Name + "/layers/" + strconv.Itoa(int(e.layer)+1+f.o.First) + " entry " + strconv.Itoa(int(e.id))
}

// ReadDir lists a directory: 0 is the beginning, later positions are what yield was told as next.
func (f *Folder) ReadDir(id union.ID, off uint64, yield func(next uint64, e union.Dirent) bool) error {
	a, err := f.Getattr(id)
	if err != nil {
		return err
	}
	if !a.IsDir() {
		return syscall.ENOTDIR
	}
	at := uint64(0)
	for e := range f.list(nodeOf(id)) {
		if at++; at > off && !yield(at, e) {
			break
		}
	}
	return nil
}

// list is all that a directory has, in an order that does not change.
func (f *Folder) list(n node) iter.Seq[union.Dirent] {
	return func(yield func(union.Dirent) bool) {
		self := union.Dirent{Name: ".", ID: n.id(), Ino: uint64(n.id()), Mode: syscall.S_IFDIR}
		if !yield(self) || !yield(union.Dirent{Name: "..", Ino: uint64(Base), Mode: syscall.S_IFDIR}) {
			return
		}
		for e := range f.kids(n) {
			if !yield(e) {
				return
			}
		}
	}
}

func (f *Folder) kids(n node) iter.Seq[union.Dirent] {
	s, now := f.latest()
	switch n.kind {
	case rootNode:
		return f.top(now)
	case layersNode:
		return func(yield func(union.Dirent) bool) {
			for i := range s.layers {
				if !yield(dirent(strconv.Itoa(i+1+f.o.First), node{entryNode, uint32(i), uint32(layer.Root)}, syscall.S_IFDIR)) {
					return
				}
			}
		}
	case entryNode:
		return f.ofLayer(n)
	case deletedNode, versionNode:
		s, p := f.past(n)
		return p.list(s, n)
	}
	return func(func(union.Dirent) bool) {}
}

func dirent(name string, n node, mode uint32) union.Dirent {
	return union.Dirent{Name: name, ID: n.id(), Ino: uint64(n.id()), Mode: mode & syscall.S_IFMT}
}

func (f *Folder) top(now int) iter.Seq[union.Dirent] {
	return func(yield func(union.Dirent) bool) {
		for i, x := range f.o.Files {
			if !yield(dirent(x.Name, node{kind: fileNode, hi: uint32(i)}, syscall.S_IFREG)) {
				return
			}
		}
		for _, d := range topDirs(now) {
			if !yield(dirent(d.name, d.node, syscall.S_IFDIR)) {
				return
			}
		}
	}
}

func (f *Folder) ofLayer(n node) iter.Seq[union.Dirent] {
	s, e, ok := f.at(n)
	return func(yield func(union.Dirent) bool) {
		if !ok {
			return
		}
		l := s.layers[e.layer]
		for name, id := range l.Children(e.id) {
			if !yield(dirent(name, node{entryNode, n.hi, uint32(id)}, l.Entry(id).Mode)) {
				return
			}
		}
		for name := range marks(l, e.id) {
			if !yield(dirent(name, node{kind: markNode, hi: n.hi}, syscall.S_IFREG)) {
				return
			}
		}
	}
}

// The extended attributes that say where a file comes from. They are read by name and never listed.
const (
	virtualPrefix = "user.layerfs."
	layerAttr     = virtualPrefix + "layer"      // the number of the layer
	digestAttr    = virtualPrefix + "digest"     // of the layer's blob
	createdByAttr = virtualPrefix + "created_by" // the build step
)

// Virtual tells whether a name is of an extended attribute that says where a file comes from.
func (f *Folder) Virtual(name string) bool { return strings.HasPrefix(name, virtualPrefix) }

// Provenance is a virtual attribute of a file that layer i (from 0, of those the mount
// shows) has; ENODATA for names that are none.
func (f *Folder) Provenance(i int, name string) ([]byte, error) {
	s, _ := f.latest()
	if i < 0 || i >= len(s.layers) {
		return nil, syscall.ENODATA
	}
	switch {
	case name == layerAttr:
		return []byte(strconv.Itoa(i + 1 + f.o.First)), nil
	case name == digestAttr:
		return []byte(s.layers[i].Digest()), nil
	case name == createdByAttr && i < len(s.steps) && s.steps[i] != "":
		return []byte(s.steps[i]), nil
	}
	return nil, syscall.ENODATA
}

// Getxattr reads an extended attribute; ENODATA when there is none.
func (f *Folder) Getxattr(id union.ID, name string) ([]byte, error) {
	n := nodeOf(id)
	s, e, ok := f.at(n)
	switch {
	case !ok && n.kind == markNode && f.Virtual(name):
		return f.Provenance(int(n.hi), name)
	case !ok:
		return nil, syscall.ENODATA
	case f.Virtual(name):
		return f.Provenance(int(e.layer), name)
	}
	for _, x := range s.layers[e.layer].Entry(e.id).Xattrs {
		if x.Name == name {
			return x.Value, nil
		}
	}
	return nil, syscall.ENODATA
}

// Listxattr lists the names of an entry's own extended attributes.
func (f *Folder) Listxattr(id union.ID) (names []string) {
	if s, e, ok := f.at(nodeOf(id)); ok {
		for _, x := range s.layers[e.layer].Entry(e.id).Xattrs {
			names = append(names, x.Name)
		}
	}
	return names
}

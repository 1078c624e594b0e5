package meta

import (
	"iter"
	"strconv"
	"strings"
	"syscall"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic"
)

// A past is a tree of paths that is not the image's: what was deleted, or the versions of all.
type past struct {
	nodes []pastNode // the root first
	kids  map[kid]uint32
}

type pastNode struct {
	name              string
	first, last, next uint32 // children, and the next one of the same directory; 0: none
	ref               ref
}

// A kid is a name in a directory.
type kid struct {
	dir  uint32
	name string
}

func newPast() *past { return &past{nodes: []pastNode{{ref: none}}, kids: map[kid]uint32{}} }

// add finds a name in a directory, or makes it.
func (p *past) add(dir uint32, name string) uint32 {
	if i, ok := p.kids[kid{dir, name}]; ok {
		return i
	}
	i := uint32(len(p.nodes))
	p.nodes = append(p.nodes, pastNode{name: name, ref: none})
	p.kids[kid{dir, name}] = i
	d := &p.nodes[dir]
	if d.first == 0 {
		d.first = i
	} else {
		p.nodes[d.last].next = i
	}
	d.last = i
	return i
}

// path is add for all names of a path.
func (p *past) path(path string) (at uint32) {
	for name := range strings.SplitSeq(path, "/") {
		at = p.add(at, name)
	}
	return at
}

// list is what a directory has.
func (p *past) list(s *set, n node) iter.Seq[union.Dirent] {
	return func(yield func(union.Dirent) bool) {
		for i := p.nodes[n.lo].first; i != 0; i = p.nodes[i].next {
			k, mode := &p.nodes[i], uint32(syscall.S_IFDIR)
			if k.ref != none {
				mode = s.layers[k.ref.layer].Entry(k.ref.id).Mode
			}
			if !yield(dirent(k.name, node{n.kind, n.hi, i}, mode)) {
				return
			}
		}
	}
}

func deletedOf(s *set) *past {
	p := newPast()
	shown := func(path string) bool {
		_, err := s.tree.Resolve(path)
		return err == nil
	}
	for _, r := range forensic.DeletedRecords(s.layers, shown) {
		p.nodes[p.path(r.Path)].ref = ref{int32(r.Layer), r.ID}
	}
	return p
}

// versionsOf has two turns: a file may be called as a version of its directory is, and keeps the name.
func versionsOf(s *set, first int) *past {
	p := newPast()
	for r := range forensic.Records(s.layers) {
		if !r.Whiteout && r.Path != "" {
			p.path(r.Path)
		}
	}
	paths := uint32(len(p.nodes))
	for r := range forensic.Records(s.layers) {
		if r.Whiteout || r.Path == "" || isDir(r.Entry) {
			continue
		}
		if i := p.add(p.path(r.Path), strconv.Itoa(r.Layer+1+first)); i >= paths {
			p.nodes[i].ref = ref{int32(r.Layer), r.ID}
		}
	}
	return p
}

package union

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// noLayer marks an ID of a renumbered tree that is no node of it.
const noLayer = -2

// A numbering says which IDs a tree has that took the place of another on a
// live mount: a node that the kernel knows keeps the ID and the inode number that
// it has.
type numbering struct {
	live    []ID          // by the ID that Merge gave, -1
	natural map[ID]ID     // the way back
	inos    map[ID]uint64 // inode numbers that are not the ID
}

// ino is the node's inode number.
func (t *Tree) ino(id ID) uint64 {
	if t.numbers != nil {
		if ino, ok := t.numbers.inos[id]; ok {
			return ino
		}
	}
	return uint64(id)
}

// originMark is what the origin xattr says of a node: its ID as the next mount
// will number it, and which tree that is of.
func (t *Tree) originMark(id ID) string {
	if t.numbers != nil {
		id = t.numbers.natural[id] // 0, which is no node, of one that the image has no more
	}
	return strconv.FormatUint(uint64(id), 10) + t.markEnd()
}

func (t *Tree) markEnd() string { return "@" + t.Digest().Encoded()[:16] }

// originID is the way back; 0 for the mark of another tree.
func (t *Tree) originID(mark string) ID {
	num, ours := strings.CutSuffix(mark, t.markEnd())
	n, err := strconv.ParseUint(num, 10, 64)
	if !ours || err != nil || t.numbers == nil {
		if !ours || err != nil {
			return 0
		}
		return ID(n)
	}
	if n == 0 || n > uint64(len(t.numbers.live)) {
		return 0
	}
	return t.numbers.live[n-1]
}

// renumbered is t, which Merge made, with live[i] as the ID of the node i+1; top
// is the highest. old is the tree it replaces: t has its layers and one more. Nodes of
// old that t has not stay readable under their IDs, for those who have them open, and
// no name leads to them.
func (t *Tree) renumbered(old *Tree, live []ID, inos map[ID]uint64, top ID) *Tree {
	r := *t
	r.numbers = &numbering{live: live, natural: make(map[ID]ID, len(live)), inos: inos}
	if old.numbers != nil {
		maps.Copy(r.numbers.inos, old.numbers.inos)
	}
	r.nodes = make([]treeNode, top)
	for i := range r.nodes {
		r.nodes[i].layer = noLayer
	}
	for i, n := range t.nodes {
		n.parent = uint32(live[n.parent-1])
		r.nodes[live[i]-1] = n
		r.numbers.natural[live[i]] = ID(i + 1)
	}
	r.dirents = slices.Clone(t.dirents)
	for i := range r.dirents {
		r.dirents[i].id = uint32(live[r.dirents[i].id-1])
	}
	r.links = make(map[ID][]treeName, len(t.links))
	for id, names := range t.links {
		names = slices.Clone(names)
		for i := range names {
			names[i].dir = live[names[i].dir-1]
		}
		r.links[live[id-1]] = names
	}
	r.names = slices.Clip(t.names)
	r.keepDead(old)
	return &r
}

// keepDead adds the nodes of old that are in no directory any more.
func (t *Tree) keepDead(old *Tree) {
	for i, n := range old.nodes {
		if n.layer == noLayer || t.nodes[i].layer != noLayer {
			continue
		}
		name := old.name(n.name)
		n.name = uint32(len(t.dirents))
		t.dirents = append(t.dirents, treeDirent{name: uint32(len(t.names)), len: uint16(len(name)), id: uint32(i + 1)})
		t.names = append(t.names, name...)
		n.kids, n.nkids = 0, 0
		t.nodes[i] = n
	}
}

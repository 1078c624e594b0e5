package union

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"syscall"

	"github.com/layerfs/layerfs/union/layer"
)

// Merge makes one tree of the layers of an image, layers[0] being the base.
//
// The rules are those of the OCI image specification (layer.md, "Applying
// Changesets" and "Whiteouts"): the topmost entry's type wins, directories
// merge down to the first opaque one or the first that is none, a whiteout
// hides what is below its layer and never an entry of its own layer. It costs
// time and memory in proportion to the entries; afterwards the number of
// layers costs nothing. The layers stay the caller's and must outlive the tree.
func Merge(ctx context.Context, layers []*layer.Layer) (*Tree, error) {
	m := &merger{view: newView(layers), tree: newTree(layers), byEntry: map[source]ID{}}
	root := m.view.root(len(layers))
	if len(root) == 0 {
		return m.tree.empty(), nil
	}
	for _, l := range layers { // one layer's alone would be there twice while they grow
		m.tree.nodes, m.tree.dirents, m.dirs = slices.Grow(m.tree.nodes, l.Len()), slices.Grow(m.tree.dirents, l.Len()), slices.Grow(m.dirs, l.Len())
	}
	m.addNode(m.attrSource(root), Root, 0, root)
	for id := Root; int(id) <= len(m.tree.nodes); id++ {
		if id%4096 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := m.fill(id); err != nil {
			return nil, err
		}
	}
	m.tree.finish()
	m.tree.defects = append(m.tree.defects, m.view.defects...)
	return m.tree, nil
}

// A source is one entry of one layer.
type source struct {
	layer int
	entry layer.ID
}

type merger struct {
	view    *view
	tree    *Tree
	dirs    [][]source // of every node: the directories it is merged from, the topmost first; nil when it is none
	byEntry map[source]ID
}

// attrSource is the entry whose attributes a directory has: the topmost that an archive really holds.
func (m *merger) attrSource(dirs []source) source {
	for _, s := range dirs {
		if m.view.entry(s).Explicit {
			return s
		}
	}
	return dirs[0]
}

func (m *merger) addNode(attr source, parent ID, name uint32, dirs []source) ID {
	t := m.tree
	t.nodes = append(t.nodes, treeNode{layer: int32(attr.layer), entry: attr.entry, parent: uint32(parent), name: name})
	m.dirs = append(m.dirs, dirs)
	return ID(len(t.nodes))
}

// fill gives a directory its children; for other nodes it does nothing.
func (m *merger) fill(id ID) error {
	dirs := m.dirs[id-1]
	if dirs == nil {
		return nil
	}
	m.dirs[id-1] = nil
	children := m.view.children(dirs)
	t := m.tree
	if len(t.dirents)+len(children) > math.MaxUint32-1 || len(t.names) > math.MaxUint32-1<<24 {
		return fmt.Errorf("merge: %w: more names than a tree can hold", layer.ErrLimit)
	}
	t.nodes[id-1].kids, t.nodes[id-1].nkids = uint32(len(t.dirents)), uint32(len(children))
	for _, c := range children {
		m.addChild(id, c)
	}
	return nil
}

func (m *merger) addChild(dir ID, c child) {
	t := m.tree
	i := uint32(len(t.dirents))
	t.dirents = append(t.dirents, treeDirent{name: uint32(len(t.names)), len: uint16(len(c.name))})
	t.names = append(t.names, c.name...)
	id := m.childNode(dir, i, c.from)
	t.dirents[i].id = uint32(id)
	n := &t.nodes[id-1]
	if n.nlink++; n.nlink > 1 {
		if n.nlink == 2 {
			t.links[id] = []treeName{{ID(n.parent), n.name}}
		}
		t.links[id] = append(t.links[id], treeName{dir, i})
	}
}

// childNode is the node of a child: a new one, or the one that another name of the same entry has already.
func (m *merger) childNode(dir ID, dirent uint32, from []source) ID {
	if m.view.isDir(from[0]) {
		return m.addNode(m.attrSource(from), dir, dirent, from)
	}
	if id, ok := m.byEntry[from[0]]; ok {
		return id
	}
	id := m.addNode(from[0], dir, dirent, nil)
	if e := m.view.entry(from[0]); e.Nlink > 1 || m.view.foreign {
		m.byEntry[from[0]] = id
	}
	return id
}

// A view answers what several layers together show. It holds what the layers themselves do not resolve: links into the layers below.
type view struct {
	layers    []*layer.Layer
	links     []map[linkName]string // of every layer: name → target
	byDir     []map[layer.ID][]string
	foreign   bool // there are links between layers
	redirects int  // followed so far
	broken    map[source]map[string]bool
	defects   []layer.Defect
}

type linkName struct {
	dir  layer.ID
	name string
}

// A child is one name in a merged directory. More than one source means a merged directory, the topmost first.
type child struct {
	name   string
	from   []source
	closed bool // nothing of the layers below shows here
}

func newView(layers []*layer.Layer) *view {
	v := &view{layers: layers, broken: map[source]map[string]bool{}}
	for _, l := range layers {
		links, byDir := map[linkName]string{}, map[layer.ID][]string{}
		for _, f := range l.ForeignLinks() {
			links[linkName{f.Dir, f.Name}] = f.Target
			byDir[f.Dir] = append(byDir[f.Dir], f.Name)
			v.foreign = true
		}
		v.links, v.byDir = append(v.links, links), append(v.byDir, byDir)
	}
	return v
}

func (v *view) entry(s source) layer.Entry { return v.layers[s.layer].Entry(s.entry) }

func (v *view) isDir(s source) bool { return v.entry(s).Mode&syscall.S_IFMT == syscall.S_IFDIR }

// root is the merged root of the layers below top.
func (v *view) root(top int) []source {
	var dirs []source
	for l := top - 1; l >= 0; l-- {
		dirs = append(dirs, source{l, layer.Root})
		if v.layers[l].Entry(layer.Root).Opaque {
			break
		}
	}
	return dirs
}

// children lists a merged directory, sorted by the bytes of the names.
func (v *view) children(dirs []source) []child {
	byName := map[string]*child{}
	for _, d := range dirs {
		for name, id := range v.layers[d.layer].Children(d.entry) {
			v.add(byName, name, source{d.layer, id}, dirs)
		}
		for _, name := range v.byDir[d.layer][d.entry] {
			if s, ok := v.follow(d, name); ok {
				v.add(byName, name, s, dirs)
			}
		}
		for name := range v.layers[d.layer].Whiteouts(d.entry) {
			v.hide(byName, name)
		}
	}
	var list []child
	for _, c := range byName {
		if len(c.from) > 0 {
			list = append(list, *c)
		}
	}
	slices.SortFunc(list, func(a, b child) int { return cmp.Compare(a.name, b.name) })
	return list
}

// add takes up what one layer has under a name; the layers come from the top.
func (v *view) add(byName map[string]*child, name string, s source, dirs []source) {
	c := byName[name]
	if c == nil {
		c = &child{name: name}
		byName[name] = c
	}
	v.grow(c, s, dirs)
}

// grow takes up s, which one of dirs has under the name of c.
func (v *view) grow(c *child, s source, dirs []source) {
	if c.closed {
		return
	}
	e := v.entry(s)
	dir := e.Mode&syscall.S_IFMT == syscall.S_IFDIR
	if dir || len(c.from) == 0 {
		c.from = append(c.from, s)
	}
	c.closed = !dir || e.Opaque
	if dir && !c.closed && e.Redirect != "" {
		c.from = append(c.from, v.redirected(s, e.Redirect, dirs)...)
		c.closed = true
	}
}

func (v *view) hide(byName map[string]*child, name string) {
	if c := byName[name]; c != nil {
		c.closed = true
		return
	}
	byName[name] = &child{name: name, closed: true}
}

// step is children for one name.
func (v *view) step(dirs []source, name string) []source {
	c := child{name: name}
	for _, d := range dirs {
		if id, ok := v.layers[d.layer].Lookup(d.entry, name); ok {
			v.grow(&c, source{d.layer, id}, dirs)
		} else if _, ok := v.links[d.layer][linkName{d.entry, name}]; ok {
			if s, ok := v.follow(d, name); ok {
				v.grow(&c, s, dirs)
			}
		}
		if c.closed || v.whiteout(d, name) {
			break
		}
	}
	return c.from
}

func (v *view) whiteout(d source, name string) bool {
	for w := range v.layers[d.layer].Whiteouts(d.entry) {
		if w >= name {
			return w == name
		}
	}
	return false
}

// follow finds what a link into the layers below means: its target as those layers alone show it.
func (v *view) follow(dir source, name string) (source, bool) {
	target := v.links[dir.layer][linkName{dir.entry, name}]
	from := v.resolve(dir.layer, target)
	if len(from) > 0 && !v.isDir(from[0]) {
		return from[0], true
	}
	v.defect(dir, name, fmt.Sprintf("hardlink to %q, which no layer below has as a file", target))
	return source{}, false
}

// resolve walks a path through the layers below top.
func (v *view) resolve(top int, path string) []source {
	from := v.root(top)
	for name := range strings.SplitSeq(path, "/") {
		if len(from) == 0 || !v.isDir(from[0]) {
			return nil
		}
		from = v.step(from, name)
	}
	return from
}

func (v *view) defect(dir source, name, reason string) {
	if v.broken[dir][name] {
		return
	}
	if v.broken[dir] == nil {
		v.broken[dir] = map[string]bool{}
	}
	v.broken[dir][name] = true
	v.defects = append(v.defects, layer.Defect{Path: name, Reason: fmt.Sprintf("layer %d: %s", dir.layer+1, reason)})
}

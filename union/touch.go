package union

import (
	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// A touch is a path at which one of two trees may not be as what they have in
// common. What is not touched needs no look: comparing two images with the same base
// costs time in proportion to the layers above it.
type touch struct {
	all  bool // everything below may differ
	kids map[string]*touch
}

func (t *touch) kid(name string) *touch {
	k := t.kids[name]
	if k == nil {
		k = &touch{}
		if t.kids == nil {
			t.kids = map[string]*touch{}
		}
		t.kids[name] = k
	}
	return k
}

// below is the touch of a name in a directory; nil when it is not touched.
func (t *touch) below(name string) *touch {
	if t.all {
		return t
	}
	return t.kids[name]
}

// touches are the paths that the layers above the common ones and the upper directories
// have something to say of.
func touches(a, b *snapshot) *touch {
	root := &touch{}
	common := commonLayers(a.fs.tree().layers, b.fs.tree().layers)
	if common == 0 {
		root.all = true
		return root
	}
	for _, s := range []*snapshot{a, b} {
		for _, l := range s.fs.tree().layers[common:] {
			root.addLayer(l)
		}
		if s.root != nil {
			root.addUpper(s.root)
		}
	}
	return root
}

// commonLayers is how many layers from the base on are the same.
func commonLayers(a, b []*layer.Layer) int {
	n := 0
	for n < min(len(a), len(b)) && a[n].Same(b[n]) {
		n++
	}
	return n
}

func (t *touch) addLayer(l *layer.Layer) {
	links := map[layer.ID][]string{}
	for _, f := range l.ForeignLinks() {
		links[f.Dir] = append(links[f.Dir], f.Name)
	}
	t.addDir(l, layer.Root, links)
}

// addDir adds what a layer says of a directory; links are those into the layers below, which Children has not.
func (t *touch) addDir(l *layer.Layer, dir layer.ID, links map[layer.ID][]string) {
	if l.Entry(dir).Opaque {
		t.all = true
	}
	for name, id := range l.Children(dir) {
		k := t.kid(name)
		if l.Entry(id).Mode&unix.S_IFMT == unix.S_IFDIR {
			k.addDir(l, id, links)
		} else {
			k.all = true // it may stand where a directory was
		}
	}
	for _, name := range links[dir] {
		t.kid(name).all = true
	}
	for name := range l.Whiteouts(dir) {
		t.kid(name).all = true
	}
}

// addUpper adds what an upper directory says of a path.
func (t *touch) addUpper(n *upperNode) {
	if n.kids == nil || n.lower == 0 {
		t.all = true
		return
	}
	for name, k := range n.kids {
		t.kid(name).addUpper(k)
	}
}

// Package forensic answers questions about the history of an image: every version of every file, in every layer, also of what later layers hide.
//
// All of it is computed from the layers' entries alone; nothing is fetched but
// where content is asked for by name. The functions change nothing and keep
// nothing.
package forensic

import (
	"fmt"
	"iter"
	"syscall"

	"github.com/layerfs/layerfs/union/layer"
)

// A Fate is what became of an entry in the layers above its own.
type Fate int

// The fates.
const (
	Visible     Fate = iota // the image shows it
	Overwritten             // a later layer has the path too
	Deleted                 // a later layer deletes the path, or a directory above it
)

func (f Fate) String() string {
	return [...]string{"visible", "overwritten", "deleted"}[f]
}

// A Record is one entry of one layer at one path.
type Record struct {
	Path     string // from the root, without a slash at its begin: "etc/passwd"
	Layer    int    // 0 is the base
	ID       layer.ID
	Entry    layer.Entry
	Whiteout bool // the layer deletes the path; ID and Entry are not set
	Fate     Fate
	By       int // the first layer that overwrote or deleted it
}

// Label names a record so that no two records of an image have one label: the
// path, and for what is not shown the layer and its fate.
func (r Record) Label() string {
	switch {
	case r.Whiteout:
		return fmt.Sprintf("/%s [whiteout in layer %d]", r.Path, r.Layer+1)
	case r.Fate == Visible:
		return "/" + r.Path
	}
	return fmt.Sprintf("/%s [layer %d, %s by layer %d]", r.Path, r.Layer+1, r.Fate, r.By+1)
}

// Records lists all entries of all layers, layers[0] being the base: layer by
// layer, a directory before what is in it, names in the order of their bytes.
// Directories that an archive only implies are left out, the root as well when
// no archive has it.
func Records(layers []*layer.Layer) iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for i := range layers {
			w := &walk{layers: layers, layer: i, yield: yield}
			above := make([]shadow, 0, len(layers)-i-1)
			for j := i + 1; j < len(layers); j++ {
				above = append(above, shadow{layer: j, there: true, dir: layer.Root})
			}
			if !w.entry("", layer.Root, above) {
				return
			}
		}
	}
}

// DeletedRecords lists what the layers had and the image does not show any more, each path
// once, with its newest version. shown tells whether the image has a path: a later layer may
// have made again what one before it deleted.
func DeletedRecords(layers []*layer.Layer, shown func(path string) bool) []Record {
	at := map[string]int{}
	var list []Record
	for r := range Records(layers) {
		if r.Fate != Deleted || r.Whiteout {
			continue
		}
		if i, seen := at[r.Path]; seen {
			list[i] = r // layers come in order: the newest stays
		} else if !shown(r.Path) {
			at[r.Path] = len(list)
			list = append(list, r)
		}
	}
	return list
}

type walk struct {
	layers []*layer.Layer
	layer  int
	yield  func(Record) bool
}

// A shadow is what a layer above has at the path that the walk stands at.
type shadow struct {
	layer  int
	there  bool     // it has an entry
	dir    layer.ID // that entry
	hidden bool     // it hides what is below it
}

// entry yields an entry and goes on with what is in it.
func (w *walk) entry(path string, id layer.ID, above []shadow) bool {
	e := w.layers[w.layer].Entry(id)
	r := Record{Path: path, Layer: w.layer, ID: id, Entry: e}
	r.Fate, r.By = fate(above)
	if e.Explicit && !w.yield(r) {
		return false
	}
	if e.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return true
	}
	for name, child := range w.layers[w.layer].Children(id) {
		if !w.entry(join(path, name), child, w.step(above, name)) {
			return false
		}
	}
	for name := range w.layers[w.layer].Whiteouts(id) {
		r := Record{Path: join(path, name), Layer: w.layer, Whiteout: true}
		r.Fate, r.By = fate(w.step(above, name))
		if !w.yield(r) {
			return false
		}
	}
	return true
}

// fate is decided by the lowest layer above that has something to say.
func fate(above []shadow) (Fate, int) {
	for _, s := range above {
		switch {
		case s.there:
			return Overwritten, s.layer
		case s.hidden:
			return Deleted, s.layer
		}
	}
	return Visible, 0
}

// step goes one name down in the layers above.
func (w *walk) step(above []shadow, name string) []shadow {
	next := make([]shadow, 0, len(above))
	for _, s := range above {
		n := shadow{layer: s.layer, hidden: s.hidden}
		if s.there {
			l := w.layers[s.layer]
			e := l.Entry(s.dir)
			n.hidden = n.hidden || e.Opaque || e.Mode&syscall.S_IFMT != syscall.S_IFDIR || whiteout(l, s.dir, name)
			n.dir, n.there = l.Lookup(s.dir, name)
		}
		next = append(next, n)
	}
	return next
}

func whiteout(l *layer.Layer, dir layer.ID, name string) bool {
	for w := range l.Whiteouts(dir) {
		if w >= name {
			return w == name
		}
	}
	return false
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

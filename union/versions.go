package union

import (
	"strings"

	"github.com/layerfs/layerfs/union/layer"
)

// A Version is what one layer says of a path.
type Version struct {
	Layer    int         // 0 is the base
	Whiteout bool        // the layer deletes the path, or a directory above it; Entry is not set
	Entry    layer.Entry // what the layer has at the path
	Visible  bool        // it is what the merged tree shows
}

// Versions lists what the layers have at a path, without following symlinks, the newest first.
func Versions(layers []*layer.Layer, path string) []Version {
	v := newView(layers)
	shown := v.resolve(len(layers), clean(path))
	var list []Version
	for i := len(layers) - 1; i >= 0; i-- {
		s, found, hidden := v.version(i, clean(path))
		if found {
			visible := len(shown) > 0 && shown[0] == s
			list = append(list, Version{Layer: i, Entry: v.entry(s), Visible: visible})
		}
		if hidden {
			list = append(list, Version{Layer: i, Whiteout: true})
		}
	}
	for len(list) > 0 && list[len(list)-1].Whiteout {
		list = list[:len(list)-1] // it hides nothing
	}
	return list
}

// clean takes the slashes of a path away that mean nothing.
func clean(path string) string {
	return strings.Join(strings.FieldsFunc(path, func(r rune) bool { return r == '/' }), "/")
}

// version walks a path through one layer alone. It may be there and hide what is below at the same time.
func (v *view) version(l int, path string) (s source, found, hidden bool) {
	s = source{l, layer.Root}
	if path == "" {
		return s, true, false
	}
	for name := range strings.SplitSeq(path, "/") {
		hidden = hidden || v.whiteout(s, name) || v.entry(s).Opaque
		id, ok := v.layers[l].Lookup(s.entry, name)
		next := source{l, id}
		if _, link := v.links[l][linkName{s.entry, name}]; !ok && link {
			next, ok = v.follow(s, name)
		}
		if !ok {
			return s, false, hidden
		}
		s = next
	}
	return s, true, hidden
}

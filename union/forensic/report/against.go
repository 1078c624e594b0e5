package report

import (
	"github.com/layerfs/layerfs/union"
)

// Against is another image that the report compares with.
type Against struct {
	Name    string
	Changes []union.Change // what leads from it to the image, sorted by path
}

// A changeGroup is the changes of one kind.
type changeGroup struct {
	Kind string
	All  int
	List []changeRow
}

type changeRow struct {
	union.Change
	Layer int // from 1, that has the path now; 0: none
}

// maxChanges is how many changes of a kind stand in the page; "layerfs diff" lists all.
const maxChanges = 1000

// changeKinds are the letters of layerfs diff.
var changeKinds = []struct {
	letter byte
	name   string
}{{'A', "added"}, {'M', "modified"}, {'T', "of another type"}, {'D', "deleted"}}

func changeGroups(im Image) (out []changeGroup) {
	if im.Against == nil {
		return nil
	}
	for _, k := range changeKinds {
		g := changeGroup{Kind: k.name}
		for _, c := range im.Against.Changes {
			if c.Kind != k.letter {
				continue
			}
			if g.All++; g.All <= maxChanges {
				g.List = append(g.List, changeRowOf(im.Tree, c))
			}
		}
		if g.All > 0 {
			out = append(out, g)
		}
	}
	return out
}

func changeRowOf(t *union.Tree, c union.Change) changeRow {
	r := changeRow{Change: c}
	if id, err := t.Resolve(c.Path); err == nil && c.Kind != 'D' {
		lay, _ := t.Origin(id)
		r.Layer = lay + 1
	}
	return r
}

package report

import (
	"cmp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/forensic/audit"
	"github.com/layerfs/layerfs/union/layer"
)

// A count is what one layer has.
type count struct {
	files, dirs, others, whiteouts int
	bytes, hidden                  int64 // of regular files; of those that a later layer hides
}

// A counted image has one walk through all its layers behind it.
type counted struct {
	layers []count
	hidden map[string]wasteRow
	times  *timeline
}

func census(layers []*layer.Layer) *counted {
	c := &counted{layers: make([]count, len(layers)), hidden: map[string]wasteRow{}, times: newTimeline(len(layers))}
	seen := map[[2]uint64]bool{} // files with several names
	for r := range forensic.Records(layers) {
		l := &c.layers[r.Layer]
		if r.Whiteout {
			l.whiteouts++
			continue
		}
		c.times.add(r.Layer, r.Entry.Sec)
		switch r.Entry.Mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			l.dirs++
			continue
		case syscall.S_IFREG:
		default:
			l.others++
			continue
		}
		l.files++
		if key := [2]uint64{uint64(r.Layer), uint64(r.ID)}; r.Entry.Nlink < 2 || !seen[key] {
			seen[key] = r.Entry.Nlink > 1
			c.file(l, r)
		}
	}
	return c
}

func (c *counted) file(l *count, r forensic.Record) {
	l.bytes += r.Entry.Size
	if r.Fate == forensic.Visible {
		return
	}
	l.hidden += r.Entry.Size
	dir := place(r.Path)
	w := c.hidden[dir]
	w.Path = dir
	w.Files++
	w.Bytes += r.Entry.Size
	c.hidden[dir] = w
}

// place is a path's first four names: enough to say where something is.
func place(p string) string {
	names := strings.SplitN(p, "/", 5)
	if len(names) < 5 {
		return p
	}
	return strings.Join(names[:4], "/") + "/…"
}

func (c *counted) wasted() (n int64) {
	for _, l := range c.layers {
		n += l.hidden
	}
	return n
}

func (c *counted) shown() (n int64) {
	for _, l := range c.layers {
		n += l.bytes - l.hidden
	}
	return n
}

// A layerRow is a layer in the page.
type layerRow struct {
	N                              int // from 1 at the base
	Digest, Step                   string
	Blob, Bytes, Hidden            int64
	Files, Dirs, Others, Whiteouts int
	Share                          float64 // percent of the bytes of all layers
}

func (c *counted) rows(im Image) []layerRow {
	var all int64
	for _, l := range c.layers {
		all += l.bytes
	}
	rows := make([]layerRow, len(c.layers))
	for i, l := range c.layers {
		rows[i] = layerRow{
			N: i + 1, Digest: im.Layers[i].Digest().Encoded(), Bytes: l.bytes, Hidden: l.hidden,
			Files: l.files, Dirs: l.dirs, Others: l.others, Whiteouts: l.whiteouts, Share: 100 * float64(l.bytes) / float64(max(all, 1)),
		}
		if i < len(im.Blobs) {
			rows[i].Blob = im.Blobs[i]
		}
		for _, s := range im.Steps {
			if s.Layer == i {
				rows[i].Step = s.CreatedBy
			}
		}
	}
	return rows
}

// A wasteRow is a place whose content later layers hide.
type wasteRow struct {
	Path  string
	Files int
	Bytes int64
}

const worstPlaces = 15

func (c *counted) worst() []wasteRow {
	var list []wasteRow
	for _, w := range c.hidden {
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b wasteRow) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Path, b.Path)) })
	return list[:min(len(list), worstPlaces)]
}

// A stepRow is a build step in the page.
type stepRow struct {
	Created time.Time
	Layer   int // from 1, 0: it made none
	Text    string
}

func steps(im Image) (rows []stepRow) {
	for _, s := range im.Steps {
		rows = append(rows, stepRow{s.Created, s.Layer + 1, s.CreatedBy})
	}
	return rows
}

// A group is the findings of one rule.
type group struct {
	Rule string
	All  int
	List []audit.Finding
}

// maxListed is how many findings of a rule stand in the page: it is for reading, and "layerfs audit" lists all.
const maxListed = 400

func groups(list []audit.Finding) (out []group) {
	for _, f := range list {
		if len(out) == 0 || out[len(out)-1].Rule != f.Rule {
			out = append(out, group{Rule: f.Rule})
		}
		g := &out[len(out)-1]
		if g.All++; g.All <= maxListed {
			g.List = append(g.List, f)
		}
	}
	return out
}

package report

import (
	"cmp"
	"slices"
	"syscall"

	"github.com/layerfs/layerfs/union"
)

// The picture of what takes the room, in pixels.
const (
	mapWidth  = 1160
	mapHeight = 620
	minSide   = 22 // a directory that is smaller is not looked into
	maxTiles  = 12000
)

// A tile is a rectangle of the picture: a file, or a directory that is not looked into.
type tile struct {
	X, Y, W, H float64
	Path       string
	Name       string // "" where there is no room for it
	Bytes      int64
	Layer      int // that has most of it
}

// An amount is what is below a node.
type amount struct {
	id    union.ID
	name  string
	dir   bool
	bytes int64
	layer int
	below []amount
}

// treemap places the tree's files so that each has an area by its size: squarified, after
// Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000).
func treemap(t *union.Tree) []tile {
	m := &mapper{}
	m.dir(weigh(t, union.Root, "", map[union.ID]bool{}), "", rect{0, 0, mapWidth, mapHeight})
	return m.tiles
}

// weigh adds up what is below a node; a file with several names counts once.
func weigh(t *union.Tree, id union.ID, name string, seen map[union.ID]bool) amount {
	a := amount{id: id, name: name, dir: t.IsDir(id)}
	a.layer, _ = t.Origin(id)
	if !a.dir {
		if at := t.Attr(id); !seen[id] && at.Type() == syscall.S_IFREG {
			seen[id] = at.Nlink > 1
			a.bytes = at.Size
		}
		return a
	}
	layers := map[int]int64{}
	for name, child := range t.Children(id) {
		c := weigh(t, child, name, seen)
		if c.bytes == 0 {
			continue
		}
		a.bytes += c.bytes
		layers[c.layer] += c.bytes
		a.below = append(a.below, c)
	}
	var most int64
	for l, n := range layers {
		if n > most || n == most && l < a.layer {
			a.layer, most = l, n
		}
	}
	slices.SortStableFunc(a.below, func(x, y amount) int { return cmp.Compare(y.bytes, x.bytes) })
	return a
}

type rect struct{ x, y, w, h float64 }

type mapper struct{ tiles []tile }

func (m *mapper) dir(a amount, path string, r rect) {
	for len(a.below) > 0 {
		n := row(a.below, a.bytes, r)
		a.below, a.bytes, r = m.place(a, n, path, r)
	}
}

// row is how many of the largest make a row whose worst tile is as square as can be.
func row(list []amount, all int64, r rect) int {
	side := min(r.w, r.h)
	scale := r.w * r.h / float64(max(all, 1))
	var sum float64
	best, n := 0.0, 0
	for i, a := range list {
		sum += float64(a.bytes) * scale
		worst := 0.0
		for _, b := range list[: i+1 : i+1] {
			area := float64(b.bytes) * scale
			long := sum / side
			ratio := max(long*long/area, area/(long*long))
			worst = max(worst, ratio)
		}
		if n > 0 && worst > best {
			break
		}
		best, n = worst, i+1
	}
	return n
}

// place puts the first n along the shorter side, and returns what is left of all.
func (m *mapper) place(a amount, n int, path string, r rect) ([]amount, int64, rect) {
	var sum int64
	for _, b := range a.below[:n] {
		sum += b.bytes
	}
	share := float64(sum) / float64(max(a.bytes, 1))
	line, rest := rect{r.x, r.y, r.w * share, r.h}, rect{r.x + r.w*share, r.y, r.w * (1 - share), r.h}
	if r.w < r.h {
		line, rest = rect{r.x, r.y, r.w, r.h * share}, rect{r.x, r.y + r.h*share, r.w, r.h * (1 - share)}
	}
	at := line
	for _, b := range a.below[:n] {
		part := float64(b.bytes) / float64(sum)
		cell := rect{at.x, at.y, line.w, line.h * part}
		if r.w < r.h {
			cell.w, cell.h = line.w*part, line.h
			at.x += cell.w
		} else {
			at.y += cell.h
		}
		m.tile(b, path+"/"+b.name, cell)
	}
	return a.below[n:], a.bytes - sum, rest
}

func (m *mapper) tile(a amount, path string, r rect) {
	if len(m.tiles) >= maxTiles || r.w*r.h < 3 {
		return
	}
	if a.dir && min(r.w, r.h) >= minSide && len(a.below) > 0 {
		m.dir(a, path, rect{r.x + 1, r.y + 1, r.w - 2, r.h - 2})
		return
	}
	t := tile{X: r.x, Y: r.y, W: max(r.w-0.5, 0.5), H: max(r.h-0.5, 0.5), Path: path, Bytes: a.bytes, Layer: a.layer}
	if r.w > float64(7*len(a.name)+6) && r.h > 13 {
		t.Name = a.name
	}
	m.tiles = append(m.tiles, t)
}

// Package report makes one HTML page of an image: its layers, what they waste, what takes the room, when its files were changed,
// what an audit found, and what distinguishes it from another image.
//
// The page needs nothing but itself: no script, no request, a content security policy that
// forbids both. What opens when it is chosen is a link to a place in the page, so that the keyboard does it too. Every name of the image is escaped by html/template.
package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"sync"
	"time"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/forensic/audit"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
)

// An Image is what a report is about.
type Image struct {
	Name     string // that stays true when a tag moves
	Digest   digest.Digest
	Platform string
	Created  time.Time // zero: unknown
	Config   [][2]string
	Blobs    []int64 // the size of each layer as it is stored
	Tree     *union.Tree
	Layers   []*layer.Layer
	Steps    []forensic.Step
	Findings []audit.Finding
	Notes    []string // what the report does not know, and why
	Against  *Against // nil: nothing is compared
	Tool     string   // what made it: "layerfs 1.0"
}

//go:embed page.html
var pageText string

// page is parsed by who writes one: most runs of a program do not.
var page = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{
		"size": Size, "name": forensic.Printable, "day": day, "color": color, "inc": func(i int) int { return i + 1 },
	}).Parse(pageText))
})

// Write writes the page. The same image gives the same page.
func Write(w io.Writer, im Image) error {
	c := census(im.Layers)
	years, zooms := c.times.years(im.Layers)
	return page().Execute(w, struct {
		Image
		Layers   []layerRow
		Wasted   int64
		Shown    int64
		Worst    []wasteRow
		Tiles    []tile
		Years    chart
		Zooms    []zoomed
		Changes  []changeGroup
		Steps    []stepRow
		Findings []group
		Width    int
		Height   int
	}{
		Image: im, Layers: c.rows(im), Wasted: c.wasted(), Shown: c.shown(), Worst: c.worst(), Tiles: treemap(im.Tree),
		Years: years, Zooms: zooms, Changes: changeGroups(im), Steps: steps(im), Findings: groups(im.Findings), Width: mapWidth, Height: mapHeight,
	})
}

// Size prints bytes for people, in powers of ten.
func Size(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB"} {
		if f < 1000 {
			break
		}
		f, unit = f/1000, u
	}
	if unit == "B" || f >= 100 {
		return fmt.Sprintf("%.0f %s", f, unit)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04")
}

// color is that of a layer in all charts: hues that lie far from each other, whatever their number.
func color(layer int) template.CSS {
	return template.CSS(fmt.Sprintf("hsl(%d 55%% %d%%)", (205+layer*137)%360, 62+layer%2*8))
}

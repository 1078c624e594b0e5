package report_test

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/forensic/audit"
	"github.com/layerfs/layerfs/union/forensic/report"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type blob []byte

func (b blob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

func imageOf(t *testing.T, texts ...string) report.Image {
	t.Helper()
	s, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	im := report.Image{Name: "localhost:5000/x", Digest: digest.FromString("m")}
	for i, text := range texts {
		tar := layertest.Tar(text)
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar))}
		l, err := layer.Open(t.Context(), d, blob(tar), s, layer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		im.Layers, im.Blobs = append(im.Layers, l), append(im.Blobs, d.Size)
		im.Steps = append(im.Steps, forensic.Step{Layer: i, CreatedBy: fmt.Sprintf("step %d", i+1), Created: time.Unix(1700000000, 0)})
	}
	if im.Tree, err = union.Merge(t.Context(), im.Layers); err != nil {
		t.Fatal(err)
	}
	return im
}

func pageOf(t *testing.T, im report.Image) string {
	t.Helper()
	var b bytes.Buffer
	if err := report.Write(&b, im); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestHostile: whatever an image says, the page has no script, loads nothing, and is well formed where names stand.
func TestHostile(t *testing.T) {
	evil := []string{`<script>alert(1)</script>`, `"onload="x`, `</title><img src=x>`, `a&lt;b`, "esc\x1b[31m", "bad\xff", `{{.Name}}`}
	var text strings.Builder
	for i, name := range evil {
		fmt.Fprintf(&text, "text %q %d\n", strings.ReplaceAll(name, "/", "∕"), 200000+i)
	}
	im := imageOf(t, text.String())
	im.Name = evil[0]
	im.Steps[0].CreatedBy = evil[2] + evil[0]
	im.Config = [][2]string{{"label", evil[0] + evil[1]}}
	im.Notes = []string{evil[2]}
	im.Against = &report.Against{Name: evil[0], Changes: []union.Change{{Kind: 'A', Path: evil[0] + evil[1]}}}
	im.Findings = []audit.Finding{{Rule: audit.Secret, Path: evil[0], Detail: evil[1] + evil[2], State: "visible"}}
	page := pageOf(t, im)
	for _, bad := range []string{"<script", "<img", "onload=\"", "\x1b", "\xff", "http-equiv=refresh", "src=\""} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for i, link := range strings.Split(page, "href=") {
		if i > 0 && !strings.HasPrefix(link, `"#`) {
			t.Errorf("a link leads out of the page: %.40s", link)
		}
	}
	if !strings.Contains(page, "default-src 'none'") {
		t.Error("the page has no content security policy")
	}
	for svg := range strings.SplitSeq(page, "<svg") {
		if body, _, ok := strings.Cut(svg, "</svg>"); ok {
			if err := wellFormed("<svg" + body + "</svg>"); err != nil {
				t.Errorf("picture: %v", err)
			}
		}
	}
}

func wellFormed(text string) error {
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := d.Token(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// TestNumbers: what is hidden is what later layers overwrite or delete, a file with two names counts once.
func TestNumbers(t *testing.T) {
	im := imageOf(t, "text a 1000\ntext d/b 2000\ntext keep 4000\nlink twice keep", "text a 500\nwhiteout d")
	page := pageOf(t, im)
	for _, want := range []string{
		"2 layers; the image shows 4.5 kB, and carries 3.0 kB that later layers overwrite or delete",
		`<td><code>/d/b</code><td class="n">1<td class="n">2.0 kB`, `<td><code>/a</code><td class="n">1<td class="n">1.0 kB`, "step 2",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if again := pageOf(t, im); again != page {
		t.Error("the same image gave another page")
	}
}

// TestTimeline: a bar for each year leads to its months, and those to their days; nothing that
// is left out is left out unsaid.
func TestTimeline(t *testing.T) {
	page := pageOf(t, imageOf(t, "file a/b/c/d/e \"1\" @1700000000\nfile a/b/c/d/f \"1\" @1700000000\nfile g \"1\" @1702000000", "file g \"2\" @0\nfile far \"x\" @999999999999"))
	for _, want := range []string{
		`<a href="#t2023" aria-label="2023: 3 entries">`, `id="t2023"`, `<a href="#t2023-11" aria-label="2023-11: 2 entries">`, `<title>2023-11-14, layer 1: 2 of 2</title>`,
		`<td class="n">2023-11-14<td class="n">2<td>1 <td><code>/a/b/c/d/…</code> 2`, `id="t1970-01"`, `<td class="n">1970-01-01<td class="n">1<td>2 <td><code>/g</code> 1`, `id="t33658-09"`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	ids := map[string]bool{}
	for i, s := range strings.Split(page, ` id="`) {
		if id, _, _ := strings.Cut(s, `"`); i > 0 && ids[id] {
			t.Errorf("%s is there twice", id)
		} else {
			ids[id] = true
		}
	}
	for i, s := range strings.Split(page, `href="#`) {
		if id, _, _ := strings.Cut(s, `"`); i > 0 && !ids[id] {
			t.Errorf("a link leads to %s, which is not there", id)
		}
	}
}

// TestManyDays: an image with entries of every day of a life is not told day by day, and no month is lost.
func TestManyDays(t *testing.T) {
	var text strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&text, "file f%d \"x\" @%d\n", i, 86400*(i+1))
	}
	page := pageOf(t, imageOf(t, text.String()))
	if n := strings.Count(page, "<td class=\"n\">19"); n != 1500 {
		t.Errorf("%d days are told one by one", n)
	}
	if n := strings.Count(page, "Too little happened"); n == 0 || strings.Count(page, `<section class="zoom"`) != 9+99 {
		t.Errorf("%d months without days, %d sections", n, strings.Count(page, `<section class="zoom"`))
	}
}

// TestAgainst: what leads from another image is listed by kind, with the layer that has it now.
func TestAgainst(t *testing.T) {
	im := imageOf(t, "text a 1000", "text b 2000")
	im.Against = &report.Against{Name: "other", Changes: []union.Change{{Kind: 'D', Path: "gone"}, {Kind: 'A', Path: "b", Size: 2000}, {Kind: 'M', Path: "a", Meta: true}}}
	page := pageOf(t, im)
	for _, want := range []string{
		"Against other", "<b>added</b> 1", `<td><code>/b</code><td class="n">layer 2<td class="n">2.0 kB`, `<code>/a</code><td class="n">layer 1<td class="n"><td>owner, mode`, "<b>deleted</b> 1",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if im.Against.Changes = nil; !strings.Contains(pageOf(t, im), "Nothing.") {
		t.Error("two equal images are not said to be")
	}
}

// TestFindings: a rule with very many findings is cut, and the page says so.
func TestFindings(t *testing.T) {
	im := imageOf(t, "file a \"x\"")
	for i := range 1000 {
		im.Findings = append(im.Findings, audit.Finding{Rule: audit.Missing, Path: fmt.Sprintf("f%d", i), Layer: -1})
	}
	page := pageOf(t, im)
	if n := strings.Count(page, "<code>/f"); n != 400 || !strings.Contains(page, "<b>missing</b> 1000") || !strings.Contains(page, "The first 400") {
		t.Errorf("%d findings are listed", n)
	}
	if page = pageOf(t, imageOf(t, "")); !strings.Contains(page, "None.") {
		t.Error("an image without findings does not say so")
	}
}

// TestTreemap: every file has an area by its size, inside the picture, over no other.
func TestTreemap(t *testing.T) {
	var text strings.Builder
	for i := range 60 {
		fmt.Fprintf(&text, "zero d%d/f%d %d\n", i%7, i, 1000*(1+i*i%37))
	}
	tiles := report.Treemap(imageOf(t, text.String()).Tree)
	if len(tiles) != 60 {
		t.Fatalf("%d tiles", len(tiles))
	}
	var bytes, area float64
	for i, a := range tiles {
		if a.X < 0 || a.Y < 0 || a.X+a.W > report.MapWidth+0.01 || a.Y+a.H > report.MapHeight+0.01 {
			t.Errorf("%s is outside: %+v", a.Path, a)
		}
		for _, b := range tiles[:i] {
			if a.X+a.W > b.X+0.01 && b.X+b.W > a.X+0.01 && a.Y+a.H > b.Y+0.01 && b.Y+b.H > a.Y+0.01 {
				t.Errorf("%s is over %s", a.Path, b.Path)
			}
		}
		bytes += float64(a.Bytes)
		area += a.W * a.H
	}
	for _, a := range tiles { // frames and gaps take a little
		if got, want := a.W*a.H/area, float64(a.Bytes)/bytes; math.Abs(got-want) > 0.15*want+0.002 {
			t.Errorf("%s has %.4f of the area, %.4f of the bytes", a.Path, got, want)
		}
	}
	if tiles := report.Treemap(imageOf(t, "dir a\nfile empty \"\"").Tree); len(tiles) != 0 {
		t.Errorf("of nothing: %+v", tiles)
	}
}

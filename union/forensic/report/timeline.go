package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
)

// A date is a year, a month of it, or a day of that; what it is not is 0.
type date struct{ y, m, d int }

func dateOf(sec int64) date {
	t := time.Unix(sec, 0).UTC()
	return date{t.Year(), int(t.Month()), t.Day()}
}

func (d date) month() date { return date{d.y, d.m, 0} }
func (d date) year() date  { return date{d.y, 0, 0} }

// in tells whether a date is a part of another one, one step smaller.
func (d date) in(o date) bool {
	return d.y == o.y && (o.m == 0 && d.m != 0 && d.d == 0 || o.m != 0 && d.m == o.m && d.d != 0)
}

func (d date) String() string {
	switch {
	case d.m == 0:
		return fmt.Sprintf("%04d", d.y)
	case d.d == 0:
		return fmt.Sprintf("%04d-%02d", d.y, d.m)
	}
	return fmt.Sprintf("%04d-%02d-%02d", d.y, d.m, d.d)
}

// label is what stands below a bar.
func (d date) label() string {
	switch {
	case d.m == 0:
		return fmt.Sprint(d.y)
	case d.d == 0:
		return time.Month(d.m).String()[:3]
	}
	return fmt.Sprint(d.d)
}

func compareDates(a, b date) int {
	return cmp.Or(cmp.Compare(a.y, b.y), cmp.Compare(a.m, b.m), cmp.Compare(a.d, b.d))
}

// A timeline is how many entries of each layer have their time of change in a year, a month, a day.
type timeline struct {
	layers int
	counts map[date][]int
}

func newTimeline(layers int) *timeline { return &timeline{layers, map[date][]int{}} }

func (t *timeline) add(layer int, sec int64) {
	day := dateOf(sec)
	for _, d := range []date{day, day.month(), day.year()} {
		if t.counts[d] == nil {
			t.counts[d] = make([]int, t.layers)
		}
		t.counts[d][layer]++
	}
}

func (t *timeline) total(d date) (n int) {
	for _, k := range t.counts[d] {
		n += k
	}
	return n
}

// A chart has a bar for each year, month or day that has entries, with a part for each layer.
type chart struct {
	Bars  []bar
	Width int
}

type bar struct {
	Date, Label string
	Zoom        bool // there is a section that shows its parts
	Entries     int
	X, W        int
	Parts       []part
}

type part struct {
	Layer, Entries, Y, H int
}

const (
	barWidth    = 26
	chartHeight = 160
	// maxBars is how many years are shown, the last ones: the others are not likely to be true.
	maxBars = 60
	// maxDays bounds the days that are told of one by one, those with the most entries.
	maxDays = 1500
	// maxPlaces is how many places are named for a day.
	maxPlaces = 3
)

// chart draws dates side by side. What has no entries is left out: an archive of the
// year 1970 would make the page wide.
func (t *timeline) chart(dates []date, zoom bool) chart {
	most := 1
	for _, d := range dates {
		most = max(most, t.total(d))
	}
	ch := chart{Width: barWidth * max(len(dates), 12)}
	for i, d := range dates {
		b := bar{Date: d.String(), Label: d.label(), Zoom: zoom, Entries: t.total(d), X: i * barWidth, W: barWidth - 4}
		top := chartHeight
		for j, n := range t.counts[d] {
			if n > 0 {
				h := max(1, n*chartHeight/most)
				top -= h
				b.Parts = append(b.Parts, part{Layer: j, Entries: n, Y: max(top, 0), H: h})
			}
		}
		ch.Bars = append(ch.Bars, b)
	}
	return ch
}

// parts are the months of a year, or the days of a month.
func (t *timeline) parts(of date) []date {
	var list []date
	for d := range t.counts {
		if d.in(of) {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, compareDates)
	return list
}

// A zoomed year or month is a section that shows its parts.
type zoomed struct {
	Date, Up string // Up: "" is the years
	Chart    chart
	Days     []dayRow
	Inner    []zoomed
}

// A dayRow says where the entries of a day are.
type dayRow struct {
	Date    string
	Entries int
	Layers  []int // that have some
	Places  []placeRow
}

type placeRow struct {
	Path    string
	Entries int
}

// years is the chart of the whole, and what each bar leads to.
func (t *timeline) years(layers []*layer.Layer) (chart, []zoomed) {
	var years []date
	for d := range t.counts {
		if d.m == 0 {
			years = append(years, d)
		}
	}
	slices.SortFunc(years, compareDates)
	years = years[max(0, len(years)-maxBars):]
	days := t.places(layers, t.busiest(years))
	var list []zoomed
	for _, y := range years {
		list = append(list, t.zoom(y, days))
	}
	return t.chart(years, true), list
}

func (t *timeline) zoom(year date, days map[date][]placeRow) zoomed {
	months := t.parts(year)
	z := zoomed{Date: year.String(), Chart: t.chart(months, true)}
	for _, m := range months {
		in := zoomed{Date: m.String(), Up: year.String()}
		list := t.parts(m)
		in.Chart = t.chart(list, false)
		for _, d := range list {
			if places, ok := days[d]; ok {
				in.Days = append(in.Days, dayRow{d.String(), t.total(d), t.layersOf(d), places})
			}
		}
		z.Inner = append(z.Inner, in)
	}
	return z
}

func (t *timeline) layersOf(d date) (list []int) {
	for i, n := range t.counts[d] {
		if n > 0 {
			list = append(list, i+1)
		}
	}
	return list
}

// busiest are the days of some years that have the most entries.
func (t *timeline) busiest(years []date) []date {
	if len(years) == 0 {
		return nil
	}
	var days []date
	for d := range t.counts {
		if d.d != 0 && d.y >= years[0].y {
			days = append(days, d)
		}
	}
	slices.SortFunc(days, func(a, b date) int { return cmp.Or(cmp.Compare(t.total(b), t.total(a)), compareDates(a, b)) })
	return days[:min(len(days), maxDays)]
}

// places names where the entries of days are, by a second walk: to keep it for all days
// would cost as much as the image has entries.
func (t *timeline) places(layers []*layer.Layer, days []date) map[date][]placeRow {
	count := map[date]map[string]int{}
	for _, d := range days {
		count[d] = map[string]int{}
	}
	for r := range forensic.Records(layers) {
		if r.Whiteout {
			continue
		}
		if c := count[dateOf(r.Entry.Sec)]; c != nil {
			c[place(r.Path)]++
		}
	}
	out := map[date][]placeRow{}
	for d, c := range count {
		paths := slices.SortedFunc(maps.Keys(c), func(a, b string) int { return cmp.Or(cmp.Compare(c[b], c[a]), cmp.Compare(a, b)) })
		for _, p := range paths[:min(len(paths), maxPlaces)] {
			out[d] = append(out[d], placeRow{p, c[p]})
		}
	}
	return out
}

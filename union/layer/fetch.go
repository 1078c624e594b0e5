package layer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/cache"
)

// fetchStep is how much Fetch asks for at a time: enough for requests of full
// size, and less than the cache holds in memory when the disk is full.
const fetchStep = 16 << 20

// Fetch brings everything that is missing into the cache, so that the layer can
// be read without its source. It is safe beside reads, and goes on where an
// earlier one was interrupted. It reads the blob from its first byte to its last, one
// request after the other, as a sequential reader would: holes that lie close
// together come with one request.
func (l *Layer) Fetch(ctx context.Context) error {
	if l.lazy == nil {
		return nil
	}
	return l.fetch(ctx, l.pack.Size())
}

// FetchPrefix brings into the cache what stands in the first end bytes of the blob. It
// does nothing for a layer that is complete.
func (l *Layer) FetchPrefix(ctx context.Context, end int64) error {
	if l.lazy == nil {
		return nil
	}
	z := l.lazy
	i := sort.Search(z.count(), func(i int) bool { return z.startOf(i) >= end })
	if i == 0 {
		return nil
	}
	_, unit := z.units(i - 1)
	return l.fetch(ctx, z.unit[unit].Off+z.unit[unit].Len)
}

// Landmark returns the end of the part of the blob that holds the files which whoever
// built the image wants to be fetched at once; ok is false when there is no such part.
// FetchPrefix fetches it.
func (l *Layer) Landmark() (end int64, ok bool) { return l.prefix, l.prefix > 0 }

// fetch brings the first size bytes of the pack into the cache.
func (l *Layer) fetch(ctx context.Context, size int64) error {
	for run, ok := l.hole(0, size); ok; run, ok = l.hole(run.Off+run.N, size) {
		if err := l.FetchRun(ctx, run); err != nil {
			return err
		}
	}
	return nil
}

// hole is the first run of missing units at off, the beginning of one, or behind it, up to
// fetchStep, and before size.
func (l *Layer) hole(off, size int64) (run Range, ok bool) {
	for off < size && run.N < fetchStep {
		start, end := l.pack.Unit(off)
		switch missing := !l.pack.Has(start, end-start); {
		case missing && !ok:
			run, ok = Range{start, end - start}, true
		case missing:
			run.N = end - run.Off
		case ok:
			return run, true
		}
		off = end
	}
	return run, ok
}

// Cached tells whether all of a regular file is in the cache.
func (l *Layer) Cached(id ID) bool {
	if l.dir != nil {
		return !l.closed.Load()
	}
	for _, x := range l.tree.fileExtents(id) {
		if !l.pack.Has(x.at, x.n) {
			return false
		}
	}
	return !l.closed.Load()
}

// IndexKind tells, without opening a layer, where Open would take its tree from by now
// ("toc": the table of contents of eStargz or zstd:chunked, "tar": the archive, which is
// read whole the first time), and whether its content would then be fetched only when it is read.
func IndexKind(d ocispec.Descriptor, s *cache.Store) (index string, lazy bool) {
	if len(tocSources(d.Annotations)) > 0 {
		return "toc", true
	}
	b, err := s.Index(d.Digest)
	if err != nil {
		return "tar", false
	}
	x, err := decodeIndex(b)
	if err != nil || x.blob != d.Digest || len(x.sections) == 0 {
		return "tar", false
	}
	if x.soci != "" {
		return "soci", true
	}
	return "tar", true
}

// A Range is N bytes at Off.
type Range struct {
	Off int64 `json:"offset"`
	N   int64 `json:"length"`
}

// Part is some bytes of a regular file of a layer. No ranges are the whole file.
type Part struct {
	ID     ID
	Ranges []Range
}

const (
	// fetchGap is what is fetched between two wanted runs to save a request: at
	// 100 Mbit/s it takes half of a round trip of 20 ms, before compression.
	fetchGap = 128 << 10
	// fetchMost is the largest run that is joined of several units: a read that needs
	// another place of the layer shares the link with a few of them.
	fetchMost = 1 << 20
)

// Missing returns what would have to be fetched for parts of files, in the order of the
// blob, neighbours joined: runs for FetchRun.
func (l *Layer) Missing(parts []Part) []Range {
	if l.lazy == nil {
		return nil
	}
	var units []Range
	for _, p := range parts {
		for _, x := range l.tree.fileExtents(p.ID) {
			for _, r := range x.within(p.Ranges) {
				units = l.addMissing(units, r)
			}
		}
	}
	slices.SortFunc(units, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	return join(slices.Compact(units))
}

// within is where in the pack those bytes of an extent stand that lie in ranges of the file.
func (x extent) within(ranges []Range) (runs []Range) {
	if len(ranges) == 0 {
		return []Range{{x.at, x.n}}
	}
	for _, r := range ranges {
		first, end := max(r.Off, x.off), min(r.Off+r.N, x.off+x.n)
		if first < end {
			runs = append(runs, Range{x.at + first - x.off, end - first})
		}
	}
	return runs
}

// addMissing adds the units of a run of the pack that are not there.
func (l *Layer) addMissing(units []Range, run Range) []Range {
	for off := run.Off; off < run.Off+run.N; {
		start, end := l.pack.Unit(off)
		if !l.pack.Has(start, end-start) {
			units = append(units, Range{start, end - start})
		}
		off = end
	}
	return units
}

// join joins sorted units that are close to each other, up to fetchMost.
func join(units []Range) (runs []Range) {
	for _, u := range units {
		if k := len(runs) - 1; k >= 0 {
			r := &runs[k]
			if end := u.Off + u.N; u.Off-(r.Off+r.N) <= fetchGap && end-r.Off <= fetchMost {
				r.N = end - r.Off
				continue
			}
		}
		runs = append(runs, u)
	}
	return runs
}

// FetchRun brings a run of Missing into the cache.
func (l *Layer) FetchRun(ctx context.Context, r Range) error {
	if err := l.pack.Ensure(ctx, r.Off, r.N, l.lazy.fill); err != nil {
		return fmt.Errorf("fetch layer %s: %w", l.digest, err)
	}
	return nil
}

// Present tells how many bytes of a layer's content are in the cache now, of how many.
func (l *Layer) Present() (have, total int64) {
	if l.dir != nil {
		return l.dir.size, l.dir.size
	}
	l.pack.Refresh()
	return l.pack.Present(), l.pack.Size()
}

package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sort"
	"sync"

	"github.com/layerfs/layerfs/cache"
)

// pieces are what a blob is cut into by an index: runs that are fetched, verified
// and decoded by themselves, in the order of the blob. One piece is one unit of the
// pack or several, and no unit belongs to two.
type pieces interface {
	count() int
	// bounds are piece i's first byte in the blob and the one behind its last. Pieces may
	// overlap by what they share: a gzip member, or a byte that two blocks meet in.
	bounds(i int) (off, end int64)
	// units are the first and the last unit that come out of piece i.
	units(i int) (first, last int)
	// joined tells whether piece i+1 goes on in the file that piece i is of.
	joined(i int) bool
	// read decodes pieces first … last from body, which begins where first does, and
	// puts what it has verified as it arrives.
	read(body io.Reader, first, last int, put putUnit) error
}

// A putUnit hands a unit of the pack to the cache.
type putUnit = func(unit int, b []byte) error

// Sizes of requests, in bytes of the blob.
const (
	// minRequest is what a read fetches at least: files of one directory are side by
	// side, and are read one after the other. A link of 100 Mbit/s carries eight times as much
	// in a round trip of 20 ms; of what a first guess brings most is never read.
	minRequest = 30 << 10
	// maxRequest is what sequential reads grow to.
	maxRequest = 8 << 20
	// maxFile is the longest file that is fetched to its end when its start is read: most
	// programs and libraries are below it, and their pages are wanted in no order.
	maxFile = 4 << 20
	// minAhead is the request of a reader who has proven to be sequential, and is read ahead for.
	minAhead = 2 << 20
	// maxGap of bytes that are there already is fetched again to save a request.
	maxGap = 64 << 10
)

// lazy fetches the pieces of a layer when they are read. Several fetches may run at
// once, of different pieces.
type lazy struct {
	src  *source
	pack *cache.Pack
	pieces
	unit []cache.Unit

	mu     sync.Mutex
	active []*fetch // protected by mu
	heads  [8]head  // protected by mu; where the last fetches ended, oldest first
}

// A head is where a sequential reader would go on.
type head struct {
	next   int   // piece
	window int64 // bytes fetched for it last
}

// A fetch is one request: pieces first … last.
type fetch struct {
	first, last int
	window      int64
	done        chan struct{}
}

func newLazy(src *source, pack *cache.Pack, p pieces, units []cache.Unit) *lazy {
	return &lazy{src: src, pack: pack, pieces: p, unit: units}
}

// fill is a cache.Fill. What another call is fetching already is waited for, not fetched
// twice. Behind a sequential reader it goes on with what comes next: who waits for this
// fill has been woken by then, and the link is busy while he reads.
func (z *lazy) fill(ctx context.Context, firstUnit, lastUnit int, put func(int, []byte) error) error {
	first, last := z.pieceOf(firstUnit), z.pieceOf(lastUnit)
	var latest *fetch
	for waited := false; first <= last; {
		if waited && z.has(first) {
			first++
			continue
		}
		f, mine := z.claim(first, last)
		latest = f
		if !mine {
			select {
			case <-f.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			waited = true
			continue
		}
		err := z.run(ctx, f, put)
		z.release(f)
		if err != nil {
			return err
		}
		first = f.last + 1
	}
	if latest != nil && latest.window >= minAhead {
		z.ahead(ctx, latest, put)
	}
	return nil
}

// ahead fetches what follows f, unless somebody does. It is no loss when it fails: who
// wants it asks again.
func (z *lazy) ahead(ctx context.Context, f *fetch, put putUnit) {
	next := f.last + 1
	if next >= z.count() || z.has(next) {
		return
	}
	if g, mine := z.claim(next, next); mine {
		_ = z.run(ctx, g, put)
		z.release(g)
	}
}

func (z *lazy) pieceOf(unit int) int {
	return sort.Search(z.count(), func(i int) bool {
		_, last := z.units(i)
		return last >= unit
	})
}

func (z *lazy) has(i int) bool {
	first, last := z.units(i)
	off := z.unit[first].Off
	return z.pack.Has(off, z.unit[last].Off+z.unit[last].Len-off)
}

// claim returns the fetch under way that brings piece first, or a new one of the
// caller's that begins there and reaches at least to last, or as far as others do not.
func (z *lazy) claim(first, last int) (f *fetch, mine bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	limit := z.count()
	for _, f := range z.active {
		if f.first <= first && first <= f.last {
			return f, false
		}
		if f.first > first {
			limit = min(limit, f.first)
		}
	}
	window := z.windowLocked(first)
	f = &fetch{first: first, last: z.reach(first, min(last, limit-1), limit, window), window: window, done: make(chan struct{})}
	z.active = append(z.active, f)
	z.heads[len(z.heads)-1] = head{next: f.last + 1, window: window}
	return f, true
}

// windowLocked is how much to fetch from piece first on: twice as much as last
// time when the reader goes on where a fetch ended. The last of heads is free then.
func (z *lazy) windowLocked(first int) int64 {
	window, used := int64(minRequest), 0
	for i, h := range z.heads {
		if h.next <= first && h.window > 0 && z.startOf(first)-z.startOf(h.next) <= maxGap {
			window, used = min(2*h.window, maxRequest), i
		}
	}
	copy(z.heads[used:], z.heads[used+1:])
	return window
}

// startOf is where piece i begins, or where the last one ends.
func (z *lazy) startOf(i int) int64 {
	if n := z.count(); i >= n {
		return z.endOf(n - 1)
	}
	off, _ := z.bounds(i)
	return off
}

func (z *lazy) endOf(i int) int64 {
	_, end := z.bounds(i)
	return end
}

// reach returns the last piece of a fetch from first on: last, what is missing behind it
// within the window, before limit, and the rest of a file that is no long one.
func (z *lazy) reach(first, last, limit int, window int64) int {
	start := z.startOf(first)
	for last > first && z.endOf(last)-start > maxRequest {
		last--
	}
	last = z.restOf(last, limit, start)
	for i := last + 1; i < limit && z.endOf(i)-start <= window && z.startOf(i)-z.endOf(last) <= maxGap; i++ {
		if !z.has(i) {
			last = i
		}
	}
	return last
}

// restOf returns the last piece of the file that piece last is of, if a fetch from start
// to there is not too long and nothing of it is there already; otherwise last.
func (z *lazy) restOf(last, limit int, start int64) int {
	end := last
	for end < limit && z.joined(end) {
		end++
		if end == limit || z.has(end) || z.endOf(end)-start > maxFile {
			return last
		}
	}
	return end
}

func (z *lazy) release(f *fetch) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for i, g := range z.active {
		if g == f {
			z.active = append(z.active[:i], z.active[i+1:]...)
			break
		}
	}
	close(f.done)
}

// run fetches its pieces, from another host where those of one are wrong.
func (z *lazy) run(ctx context.Context, f *fetch, put putUnit) error {
	first := f.first
	for doubts := 0; ; doubts++ {
		body, err := z.request(ctx, first, f.last, put)
		if !errors.Is(err, ErrDigest) || doubts == maxDoubts || !doubt(body) {
			return err
		}
		for first < f.last && z.has(first) {
			first++
		}
	}
}

// request makes the request and puts its pieces as they arrive. It returns the stream, closed.
func (z *lazy) request(ctx context.Context, first, last int, put putUnit) (io.Reader, error) {
	start := z.startOf(first)
	body, err := z.src.open(ctx, start, z.endOf(last)-start)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if err = z.read(body, first, last, put); err == nil || errors.Is(err, ErrDigest) {
		z.src.check(Check{What: "range", Off: start, N: z.endOf(last) - start, Err: err})
	}
	return body, err
}

// maxPreload is what is unpacked at once of the end of a blob: a few milliseconds.
const maxPreload = 4 << 20

// preload puts pieces that lie in tail, the end of the blob from start on, which
// is there already: of small layers that is all. It is no loss when it fails.
func (z *lazy) preload(ctx context.Context, tail []byte, start int64) {
	first := sort.Search(z.count(), func(i int) bool { return z.startOf(i) >= start })
	if first == z.count() {
		return
	}
	unit, _ := z.units(first)
	off := z.unit[unit].Off
	local := newLazy(&source{r: bytesRanger{tail, start}, checked: z.src.checked}, z.pack, z.pieces, z.unit)
	if n := z.pack.Size() - off; n <= maxPreload {
		_ = z.pack.Ensure(ctx, off, n, local.fill)
	}
}

// bytesRanger is a Ranger of the part of a blob from start on.
type bytesRanger struct {
	b     []byte
	start int64
}

func (r bytesRanger) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	off -= r.start
	if off < 0 || n < 0 || off+n > int64(len(r.b)) {
		return nil, errors.New("outside of what is there")
	}
	return io.NopCloser(bytes.NewReader(r.b[off : off+n])), nil
}

package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/layerfs/layerfs/cache"
)

// A chunk is a run of a file's bytes that is compressed, fetched and verified by
// itself; it is a unit of the pack. Chunks stand in the order of off and inner.
type chunk struct {
	off   int64 // where its gzip member begins in the blob
	inner int64 // how many uncompressed bytes of the member stand before it
	n     int64 // uncompressed bytes
	sum   [sha256.Size]byte
}

// Sizes of requests, in bytes of the blob.
const (
	// minRequest is what a read fetches at least: files of one directory are side by
	// side, and are read one after the other.
	minRequest = 128 << 10
	// maxRequest is what sequential reads grow to.
	maxRequest = 8 << 20
	// maxGap of bytes that are there already is fetched again to save a request.
	maxGap = 64 << 10
)

// lazy fetches the chunks of a layer that has an index of its own. Several fetches
// may run at once, of different chunks.
type lazy struct {
	src    *source
	pack   *cache.Pack
	chunks []chunk
	units  []cache.Unit
	end    int64 // where the last chunk ends in the blob

	mu     sync.Mutex
	active []*fetch // protected by mu
	heads  [8]head  // protected by mu; where the last fetches ended, oldest first
}

// A head is where a sequential reader would go on.
type head struct {
	next   int   // chunk
	window int64 // bytes fetched for it last
}

// A fetch is one request: chunks first … last.
type fetch struct {
	first, last int
	done        chan struct{}
}

func newLazy(src *source, pack *cache.Pack, x *index, units []cache.Unit) *lazy {
	return &lazy{src: src, pack: pack, chunks: x.chunks, units: units, end: x.blobEnd}
}

// fill is a cache.Fill. What another call is fetching already is waited for, not fetched twice.
func (z *lazy) fill(ctx context.Context, first, last int, put func(int, []byte) error) error {
	for waited := false; first <= last; {
		if waited && z.has(first) {
			first++
			continue
		}
		f, mine := z.claim(first, last)
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
	return nil
}

func (z *lazy) has(i int) bool { return z.pack.Has(z.units[i].Off, z.units[i].Len) }

// claim returns the fetch under way that brings chunk first, or a new one of the
// caller's that begins there and reaches at least to last, or as far as others do not.
func (z *lazy) claim(first, last int) (f *fetch, mine bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	limit := len(z.chunks)
	for _, f := range z.active {
		if f.first <= first && first <= f.last {
			return f, false
		}
		if f.first > first {
			limit = min(limit, f.first)
		}
	}
	window := z.windowLocked(first)
	f = &fetch{first: first, last: z.reach(first, min(last, limit-1), limit, window), done: make(chan struct{})}
	z.active = append(z.active, f)
	z.heads[len(z.heads)-1] = head{next: f.last + 1, window: window}
	return f, true
}

// windowLocked is how much to fetch from chunk first on: twice as much as last
// time when the reader goes on where a fetch ended. The last of heads is free then.
func (z *lazy) windowLocked(first int) int64 {
	window, used := int64(minRequest), 0
	for i, h := range z.heads {
		if h.next <= first && h.window > 0 && z.chunks[first].off-z.startOf(h.next) <= maxGap {
			window, used = min(2*h.window, maxRequest), i
		}
	}
	copy(z.heads[used:], z.heads[used+1:])
	return window
}

func (z *lazy) startOf(i int) int64 {
	if i < len(z.chunks) {
		return z.chunks[i].off
	}
	return z.end
}

// endOf is where chunk i ends in the blob at the latest: at the next member.
func (z *lazy) endOf(i int) int64 {
	off := z.chunks[i].off
	return z.startOf(i + sort.Search(len(z.chunks)-i, func(k int) bool { return z.chunks[i+k].off > off }))
}

// reach returns the last chunk of a fetch from first on: last, and what is missing
// behind it within the window, before limit.
func (z *lazy) reach(first, last, limit int, window int64) int {
	start := z.chunks[first].off
	for last > first && z.endOf(last)-start > maxRequest {
		last--
	}
	for i := last + 1; i < limit && z.endOf(i)-start <= window && z.startOf(i)-z.endOf(last) <= maxGap; i++ {
		if !z.has(i) {
			last = i
		}
	}
	return last
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

// run makes the request and puts its chunks as they arrive.
func (z *lazy) run(ctx context.Context, f *fetch, put func(int, []byte) error) error {
	start := z.chunks[f.first].off
	body, err := z.src.open(ctx, start, z.endOf(f.last)-start)
	if err != nil {
		return err
	}
	defer body.Close()
	m := &memberReader{body: body, at: start}
	for i := f.first; i <= f.last; i++ {
		if z.chunks[i].off != z.chunks[max(i-1, f.first)].off || i == f.first {
			if err := m.open(z.chunks[i].off, z.endOf(i), z.needOf(i, f.last)); err != nil {
				return err
			}
		}
		b, err := m.chunk(&z.chunks[i])
		if err != nil {
			return fmt.Errorf("%w: chunk at %d: %w", ErrDigest, z.chunks[i].off, err)
		}
		if err := put(i, b); err != nil {
			return err
		}
	}
	return nil
}

// needOf is how many uncompressed bytes of chunk i's member chunks up to last need.
func (z *lazy) needOf(i, last int) int64 {
	need := int64(0)
	for k := i; k <= last && z.chunks[k].off == z.chunks[i].off; k++ {
		need = max(need, z.chunks[k].inner+z.chunks[k].n)
	}
	return need
}

// maxPreload is what is unpacked at once of the end of a blob: a few milliseconds.
const maxPreload = 4 << 20

// preload puts chunks that lie in tail, the end of the blob from start on, which
// is there already: of small layers that is all. It is no loss when it fails.
func (z *lazy) preload(ctx context.Context, tail []byte, start int64) {
	first := sort.Search(len(z.chunks), func(i int) bool { return z.chunks[i].off >= start })
	if first == len(z.chunks) {
		return
	}
	off := z.units[first].Off
	local := newLazy(&source{r: bytesRanger{tail, start}}, z.pack, &index{chunks: z.chunks, blobEnd: z.end}, z.units)
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

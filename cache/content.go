package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// What a process knows of a unit.
const (
	unknown = iota // not there when the map was read; another process may have filled it since
	marked         // there, says the map; its CRC was not checked in this process
	checked        // there, and its bytes are what they were when they were written
)

// content is an open pack file, shared by all Packs of this process that stand on it.
type content struct {
	s   *Store
	d   digest.Digest
	f   file   // holds a shared flock
	dir string // of the layer; "" for a pack that is not in the store
	// noFile is why it is not in the store.
	noFile error
	size   int64
	ends   []int64 // where each unit ends

	genOff, usedOff int64 // in the file
	regions         []region
	flushed         atomic.Int64 // when times of use were written to the file last, in milliseconds

	state     []atomic.Uint32
	unchecked atomic.Int64 // units whose state is not checked
	present   atomic.Int64 // bytes of the units whose state is not unknown

	// stripes protect the bytes and the entry of unit i: stripes[i%len].
	stripes [16]sync.Mutex
	// writing is held shared by who changes the file, alone by who marks it clean.
	writing sync.RWMutex
	writes  atomic.Int64 // changes of the file so far

	// ctx is what the fills of this pack run under.
	ctx    context.Context
	cancel context.CancelFunc
	fills  sync.WaitGroup

	refs int // protected by Store.mu
	// sick: the disk failed to read the file; nothing of it is believed, or written to it, any more.
	sick atomic.Bool
	// wanted: somebody opened it to read, not only to evict.
	wanted atomic.Bool

	mu      sync.Mutex
	h       header          // protected by mu
	units   []Unit          // protected by mu; nil when the sums are not known
	flights map[int]*flight // protected by mu; by unit
	closing bool            // protected by mu
	idle    *time.Timer     // protected by mu; settles the pack when nothing was written for a while

	over overlay
}

// newContent takes f over, whose map was m, read after the generations gens (nil: all 0).
func newContent(s *Store, d digest.Digest, f file, h header, ends []int64, m []byte, gens []int64) *content {
	c := &content{s: s, d: d, f: f, h: h, size: h.size, ends: ends, flights: map[int]*flight{}}
	c.genOff, c.usedOff, c.regions = h.genOff(), h.usedOff(), make([]region, h.regions())
	for r, gen := range gens {
		c.regions[r].gen.Store(uint64(gen))
	}
	c.flushed.Store(now())
	c.state = make([]atomic.Uint32, len(ends))
	c.unchecked.Store(int64(len(ends)))
	c.over.limit = overlayLimit
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	for i := range ends {
		if _, there := entryCRC(m[i*entrySize:], i); there {
			c.setState(i, marked)
		}
	}
	return c
}

// discard closes a content that nobody has a reference to.
func (c *content) discard() {
	c.cancel()
	letGo(c.f)
}

func (c *content) start(i int) int64 {
	if i == 0 {
		return 0
	}
	return c.ends[i-1]
}

func (c *content) length(i int) int64          { return c.ends[i] - c.start(i) }
func (c *content) entryOff(i int) int64        { return c.mapOff() + int64(i)*entrySize }
func (c *content) mapOff() int64               { return roundUp(c.size) }
func (c *content) complete() bool              { return c.present.Load() == c.size }
func (c *content) stripe(i int) *sync.Mutex    { return &c.stripes[i%len(c.stripes)] }
func (c *content) is(i int, state uint32) bool { return c.state[i].Load() == state }

// setState keeps the counters true. It needs the stripe. What has arrived is counted before it can be seen:
// who has read every unit then finds the content complete.
func (c *content) setState(i int, to uint32) {
	from := c.state[i].Load()
	if from == unknown && to != unknown {
		c.present.Add(c.length(i))
	}
	c.state[i].Store(to)
	if from != unknown && to == unknown {
		c.present.Add(-c.length(i))
	}
	if from != checked && to == checked {
		c.unchecked.Add(-1)
	} else if from == checked && to != checked {
		c.unchecked.Add(1)
	}
}

// span returns the units that hold bytes off … off+n-1; last < first when there are none.
func (c *content) span(off, n int64) (first, last int, err error) {
	if off < 0 || n < 0 {
		return 0, -1, fmt.Errorf("%d bytes at %d: %w", n, off, fs.ErrInvalid)
	}
	end := min(off+n, c.size)
	if end < off || n == 0 || off >= c.size { // also when off+n overflows
		if off+n < off {
			return 0, -1, fmt.Errorf("%d bytes at %d: %w", n, off, fs.ErrInvalid)
		}
		return 0, -1, nil
	}
	first = c.unitAt(off)
	if end <= c.ends[first] {
		return first, first, nil
	}
	return first, c.unitAt(end - 1), nil
}

// unitAt returns the unit that holds the byte at off.
func (c *content) unitAt(off int64) int {
	return sort.Search(len(c.ends), func(i int) bool { return c.ends[i] > off })
}

// there reports whether unit i can be read, and looks at the disk when it is not known
// to be: at its entry, then at its bytes. Damaged units are dropped.
func (c *content) there(i int) bool {
	if c.is(i, checked) || c.over.has(i) {
		return true
	}
	if c.sick.Load() {
		return false
	}
	lock := c.stripe(i)
	lock.Lock()
	defer lock.Unlock()
	if c.is(i, checked) {
		return true
	}
	crc, ok := c.entry(i)
	if !ok {
		c.setState(i, unknown)
		return false
	}
	sum, err := c.sum(i)
	if err == nil && sum == crc {
		c.setState(i, checked)
		return true
	}
	c.s.log.Warn("damaged unit dropped", "layer", c.d, "unit", i, "off", c.start(i), "len", c.length(i), "crc", sum, "want", crc, "err", err)
	c.dropLocked(i)
	return false
}

// entry reads the map entry of unit i: other processes write there too.
func (c *content) entry(i int) (crc uint32, there bool) {
	var b [entrySize]byte
	if _, err := c.f.ReadAt(b[:], c.entryOff(i)); err != nil {
		return 0, false
	}
	return entryCRC(b[:], i)
}

// sumBuffers are for reading units back.
var sumBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// sum reads unit i and returns the CRC-32C of its bytes.
func (c *content) sum(i int) (uint32, error) {
	buf := sumBuffers.Get().(*[128 << 10]byte)
	defer sumBuffers.Put(buf)
	var crc uint32
	for off, end := c.start(i), c.ends[i]; off < end; {
		b := buf[:min(end-off, int64(len(buf)))]
		if _, err := c.f.ReadAt(b, off); err != nil {
			return 0, err
		}
		crc = crc32.Update(crc, castagnoli, b)
		off += int64(len(b))
	}
	return crc, nil
}

// dropLocked needs the stripe. That the entry cannot be cleared does no harm: it is
// checked again by whoever believes it.
func (c *content) dropLocked(i int) {
	c.setState(i, unknown)
	if err := c.change(func() error { return c.writeEntry(i, 0, false) }); err != nil {
		c.s.log.Warn("clear map entry", "layer", c.d, "unit", i, "err", err)
	}
}

func (c *content) writeEntry(i int, crc uint32, there bool) error {
	var b [entrySize]byte
	putEntry(b[:], i, c.ends[i], crc, there)
	_, err := c.f.WriteAt(b[:], c.entryOff(i))
	return err
}

// change runs write, which changes the file.
func (c *content) change(write func() error) error {
	c.writing.RLock()
	defer c.writing.RUnlock()
	defer c.writes.Add(1)
	if err := c.dirty(); err != nil {
		return err
	}
	return write()
}

// dirty says in the header that the map may be ahead of the disk. The write is not
// synced, because the CRCs guard the moment between.
func (c *content) dirty() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.h.clean {
		return nil
	}
	c.h.clean, c.h.boot = false, c.s.boot
	return c.writeHeaderLocked()
}

func (c *content) writeHeaderLocked() error {
	_, err := c.f.WriteAt(c.h.encode(), c.h.headerOff())
	return err
}

// put is what a Fill gets: it verifies unit i, writes it, marks it, and wakes who waits
// for it. b is the caller's again when put returns.
func (c *content) put(i int, b []byte) error {
	if i < 0 || i >= len(c.ends) || int64(len(b)) != c.length(i) {
		return fmt.Errorf("fill unit %d of %d with %d bytes: %w", i, len(c.ends), len(b), fs.ErrInvalid)
	}
	if !c.is(i, checked) && !c.over.has(i) {
		if err := c.verify(i, b); err != nil {
			return err
		}
		c.keep(i, b)
	}
	c.arrived(i)
	return nil
}

func (c *content) verify(i int, b []byte) error {
	c.mu.Lock()
	units := c.units
	c.mu.Unlock()
	if units == nil {
		return fmt.Errorf("fill unit %d: its sum is not known: %w", i, ErrCorrupt)
	}
	if units[i].Vouched {
		return nil
	}
	if sum := sha256.Sum256(b); sum != units[i].Sum {
		return fmt.Errorf("fill unit %d, %d bytes at %d: %w: sha256:%x, not sha256:%x", i, len(b), units[i].Off, ErrCorrupt, sum, units[i].Sum)
	}
	return nil
}

// keep writes a verified unit: data, then mark. Where the disk refuses (it is full, or
// went read-only) the unit stays in memory, because readers can do with it what they came for.
func (c *content) keep(i int, b []byte) {
	var err error
	if c.dir != "" {
		err = c.s.room(int64(len(b))) // holding no lock: it may evict
		defer c.s.wrote(int64(len(b)))
		r := c.regionOf(i)
		c.hold(r)
		defer c.release(r)
	}
	lock := c.stripe(i)
	lock.Lock()
	defer lock.Unlock()
	if c.is(i, checked) {
		return
	}
	if err == nil {
		err = c.change(func() error { return c.write(i, b) })
	}
	if err == nil {
		c.setState(i, checked)
		return
	}
	if c.over.add(i, b, err) {
		c.s.log.Warn("write unit; kept in memory", "layer", c.d, "unit", i, "err", err)
	}
}

func (c *content) write(i int, b []byte) error {
	if c.noFile != nil {
		return c.noFile
	}
	if c.sick.Load() {
		return errNoFile
	}
	r, t := c.regionOf(i), now()
	if err := c.writeWord(c.usedOff, r, uint64(t)); err != nil {
		return err
	}
	c.regions[r].used.Store(t)
	if _, err := c.f.WriteAt(b, c.start(i)); err != nil {
		return err
	}
	return c.writeEntry(i, crc32.Checksum(b, castagnoli), true)
}

// readAt reads bytes that are there; where they are not, or not any more, the error is
// errGone: see region.go. Once units were kept in memory it must look at every unit: one may
// have been pushed out again since Ensure.
func (c *content) readAt(b []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read pack at %d: %w", off, fs.ErrInvalid)
	}
	if off >= c.size {
		return 0, io.EOF
	}
	short := int64(len(b)) > c.size-off
	if short {
		b = b[:c.size-off]
	}
	if len(b) == 0 {
		return 0, nil
	}
	if n, err = c.readThere(b, off); err == nil && short {
		err = io.EOF
	}
	return n, err
}

// readThere needs at least one byte in the pack.
func (c *content) readThere(b []byte, off int64) (n int, err error) {
	first := c.unitAt(off)
	last := first
	if off+int64(len(b)) > c.ends[first] {
		last = c.unitAt(off + int64(len(b)) - 1)
	}
	from, to := c.regionOf(first), c.regionOf(last)
	var few [4]uint64
	seen := few[:0]
	for r := from; r <= to; r++ {
		seen = append(seen, c.regions[r].gen.Load())
	}
	sick := c.sick.Load() // then all that readMixed finds is in memory
	if c.over.used.Load() {
		n, err = c.readMixed(b, off)
	} else {
		n, err = c.readDisk(b, off, first, last)
	}
	same := true
	if err == nil && !sick {
		same, err = c.sameGens(from, seen)
	}
	if err != nil {
		return 0, c.unreadable(err)
	}
	if !same {
		return 0, fmt.Errorf("read pack at %d: %w", off, errGone)
	}
	if !sick {
		c.use(from, to)
	}
	return n, nil
}

// unreadable makes an error of the disk one of a pack that can be fetched again: from now on
// its units are kept in memory.
func (c *content) unreadable(err error) error {
	c.mu.Lock()
	units := c.units
	c.mu.Unlock()
	if units == nil || errors.Is(err, errGone) {
		return err
	}
	if !c.sick.Swap(true) {
		c.s.log.Warn("read pack; kept in memory", "layer", c.d, "err", err)
		for r := range c.regions {
			c.forget(r)
		}
	}
	return fmt.Errorf("%w: %w", errGone, err)
}

func (c *content) readDisk(b []byte, off int64, first, last int) (n int, err error) {
	if c.unchecked.Load() != 0 {
		for i := first; i <= last; i++ {
			if !c.is(i, checked) {
				return 0, fmt.Errorf("read pack at %d: %w", off, errGone)
			}
		}
	}
	return c.f.ReadAt(b, off)
}

func (c *content) readMixed(b []byte, off int64) (n int, err error) {
	for i := c.unitAt(off); n < len(b); i++ {
		at := off + int64(n)
		part := b[n:]
		part = part[:min(int64(len(part)), c.ends[i]-at)]
		if !c.over.read(i, part, at-c.start(i)) {
			if !c.is(i, checked) {
				return n, fmt.Errorf("read pack at %d: %w", at, errGone)
			}
			if _, err := c.f.ReadAt(part, at); err != nil {
				return n, err
			}
		}
		n += len(part)
	}
	return n, nil
}

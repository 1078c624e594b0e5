package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// # Eviction under readers
//
// A pack is evicted by regions, of packs that are in use too, by any process. Nobody may
// take for content the zeros that are left. Region r is the units that begin in bytes
// r*regionSize … (r+1)*regionSize-1. Its generation, a random number in the file, changes whenever it is evicted.
//
// Who evicts has the region alone (a lock on one byte of the file, see lockByte), and
//
//  1. clears the entries of its units in the map,
//  2. makes a new generation in the file,
//  3. forgets what this process knows of its units, then takes over the generation,
//  4. punches the hole, and sets the time of use to 0.
//
// Who fills a unit shares the region while it writes time of use, data and entry, in this
// order: no entry is set over a hole that is made at the same time, and nothing takes room without a time of use.
//
// Who reads locks nothing. It notes the generation that this process's knowledge belongs to, looks
// whether the units are there, reads, and then reads the generation in the file. If that one is the same,
// step 2 had not been done when it was read, so step 4 had not begun when the data was read. If it is another,
// what was read counts for nothing: the process forgets what it knew of the units (each under its
// stripe), takes over the generation, and starts again. What it learns from then on it learns from
// entries that were cleared, or written after the hole; a unit it sees for the first time in
// a generation is held against its CRC besides.
//
// The order of 1 and 2 matters: who takes over the generation must find the entries cleared. The order of the
// two in step 3 matters: who reads under the new generation must not use what was known under the old one.
//
// To be killed between any two steps leaves a region whose entries say less than what
// there is, or whose time of use says that there is more: the next one evicts it again. A power loss may
// leave a hole under an entry, in a pack that is not clean and is thrown away, or, if not
// even the header was written, that the CRC gives away.
//
// A reader that found its bytes gone twice shares the region (hold) while it fetches and
// reads: nobody evicts it then, however small the cache is.

// region is what a process knows of a region.
type region struct {
	gen  atomic.Uint64 // the states of its units belong to this generation
	used atomic.Int64  // when it was read last here, in milliseconds; what the file says may be older

	mu    sync.Mutex
	holds int // protected by mu; how often hold was called: the lock is shared while it is not 0
}

const (
	// usedStep is how exact the time of the last use is, in milliseconds: a hot region is not written by every reader.
	usedStep = 100
	// usedFlush is how long others do not see it, in milliseconds.
	usedFlush = 5000
)

func now() int64 { return time.Now().UnixMilli() }

func (c *content) regionOf(unit int) int { return int(c.start(unit) / regionSize) }

// unitsOf returns the units of a region; last < first when none begins in it.
func (c *content) unitsOf(r int) (first, last int) {
	return c.firstFrom(int64(r) * regionSize), c.firstFrom(int64(r+1)*regionSize) - 1
}

// firstFrom returns the first unit that begins at off or behind it.
func (c *content) firstFrom(off int64) int {
	if off == 0 {
		return 0
	}
	return min(sort.Search(len(c.ends), func(i int) bool { return c.ends[i] >= off })+1, len(c.ends))
}

// lockByte is the byte that stands for region r: far behind the end of any file.
func lockByte(r int) int64 { return math.MaxInt64/2 + int64(r) }

// lockRegion takes, changes or gives up (F_UNLCK) this process's lock of a region. Open file
// description locks live and die with c.f, so that what a killed process held is free.
func (c *content) lockRegion(r int, kind int16, wait bool) error {
	cmd := unix.F_OFD_SETLK
	if wait {
		cmd = unix.F_OFD_SETLKW
	}
	for {
		err := unix.FcntlFlock(c.f.Fd(), cmd, &unix.Flock_t{Type: kind, Start: lockByte(r), Len: 1})
		if err != unix.EINTR {
			return err
		}
	}
}

// hold keeps everybody from evicting a region until release. It waits for who is at it, which takes moments.
// A file system without these locks has nobody who could evict.
func (c *content) hold(r int) {
	g := &c.regions[r]
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holds == 0 {
		if err := c.lockRegion(r, unix.F_RDLCK, true); err != nil {
			c.s.log.Debug("lock region", "layer", c.d, "region", r, "err", err)
		}
	}
	g.holds++
}

func (c *content) release(r int) {
	g := &c.regions[r]
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holds--
	if g.holds == 0 {
		_ = c.lockRegion(r, unix.F_UNLCK, false) // fails where hold did
	}
}

// holdSpan holds the regions of a span, and returns what releases them.
func (c *content) holdSpan(off, n int64) (release func()) {
	first, last, err := c.span(off, n)
	if err != nil || last < first {
		return func() {}
	}
	from, to := c.regionOf(first), c.regionOf(last)
	for r := from; r <= to; r++ {
		c.hold(r)
	}
	return func() {
		for r := from; r <= to; r++ {
			c.release(r)
		}
	}
}

// words are buffers for generations: those of a read of 1 MiB are few.
var words = sync.Pool{New: func() any { return new([64]byte) }}

// gensOf appends the generations of regions first … last, as they stand in the file.
func (c *content) gensOf(first, last int, gens []uint64) ([]uint64, error) {
	few := words.Get().(*[64]byte)
	defer words.Put(few)
	b := few[:]
	if n := 8 * (last - first + 1); n > len(b) {
		b = make([]byte, n)
	} else {
		b = b[:n]
	}
	if _, err := c.f.ReadAt(b, c.genOff+8*int64(first)); err != nil {
		return nil, fmt.Errorf("read generations: %w", err)
	}
	for ; len(b) > 0; b = b[8:] {
		gens = append(gens, binary.LittleEndian.Uint64(b))
	}
	return gens, nil
}

// sameGens reports whether nobody has evicted anything of regions first, first+1 … since
// their generations were seen; otherwise it forgets what was known of them.
func (c *content) sameGens(first int, seen []uint64) (bool, error) {
	var few [4]uint64
	gens, err := c.gensOf(first, first+len(seen)-1, few[:0])
	if err != nil {
		return false, err
	}
	same := true
	for k, gen := range gens {
		if gen == seen[k] {
			continue
		}
		same = false
		if err := c.renew(first + k); err != nil {
			return false, err
		}
	}
	return same, nil
}

// renew takes over the generation of a region that somebody else evicted.
func (c *content) renew(r int) error {
	g := &c.regions[r]
	g.mu.Lock()
	defer g.mu.Unlock()
	gens, err := c.gensOf(r, r, nil)
	if err != nil || gens[0] == g.gen.Load() {
		return err
	}
	c.forget(r)
	g.gen.Store(gens[0])
	return c.reloadClean()
}

// renewAll does so for all regions, so that what is known is true.
func (c *content) renewAll() {
	seen := make([]uint64, len(c.regions))
	for r := range seen {
		seen[r] = c.regions[r].gen.Load()
	}
	if len(seen) == 0 {
		return
	}
	if _, err := c.sameGens(0, seen); err != nil {
		c.s.log.Warn("read regions", "layer", c.d, "err", err)
	}
}

// forget makes the units of a region unknown.
func (c *content) forget(r int) {
	first, last := c.unitsOf(r)
	for i := first; i <= last; i++ {
		lock := c.stripe(i)
		lock.Lock()
		c.setState(i, unknown)
		lock.Unlock()
	}
}

// reloadClean looks what who evicted has left in the header.
func (c *content) reloadClean() error {
	b := make([]byte, blockSize)
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.f.ReadAt(b, c.h.headerOff()); err != nil {
		return err
	}
	h, err := parseHeader(b, c.h.fileSize())
	if err == nil {
		c.h.clean = h.clean
	}
	return err
}

// evict frees a region, and reports whether it did: a region that somebody fills, or
// holds, stays.
func (c *content) evict(r int) (done bool, err error) {
	return c.anew(r, func() error { return c.clearRegion(r) }, func() error { return c.punch(r) })
}

// anew begins a generation of a region, in four steps: clear is the first, last the fourth (nil: none, and then fills
// may go on meanwhile). It reports whether it could have the region.
func (c *content) anew(r int, clear, last func() error) (done bool, err error) {
	g := &c.regions[r]
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holds > 0 && last != nil {
		return false, nil
	}
	if g.holds == 0 {
		kind := int16(unix.F_WRLCK)
		if last == nil {
			kind = unix.F_RDLCK // only evictions must not be at it
		}
		err = c.lockRegion(r, kind, last == nil)
		defer func() { _ = c.lockRegion(r, unix.F_UNLCK, false) }() // what was locked can be unlocked
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock region: %w", err)
	}
	if err := c.reloadClean(); err != nil { // or a header that is clean would stay
		return false, err
	}
	gen := rand.Uint64()
	err = c.change(func() error {
		if err := clear(); err != nil {
			return err
		}
		return c.writeWord(c.genOff, r, gen)
	})
	if err != nil {
		return false, fmt.Errorf("clear region: %w", err)
	}
	c.forget(r)
	g.gen.Store(gen)
	if last == nil {
		return true, nil
	}
	return true, c.change(last)
}

// clearRegion does step 1.
func (c *content) clearRegion(r int) error {
	first, last := c.unitsOf(r)
	m := make([]byte, (last-first+1)*entrySize)
	for i := first; i <= last; i++ {
		putEntry(m[(i-first)*entrySize:], i, c.ends[i], 0, false)
	}
	_, err := c.f.WriteAt(m, c.entryOff(first))
	return err
}

// punch does step 4.
func (c *content) punch(r int) error {
	first, last := c.unitsOf(r)
	if first <= last {
		off := c.start(first)
		if err := punchHole(c.f, off, c.ends[last]-off); err != nil {
			return fmt.Errorf("punch hole: %w", err)
		}
	}
	c.regions[r].used.Store(0)
	return c.writeWord(c.usedOff, r, 0)
}

// punchHole gives the room of n bytes at off back to the file system; they read as zeros.
func punchHole(f file, off, n int64) error {
	for {
		err := syscall.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != syscall.EINTR {
			return err
		}
	}
}

func (c *content) writeWord(at int64, r int, word uint64) error {
	_, err := c.f.WriteAt(binary.LittleEndian.AppendUint64(nil, word), at+8*int64(r))
	return err
}

// use notes that regions first … last are read now, and writes such notes down now and then.
func (c *content) use(first, last int) {
	t := now()
	for r := first; r <= last; r++ {
		if used := &c.regions[r].used; t-used.Load() >= usedStep {
			used.Store(t)
		}
	}
	if f := c.flushed.Load(); t-f > usedFlush && c.flushed.CompareAndSwap(f, t) {
		c.flushUse()
	}
}

// flushUse writes down what was read after the file's own times of use. It never writes
// 0, and nothing for a region that is evicted: there is nothing in it that could be wanted.
func (c *content) flushUse() {
	if c.dir == "" {
		return
	}
	words, err := c.readUsed()
	if err != nil {
		c.s.log.Warn("read times of use", "layer", c.d, "err", err)
		return
	}
	for r := range c.regions {
		used := c.regions[r].used.Load()
		if words[r] == 0 || used <= words[r] {
			continue
		}
		if err := c.writeWord(c.usedOff, r, uint64(used)); err != nil {
			c.s.log.Warn("write time of use", "layer", c.d, "err", err)
			return
		}
	}
}

// readUsed returns the times of use that stand in the file.
func (c *content) readUsed() ([]int64, error) {
	return readWords(c.f, c.usedOff, len(c.regions))
}

func readWords(f io.ReaderAt, off int64, n int) ([]int64, error) {
	b := make([]byte, 8*n)
	if _, err := f.ReadAt(b, off); err != nil {
		return nil, err
	}
	words := make([]int64, n)
	for i := range words {
		words[i] = int64(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return words, nil
}

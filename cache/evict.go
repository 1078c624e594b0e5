package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// The bound is kept by who writes. Before it writes a process takes what it writes out of an allowance; when
// that is used up it adds up what all files of the directory take, evicts what is too
// much, and makes a new allowance of what is left. There is no shared count that a killed process
// could leave wrong; the error is the allowances of the other processes that write, each at
// most a 64th of the bound when it is near.

var (
	// errNoRoom is what the disk's ENOSPC is: units stay in memory.
	errNoRoom = errors.New("the cache is full of what is in use")
	// errNoFile says that a pack has a file that cannot be read.
	errNoFile = errors.New("the disk cannot read the pack")
)

// A budget is what a store may write before it looks how full the directory is.
type budget struct {
	left atomic.Int64
	// pending is what has its room but is not written yet: no look can see it.
	pending atomic.Int64

	mu    sync.Mutex
	until time.Time // protected by mu; before that there is no use in looking again
}

// slice is the part of the bound that may be written unseen. Below 64 KiB every unit would be a look.
func (s *Store) slice() int64 { return max(s.max/64, 64<<10) }

// fullPause is how long units stay in memory without a look for room: what is in use will not be less at once.
const fullPause = 200 * time.Millisecond

// room makes room for n bytes; errNoRoom says that there is none. The caller holds no
// lock but its own files', and calls wrote afterwards, whatever comes of it.
func (s *Store) room(n int64) error {
	if s.max <= 0 {
		return nil
	}
	s.budget.pending.Add(n)
	if s.budget.left.Add(-n) >= 0 {
		return nil
	}
	return s.look(n)
}

// wrote says that n bytes that asked for room are written, or will not be.
func (s *Store) wrote(n int64) {
	if s.max > 0 {
		s.budget.pending.Add(-n)
	}
}

// look makes a new allowance. n bytes of pending are what it is for.
func (s *Store) look(n int64) error {
	b := &s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left.Load() > 0 && b.left.Add(-n) >= 0 {
		return nil // somebody has looked meanwhile
	}
	if time.Now().Before(b.until) {
		return errNoRoom
	}
	pending := b.pending.Load()
	high := s.max - 2*s.slice()
	total, err := s.keepBelow(high-pending, s.max-s.max/8-pending)
	if err != nil {
		s.log.Warn("limit cache", "err", err)
	}
	left := s.max - total - pending
	if left < 0 {
		b.until = time.Now().Add(fullPause)
		return errNoRoom
	}
	b.left.Store(min(max((high-total-pending)/8, s.slice()), left))
	return nil
}

// makeRoom is room for what must be written whether there is any or not: indexes and
// records, without which nothing could be read.
func (s *Store) makeRoom(n int64) {
	if err := s.room(n); err != nil {
		s.log.Debug("limit cache", "bytes", n, "err", err)
	}
	s.wrote(n)
}

// keepBelow evicts down to low bytes if there are more than high, and returns how many are left.
func (s *Store) keepBelow(high, low int64) (total int64, err error) {
	if total = s.total(); total <= high {
		return total, nil
	}
	before := total
	total, err = s.evict(max(low, 0), total)
	if total < before {
		s.log.Info("cache limited", "freed", before-total, "max", s.max)
	}
	return total, err
}

// total is what the directory takes on the disk, as du(1) counts it.
func (s *Store) total() int64 { return diskUsage(s.dir) }

func diskUsage(path string) int64 {
	sum := onDisk(path)
	list, err := os.ReadDir(path)
	if err != nil {
		return sum // no directory, or gone
	}
	for _, e := range list {
		if p := filepath.Join(path, e.Name()); e.IsDir() {
			sum += diskUsage(p)
		} else {
			sum += onDisk(p)
		}
	}
	return sum
}

// A victim is a region that may be evicted, or a solid pack that nobody uses.
type victim struct {
	d      digest.Digest
	region int // -1: all of it
	used   int64
	pinned bool
}

// evict makes room, the least recently used region first, until the directory takes
// at most limit bytes of the total that it takes now, and returns what is left. One process does it at a time.
func (s *Store) evict(limit, total int64) (left int64, err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "evict"), os.O_RDWR|os.O_CREATE|oNoFollow, 0o600)
	if err != nil {
		return total, err
	}
	defer letGo(f)
	if err := flock(f, syscall.LOCK_EX); err != nil {
		return total, err
	}
	if total = s.total(); total <= limit {
		return total, nil // the one before has done it
	}
	freed, err := s.sweep()
	if err != nil {
		return total, err
	}
	e := &eviction{s: s, limit: limit, total: total - freed, open: map[digest.Digest]*content{}}
	defer e.close()
	e.run()
	e.close()
	e.dropUnused()
	return e.total, nil
}

// An eviction is one run.
type eviction struct {
	s            *Store
	limit, total int64
	open         map[digest.Digest]*content // those it has opened
}

func (e *eviction) run() {
	for _, v := range e.s.victims() {
		if e.total <= e.limit {
			return
		}
		var freed int64
		var err error
		if v.region < 0 {
			freed, err = e.s.evictWhole(v.d)
		} else {
			freed, err = e.evictRegion(v)
		}
		e.total -= freed
		if err != nil && !errors.Is(err, ErrInUse) && !errors.Is(err, fs.ErrNotExist) {
			e.s.log.Warn("evict", "layer", v.d, "region", v.region, "err", err)
		}
	}
}

func (e *eviction) evictRegion(v victim) (freed int64, err error) {
	c := e.open[v.d]
	if c == nil {
		if c, err = e.s.borrow(v.d); err != nil {
			return 0, err
		}
		e.open[v.d] = c
	}
	if v.region >= len(c.regions) { // another pack has taken its place
		return 0, nil
	}
	before := blocks(c.f)
	_, err = c.evict(v.region)
	return before - blocks(c.f), err
}

// close gives the packs back. Those that nobody wants and that hold nothing any more are not worth
// bringing to the disk.
func (e *eviction) close() {
	for d, c := range e.open {
		delete(e.open, d)
		if !e.s.unref(c) {
			continue
		}
		if !c.wanted.Load() && e.s.isEmpty(d) {
			c.stop()
			e.s.closed(c)
		} else {
			e.s.background(func() { e.s.finish(c) })
		}
	}
}

// dropUnused removes what is left of packs that nobody uses and that hold nothing any
// more; then, if that was not enough, the indexes of such layers, the least recently used first.
func (e *eviction) dropUnused() {
	list, err := e.s.Usage()
	if err != nil {
		e.s.log.Warn("evict", "err", err)
		return
	}
	sortByUse(list)
	for _, u := range list {
		if u.Size > 0 && !u.InUse && e.s.isEmpty(u.Digest) {
			e.dropLayer(u.Digest, e.s.evictWhole)
		}
	}
	for _, u := range list {
		if e.total > e.limit && !u.InUse {
			e.dropLayer(u.Digest, e.s.removeWhole)
		}
	}
}

func (e *eviction) dropLayer(d digest.Digest, drop func(digest.Digest) (int64, error)) {
	freed, err := drop(d)
	e.total -= freed
	if err != nil && !errors.Is(err, ErrInUse) {
		e.s.log.Warn("evict", "layer", d, "err", err)
	}
}

func sortByUse(list []Usage) {
	slices.SortStableFunc(list, func(a, b Usage) int { return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.Digest, b.Digest)) })
}

// These two do not wait for packs on their way to the disk: who fills one of them may be who waits for us.
func (s *Store) evictWhole(d digest.Digest) (freed int64, err error) {
	return s.freedBy(d, evictLocked)
}
func (s *Store) removeWhole(d digest.Digest) (freed int64, err error) {
	return s.freedBy(d, removeLocked)
}

func (s *Store) freedBy(d digest.Digest, drop func(dir string) error) (freed int64, err error) {
	dir, err := s.layerDir(d)
	if err != nil {
		return 0, err
	}
	before := diskUsage(dir)
	err = s.remove(d, drop)
	return before - diskUsage(dir), err
}

// isEmpty reports whether no region of a pack holds anything.
func (s *Store) isEmpty(d digest.Digest) bool {
	_, used, err := s.clocks(d)
	return err == nil && slices.Max(append(used, 0)) == 0
}

// victims lists what may be evicted, in the order in which it should be.
func (s *Store) victims() (list []victim) {
	layers, err := s.Usage()
	if err != nil {
		s.log.Warn("list cache", "err", err)
		return nil
	}
	for _, u := range layers {
		h, used, err := s.clocks(u.Digest)
		switch {
		case err != nil: // there is no pack, or no valid one
		case !h.solid:
			for r, t := range used {
				if t != 0 {
					list = append(list, victim{u.Digest, r, t, u.Pinned})
				}
			}
		case !u.InUse:
			list = append(list, victim{u.Digest, -1, slices.Max(append(used, 0)), u.Pinned})
		}
	}
	slices.SortStableFunc(list, func(a, b victim) int {
		if a.pinned != b.pinned {
			if a.pinned {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.used, b.used)
	})
	return list
}

// clocks returns when each region of a pack was used last, as far as is known; 0: it holds nothing.
func (s *Store) clocks(d digest.Digest) (h header, used []int64, err error) {
	dir, err := s.layerDir(d)
	if err != nil {
		return h, nil, err
	}
	f, err := s.disk.open(filepath.Join(dir, "pack"))
	if err != nil {
		return h, nil, err
	}
	defer letGo(f)
	if h, err = loadHeader(f); err != nil {
		return h, nil, err
	}
	if used, err = readWords(f, h.usedOff(), int(h.regions())); err != nil {
		return h, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.open[d]; c != nil && len(c.regions) == len(used) {
		for r := range used {
			if used[r] != 0 {
				used[r] = max(used[r], c.regions[r].used.Load())
			}
		}
	}
	return h, used, nil
}

// borrow opens a pack that is there, without this counting as use of the layer.
func (s *Store) borrow(d digest.Digest) (*content, error) {
	dir, err := s.layerDir(d)
	if err != nil {
		return nil, err
	}
	leave, err := s.door.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if c := s.opened(d); c != nil {
		return c, nil
	}
	c, err := s.load(d, dir)
	if err != nil {
		return nil, fmt.Errorf("open pack %s: %w", d, err)
	}
	return s.adopt(c), nil
}

// blocks is what a file takes on the disk.
func blocks(f file) int64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// Pin makes the layer one of those that are evicted last: somebody wants it to be there
// offline. It ends when the layer is removed.
func (s *Store) Pin(d digest.Digest) error {
	dir, err := s.layerDir(d)
	if err != nil {
		return fmt.Errorf("pin layer: %w", err)
	}
	leave, err := s.door.enter()
	if err != nil {
		return fmt.Errorf("pin layer: %w", err)
	}
	defer leave()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin layer: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "pinned"), os.O_WRONLY|os.O_CREATE|oNoFollow, 0o600)
	if err != nil {
		return fmt.Errorf("pin layer: %w", err)
	}
	return f.Close()
}

// Refused reports that the disk, or the bound, keeps something from being written, which
// must not keep anybody from reading.
func Refused(err error) bool {
	for _, e := range []error{errNoRoom, errNoFile, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS, syscall.EFBIG} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

package cache

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
)

// overlayLimit is what a pack keeps in memory of the units that could not be written:
// enough for the reads of a moment (a kernel read is at most 1 MiB, a unit some MiB).
const overlayLimit = 64 << 20

// errGone says that a unit is not there, or not any more: it was evicted or pushed out of
// the overlay between Ensure and ReadAt.
var errGone = errors.New("not there any more: evicted, or the disk is full and memory is limited")

// An overlay holds the units that the disk refused, the latest of them.
type overlay struct {
	used  atomic.Bool // there was ever a unit in it
	limit int64       // bytes; a single larger unit is kept all the same

	mu    sync.Mutex
	units map[int][]byte // protected by mu
	order []int          // protected by mu; oldest first
	bytes int64          // protected by mu
	err   error          // protected by mu; why units are here
}

// add keeps a copy of b and reports whether it is the first unit here.
func (o *overlay) add(i int, b []byte, why error) (first bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	first = !o.used.Swap(true)
	o.err = why
	if o.units == nil {
		o.units = map[int][]byte{}
	}
	if _, ok := o.units[i]; ok {
		return first
	}
	for len(o.order) > 0 && o.bytes+int64(len(b)) > o.limit {
		o.bytes -= int64(len(o.units[o.order[0]]))
		delete(o.units, o.order[0])
		o.order = o.order[1:]
	}
	o.units[i] = slices.Clone(b)
	o.order = append(o.order, i)
	o.bytes += int64(len(b))
	return first
}

func (o *overlay) has(i int) bool {
	if !o.used.Load() {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.units[i]
	return ok
}

// read copies bytes of unit i, or reports that it is not here.
func (o *overlay) read(i int, b []byte, off int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	u, ok := o.units[i]
	if ok {
		copy(b, u[off:])
	}
	return ok
}

// why returns the error of the last unit that the disk refused, or nil.
func (o *overlay) why() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

package fuse

import "sync"

// handles are the open files or directories of a mount by the number the kernel
// knows them by. Numbers are never reused, and 0 is none: it is what the kernel
// sends where it has no handle.
type handles[T any] struct {
	mu   sync.RWMutex
	open map[uint64]T // protected by mu
	last uint64       // protected by mu
}

// add returns the number of a new handle.
func (h *handles[T]) add(v T) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = map[uint64]T{}
	}
	h.last++
	h.open[h.last] = v
	return h.last
}

// get finds a handle; the zero value when the number is none.
func (h *handles[T]) get(fh uint64) (v T, ok bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	v, ok = h.open[fh]
	return v, ok
}

// remove forgets a handle and returns it: the caller closes it.
func (h *handles[T]) remove(fh uint64) (v T, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok = h.open[fh]
	delete(h.open, fh)
	return v, ok
}

func (h *handles[T]) len() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.open)
}

// drain empties the table for the end of the mount: who has died with files open released none.
func (h *handles[T]) drain() []T {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []T
	for _, v := range h.open {
		all = append(all, v)
	}
	clear(h.open)
	return all
}

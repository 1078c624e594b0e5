package fuse

import "sync"

// handles are the open files or directories of a mount by the number the kernel
// knows them by. Numbers are never reused, and 0 is none: it is what the kernel
// sends where it has no handle.
//
// A number says how the file was opened, so that a later server of the same
// mount can open it again, and which server of the mount gave it: 8 bits of
// mode, 40 of a counter, 16 of the server's generation.
type handles[T any] struct {
	mu   sync.RWMutex
	open map[uint64]T // protected by mu
	last uint64       // protected by mu; the counter and the generation
}

const (
	modeBits    = 8
	counterBits = 40
)

// begin sets the generation. It is called before the first handle is there.
func (h *handles[T]) begin(generation uint64) { h.last = generation << counterBits }

// add returns the number of a new handle; mode is the caller's, of at most 8 bits.
func (h *handles[T]) add(v T, mode uint8) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	fh := h.last<<modeBits | uint64(mode)
	h.putLocked(fh, v)
	return fh
}

func (h *handles[T]) putLocked(fh uint64, v T) {
	if h.open == nil {
		h.open = map[uint64]T{}
	}
	h.open[fh] = v
}

// earlier tells whether a number was given by a server before this one.
func (h *handles[T]) earlier(fh uint64) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return fh != 0 && fh>>(modeBits+counterBits) < h.last>>counterBits
}

// adopt enters a handle under a number that an earlier server gave. When
// another call was faster its handle is returned: the caller closes his own.
func (h *handles[T]) adopt(fh uint64, v T) (use T, ours bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if other, ok := h.open[fh]; ok {
		return other, false
	}
	h.putLocked(fh, v)
	return v, true
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

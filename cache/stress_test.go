package cache

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
)

// TestStress: two stores on one directory read through the same packs while packs are opened
// and closed, settled, collected, damaged and listed. Nobody may ever read wrong bytes.
func TestStress(t *testing.T) {
	dir := t.TempDir()
	blobs := []*blob{evenBlob(400, 40, 9000), makeBlob(401, 1, 70000, 4096, 300000, 12)}
	stores := []*Store{openStore(t, dir, Options{MaxBytes: 300000}), openStore(t, dir, Options{})}
	until := time.Now().Add(400 * time.Millisecond)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 7))
			for time.Now().Before(until) && !t.Failed() {
				session(t, r, stores[g%2], blobs[r.IntN(2)])
			}
		})
	}
	wg.Go(func() { disturb(t, stores[1], blobs[0], until) })
	wg.Wait()
}

// session opens a pack, reads some of it and closes it.
func session(t *testing.T, r *rand.Rand, s *Store, b *blob) {
	p, err := s.Pack(b.d, b.units)
	if err != nil {
		t.Error(err)
		return
	}
	defer letGo(p)
	for range r.IntN(20) {
		off := r.Int64N(int64(len(b.data)))
		n := r.Int64N(min(50000, int64(len(b.data))-off)) + 1
		got := make([]byte, n)
		if _, err := p.Read(t.Context(), got, off, b.fill); err != nil {
			t.Errorf("Read(%d, %d): %v", off, n, err)
		} else if !bytes.Equal(got, b.data[off:off+n]) {
			t.Errorf("Read(%d, %d): wrong bytes", off, n)
		}
		if r.IntN(10) == 0 {
			if err := p.c.settle(); err != nil {
				t.Error(err)
			}
		}
	}
}

// disturb collects, lists, removes, and damages the map.
func disturb(t *testing.T, s *Store, b *blob, until time.Time) {
	for i := int64(0); time.Now().Before(until); i++ {
		if _, err := s.GC(i % 2 * 1e9); err != nil {
			t.Error(err)
		}
		if _, err := s.Usage(); err != nil {
			t.Error(err)
		}
		if err := s.Remove(b.d); err != nil && !errors.Is(err, ErrInUse) {
			t.Error(err)
		}
		h := header{size: int64(len(b.data)), units: int64(len(b.units))}
		f, err := os.OpenFile(packPath(s, b.d), os.O_RDWR, 0)
		if err != nil {
			continue // removed
		}
		if _, err := f.WriteAt([]byte{1, 2, 3, 4}, h.mapOff()+i%h.units*entrySize+8); err != nil {
			t.Error(err)
		}
		letGo(f)
		time.Sleep(time.Millisecond)
	}
}

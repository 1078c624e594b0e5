package cache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestStaleTemp: Open removes what dead writers left, never what a living one holds.
func TestStaleTemp(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	w, err := s.Create(digest.FromString("x"))
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "tmp", "new-stale")
	if err := os.WriteFile(stale, make([]byte, 100000), 0o600); err != nil {
		t.Fatal(err)
	}
	freed, err := s.GC(1 << 40)
	if err != nil || freed < 100000 {
		t.Errorf("GC = %d, %v", freed, err)
	}
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir, Options{})
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stale file: %v", err)
	}
	p, err := w.Commit(nil)
	if err != nil {
		t.Fatal(err)
	}
	letGo(p)
}

func TestGC(t *testing.T) {
	dir := t.TempDir()
	s, other := openStore(t, dir, Options{}), openStore(t, dir, Options{})
	blobs := make([]*blob, 5)
	for i := range blobs {
		blobs[i] = makeBlob(uint64(210+i), 200000)
		letGo(writePack(t, s, blobs[i], []byte("index")))
	}
	s.bg.Wait()
	for i, b := range blobs { // the first is the oldest
		used := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(filepath.Dir(packPath(s, b.d)), used, used); err != nil {
			t.Fatal(err)
		}
	}
	p, err := other.Complete(blobs[3].d)
	if err != nil {
		t.Fatal(err)
	}
	left := func() (used []bool) {
		list, err := s.Usage()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blobs {
			found := false
			for _, u := range list {
				found = found || u.Digest == b.d && u.Size > 0
				if u.Size == 0 && u.OnDisk == 4096 {
					continue // evicted: the index is left
				}
				if u.Size != 200000 || !u.Complete || u.OnDisk < 200000 || u.OnDisk > 300000 || u.InUse != (u.Digest == blobs[3].d) {
					t.Errorf("usage %+v", u)
				}
			}
			used = append(used, found)
		}
		return used
	}
	check := func(limit int64, want ...bool) {
		t.Helper()
		if _, err := s.GC(limit); err != nil {
			t.Fatal(err)
		}
		for i, got := range left() {
			if got != want[i] {
				t.Errorf("GC(%d): layer %d is there: %v", limit, i, got)
			}
		}
	}
	check(1<<40, true, true, true, true, true)
	check(800000, false, false, true, true, true)
	if _, err := s.Index(blobs[0].d); err != nil {
		t.Errorf("index of an evicted layer: %v", err)
	}
	check(0, false, false, false, true, false)
	for i, b := range blobs {
		if x, err := s.Index(b.d); err != nil || string(x) != "index" {
			t.Errorf("index of layer %d after GC(0): %q, %v", i, x, err)
		}
	}
	check(1, false, false, false, true, false)
	if list, err := s.Usage(); err != nil || len(list) != 1 {
		t.Errorf("after GC(1): %+v, %v", list, err)
	}
	blobs[3].check(t, p, 0, p.Size(), nil)
	if err := s.Remove(blobs[3].d); !errors.Is(err, ErrInUse) {
		t.Errorf("Remove in use: %v", err)
	}
	letGo(p)
	other.bg.Wait()
	for range 2 { // the second time there is nothing
		if err := s.Remove(blobs[3].d); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if _, err := s.Index(blobs[3].d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("index after Remove: %v", err)
	}
}

// TestEvict: the content goes, the index and the time of the last use stay.
func TestEvict(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	b := makeBlob(218, 200000)
	p := writePack(t, s, b, []byte("index"))
	if err := s.Evict(b.d); !errors.Is(err, ErrInUse) {
		t.Errorf("Evict in use: %v", err)
	}
	letGo(p)
	s.bg.Wait()
	used := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(filepath.Dir(packPath(s, b.d)), used, used); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := s.Evict(b.d); err != nil {
			t.Fatal(err)
		}
	}
	if x, err := s.Index(b.d); err != nil || string(x) != "index" {
		t.Errorf("index: %q, %v", x, err)
	}
	list, err := s.Usage()
	if err != nil || len(list) != 1 || list[0].Size != 0 || !list[0].Used.Equal(used) {
		t.Errorf("usage %+v, %v", list, err)
	}
}

// TestRemoveClosed: what was closed a moment ago is not in use.
func TestRemoveClosed(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	b := evenBlob(219, 10, 100000)
	for range 20 {
		p := openPack(t, s, b)
		b.check(t, p, 0, 500000, b.fill)
		if _, err := s.Complete(b.d); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		letGo(p)
		if err := s.Remove(b.d); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMaxBytes: publications evict what was used least recently before they go over the bound.
func TestMaxBytes(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{MaxBytes: 1 << 20})
	var last *blob
	for i := range 10 {
		last = makeBlob(uint64(220+i), 200000)
		letGo(writePack(t, s, last, nil))
		s.bg.Wait()
		if n := diskUsage(s.dir); n > 1<<20 {
			t.Errorf("after %d layers: %d bytes", i+1, n)
		}
		time.Sleep(5 * time.Millisecond) // times of use must differ
	}
	list, err := s.Usage()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, u := range list {
		found = found || u.Digest == last.d && u.Complete
	}
	if len(list) < 2 || len(list) > 4 || !found {
		t.Errorf("%d layers left, the last one: %v", len(list), found)
	}
}

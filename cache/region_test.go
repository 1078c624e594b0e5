package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// regionBlob has units that are larger and smaller than a region, and some across borders.
func regionBlob(seed uint64) *blob {
	return makeBlob(seed, 700000, 700000, 5, 3<<20, 12, 400000, 100000, 1<<20, 1<<20, 4096, 900000)
}

// evictAll evicts every region that can be, by way of another store, as another process would.
func evictAll(t *testing.T, s *Store, b *blob) (done int) {
	t.Helper()
	c, err := s.borrow(b.d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.release(c)
	for r := range c.regions {
		ok, err := c.evict(r)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			done++
		}
	}
	return done
}

func TestUnitsOfRegions(t *testing.T) {
	b := regionBlob(500)
	p := openPack(t, openStore(t, t.TempDir(), Options{}), b)
	next := 0
	for r := range p.c.regions {
		first, last := p.c.unitsOf(r)
		if first != next && last >= first {
			t.Errorf("region %d begins with unit %d, want %d", r, first, next)
		}
		for i := first; i <= last; i++ {
			if p.c.regionOf(i) != r {
				t.Errorf("unit %d is of region %d and %d", i, r, p.c.regionOf(i))
			}
		}
		next = max(next, last+1)
	}
	if next != len(b.units) {
		t.Errorf("regions have %d units, want %d", next, len(b.units))
	}
}

// TestEvictBetween: what is evicted between Ensure and ReadAt, by this process or by another
// one, is an error and never zeros; Read brings it back.
func TestEvictBetween(t *testing.T) {
	for _, own := range []bool{true, false} {
		dir := t.TempDir()
		b := regionBlob(501)
		s := openStore(t, dir, Options{})
		other := s
		if !own {
			other = openStore(t, dir, Options{})
		}
		p := openPack(t, s, b)
		size := int64(len(b.data))
		b.check(t, p, 0, size, b.fill)
		full := onDisk(packPath(s, b.d))
		if n := evictAll(t, other, b); n != len(p.c.regions) {
			t.Fatalf("own %v: evicted %d of %d regions", own, n, len(p.c.regions))
		}
		if now := onDisk(packPath(s, b.d)); now > full/20 {
			t.Errorf("own %v: %d of %d bytes are left on the disk", own, now, full)
		}
		buf := make([]byte, 1000)
		if _, err := p.ReadAt(buf, 5); !errors.Is(err, errGone) {
			t.Fatalf("own %v: ReadAt of what was evicted: %v", own, err)
		}
		p.Refresh()
		if p.Present() != 0 || p.IsComplete() || p.Has(0, 1) {
			t.Errorf("own %v: %d bytes are there", own, p.Present())
		}
		got := make([]byte, size)
		if _, err := p.Read(t.Context(), got, 0, b.fill); err != nil || !bytes.Equal(got, b.data) {
			t.Fatalf("own %v: Read: %v", own, err)
		}
		b.check(t, p, 0, size, noFill)
	}
}

// A hookedFile runs hook after each read of data.
type hookedFile struct {
	file
	data int64
	hook func()
}

func (f *hookedFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.file.ReadAt(b, off)
	if off < f.data && f.hook != nil {
		hook := f.hook
		f.hook = nil
		hook()
	}
	return n, err
}

// TestEvictedAndBack: data that is evicted and fetched again around the read of the data, so that every
// mark is as it was, is read again: it may have been read in between.
func TestEvictedAndBack(t *testing.T) {
	dir := t.TempDir()
	b := regionBlob(502)
	s, other := openStore(t, dir, Options{}), openStore(t, dir, Options{})
	p, q := openPack(t, s, b), openPack(t, other, b)
	size := int64(len(b.data))
	b.check(t, p, 0, size, b.fill)
	p.c.f = &hookedFile{file: p.c.f, data: size, hook: func() {
		evictAll(t, other, b)
		got := make([]byte, size)
		if _, err := q.Read(t.Context(), got, 0, b.fill); err != nil {
			t.Error(err)
		}
	}}
	if _, err := p.ReadAt(make([]byte, 100), 0); !errors.Is(err, errGone) {
		t.Errorf("ReadAt around an eviction: %v", err)
	}
	got := make([]byte, size)
	if _, err := p.Read(t.Context(), got, 0, noFill); err != nil || !bytes.Equal(got, b.data) {
		t.Errorf("Read: %v", err)
	}
}

// TestHold: a region that is held or filled is not evicted, by nobody, and the reader who comes third gets his bytes.
func TestHold(t *testing.T) {
	dir := t.TempDir()
	b := regionBlob(503)
	s, other := openStore(t, dir, Options{}), openStore(t, dir, Options{})
	p := openPack(t, s, b)
	b.check(t, p, 0, int64(len(b.data)), b.fill)
	release := p.c.holdSpan(0, 1400000)
	want := len(p.c.regions) - 1
	for _, by := range []*Store{s, other} {
		if n := evictAll(t, by, b); n != want {
			t.Errorf("evicted %d regions, want %d", n, want)
		}
	}
	b.check(t, p, 0, 1400000, noFill)
	release()
	evicting := func(ctx context.Context, first, last int, put func(int, []byte) error) error {
		err := b.fill(ctx, first, last, put)
		evictAll(t, other, b)
		return err
	}
	got := make([]byte, 100)
	for off := int64(0); off < int64(len(b.data))-100; off += 700001 {
		if _, err := p.Read(t.Context(), got, off, evicting); err != nil || !bytes.Equal(got, b.data[off:off+100]) {
			t.Errorf("Read(%d) while all is evicted at once: %v", off, err)
		}
	}
}

// TestKilledEviction: whatever step of an eviction was the last, no bytes are wrong, and the next
// eviction frees the region.
func TestKilledEviction(t *testing.T) {
	steps := []func(c *content, r int) error{
		func(c *content, r int) error { // the entries, not yet the generation
			first, last := c.unitsOf(r)
			for i := first; i <= last; i++ {
				if err := c.writeEntry(i, 0, false); err != nil {
					return err
				}
			}
			return nil
		},
		func(c *content, r int) error { return errors.Join(c.clearRegion(r), c.writeWord(c.genOff, r, 7)) },
		func(c *content, r int) error {
			first, last := c.unitsOf(r)
			return errors.Join(c.clearRegion(r), c.writeWord(c.genOff, r, 9), punchHole(c.f, c.start(first), c.ends[last]-c.start(first)))
		},
	}
	for k, step := range steps {
		dir := t.TempDir()
		b := evenBlob(504, 60, 100000)
		s, dead := openStore(t, dir, Options{}), openStore(t, dir, Options{})
		p := openPack(t, s, b)
		b.check(t, p, 0, p.Size(), b.fill)
		c, err := dead.borrow(b.d)
		if err != nil {
			t.Fatal(err)
		}
		for r := range c.regions {
			if err := step(c, r); err != nil {
				t.Fatal(err)
			}
		}
		dead.release(c)
		got := make([]byte, p.Size())
		if _, err := p.Read(t.Context(), got, 0, b.fill); err != nil || !bytes.Equal(got, b.data) {
			t.Fatalf("step %d: Read: %v", k, err)
		}
		q := openPack(t, openStore(t, dir, Options{}), b)
		if _, err := q.Read(t.Context(), got, 0, b.fill); err != nil || !bytes.Equal(got, b.data) {
			t.Fatalf("step %d: Read by another: %v", k, err)
		}
		if n := evictAll(t, s, b); n != len(p.c.regions) {
			t.Errorf("step %d: evicted %d regions", k, n)
		}
		if n := onDisk(packPath(s, b.d)); n > 64<<10 {
			t.Errorf("step %d: %d bytes are left", k, n)
		}
	}
}

// TestBound: however much is read, the directory stays below the bound, and what is read is right.
func TestBound(t *testing.T) {
	const bound = 8 << 20
	dir := t.TempDir()
	s := openStore(t, dir, Options{MaxBytes: bound})
	blobs := []*blob{evenBlob(505, 100, 65536), evenBlob(506, 300, 30000), regionBlob(507)}
	most := int64(0)
	for round := range 2 {
		for _, b := range blobs {
			p := openPack(t, s, b)
			for off := int64(0); off < p.Size(); off += 128 << 10 {
				got := make([]byte, min(128<<10, p.Size()-off))
				if _, err := p.Read(t.Context(), got, off, b.fill); err != nil || !bytes.Equal(got, b.data[off:off+int64(len(got))]) {
					t.Fatalf("round %d: Read(%d): %v", round, off, err)
				}
				most = max(most, diskUsage(dir))
			}
		}
	}
	if most > bound || most < bound/2 {
		t.Errorf("%d bytes on the disk at most, the bound is %d", most, bound)
	}
	t.Logf("at most %d bytes of %d", most, bound)
}

// TestBoundTooSmall: units that there is no room for are read from memory.
func TestBoundTooSmall(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{MaxBytes: 100 << 10})
	b := regionBlob(508)
	p := openPack(t, s, b)
	got := make([]byte, len(b.data))
	for range 2 {
		if _, err := p.Read(t.Context(), got, 0, b.fill); err != nil || !bytes.Equal(got, b.data) {
			t.Fatal(err)
		}
	}
	if n := diskUsage(dir); n > 150<<10 {
		t.Errorf("%d bytes on the disk", n)
	}
}

// TestBoundOrder: what was read last stays, what is pinned stays longer.
func TestBoundOrder(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	var packs []*Pack
	blobs := []*blob{evenBlob(510, 64, 32768), evenBlob(511, 64, 32768), evenBlob(512, 64, 32768)}
	for _, b := range blobs {
		p := openPack(t, s, b)
		b.check(t, p, 0, p.Size(), b.fill)
		packs = append(packs, p)
	}
	age := func(p *Pack, r int, by int64) {
		t.Helper()
		p.c.regions[r].used.Store(now() - by)
		if err := p.c.writeWord(p.c.usedOff, r, uint64(now()-by)); err != nil {
			t.Fatal(err)
		}
	}
	for k, by := range []int64{100000, 50000, 10000} {
		age(packs[k], 0, by)
		age(packs[k], 1, by+1000)
	}
	if err := s.Pin(blobs[0].d); err != nil {
		t.Fatal(err)
	}
	const half = 1 << 20
	order := []struct {
		pack int
		off  int64
	}{{1, half}, {1, 0}, {2, half}, {2, 0}, {0, half}, {0, 0}}
	for n, next := range order {
		if _, err := s.GC(s.total() - half/2); err != nil {
			t.Fatal(err)
		}
		for k, o := range order {
			if there := packs[o.pack].Has(o.off, half); there != (k > n) {
				t.Errorf("after evicting %+v: %+v is there: %v", next, o, there)
			}
		}
	}
}

// TestSolid: a pack of which nothing can be fetched by itself goes as a whole, when nobody uses it.
func TestSolid(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	b := evenBlob(513, 64, 65536)
	p := writePack(t, s, b, []byte("index"))
	if _, err := s.GC(100 << 10); err != nil {
		t.Fatal(err)
	}
	b.check(t, p, 0, p.Size(), nil)
	letGo(p)
	s.bg.Wait()
	if _, err := s.GC(100 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(packPath(s, b.d)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pack of an idle layer: %v", err)
	}
}

// TestWriterLoses: a layer that is written whole leaves out what there is no room for, and it is fetched when it is read.
func TestWriterLoses(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{MaxBytes: 2 << 20})
	b := evenBlob(514, 64, UnitSize)
	for i := range b.units {
		b.units[i].Sum, b.units[i].Vouched = [32]byte{}, true
	}
	w, err := s.Create(b.d)
	if err != nil {
		t.Fatal(err)
	}
	w.MayLose(true)
	if _, err := w.Write(b.data); err != nil {
		t.Fatal(err)
	}
	if !w.Lost() {
		t.Fatal("4 MiB fit into 2 MiB")
	}
	q, err := w.Commit([]byte("index"))
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(q)
	p := openPack(t, s, b)
	if n := p.Present(); n == 0 || n > 1<<20 {
		t.Errorf("%d bytes are there", n)
	}
	got := make([]byte, len(b.data))
	if _, err := p.Read(t.Context(), got, 0, b.fill); err != nil || !bytes.Equal(got, b.data) {
		t.Fatal(err)
	}
	if n := diskUsage(dir); n > 2<<20 {

		t.Errorf("%d bytes on the disk", n)
	}
}

// TestForeignLink: a symbolic link in the place of a file of ours is not followed.
func TestForeignLink(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	b := evenBlob(515, 4, 5000)
	p := openPack(t, s, b)
	b.check(t, p, 0, p.Size(), b.fill)
	letGo(p)
	s.bg.Wait()
	if err := s.PutIndex(b.d, []byte("index")); err != nil {
		t.Fatal(err)
	}
	if err := s.Save("name", []byte("record")); err != nil {
		t.Fatal(err)
	}
	s.bg.Wait()
	away := t.TempDir()
	for _, path := range []string{packPath(s, b.d), filepath.Join(filepath.Dir(packPath(s, b.d)), "index"), s.recordPath("name")} {
		to := filepath.Join(away, filepath.Base(path))
		if err := errors.Join(os.Rename(path, to), os.Symlink(to, path)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Index(b.d); !errors.Is(err, unix.ELOOP) {
		t.Errorf("Index: %v", err)
	}
	if _, err := s.Load("name"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("Load: %v", err)
	}
	p = openPack(t, s, b)
	if p.Present() != 0 {
		t.Error("the pack behind the link was taken")
	}
	b.check(t, p, 0, p.Size(), b.fill)
	if err := errors.Join(s.PutIndex(b.d, []byte("new")), s.Save("name", []byte("new"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"index", filepath.Base(s.recordPath("name"))} {
		c, err := os.ReadFile(filepath.Join(away, name))
		if err != nil || bytes.Contains(c, []byte("new")) {
			t.Errorf("%s was written through the link: %v", name, err)
		}
	}
}

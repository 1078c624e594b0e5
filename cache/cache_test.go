package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
)

func openStore(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

// A blob is content for packs: random bytes with zero runs, cut into units.
type blob struct {
	d     digest.Digest
	data  []byte
	units []Unit
	fills []atomic.Int64 // how often each unit was put
}

func makeBlob(seed uint64, unitLens ...int64) *blob {
	b := &blob{fills: make([]atomic.Int64, len(unitLens))}
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	for i, n := range unitLens {
		u := make([]byte, n)
		if i%3 != 2 { // every third unit is zeros
			_, _ = r.Read(u)
		}
		b.units = append(b.units, Unit{Off: int64(len(b.data)), Len: n, Sum: sha256.Sum256(u)})
		b.data = append(b.data, u...)
	}
	b.d = digest.FromBytes(b.data)
	return b
}

func evenBlob(seed uint64, units int, n int64) *blob {
	lens := make([]int64, units)
	for i := range lens {
		lens[i] = n
	}
	return makeBlob(seed, lens...)
}

func (b *blob) unit(i int) []byte {
	u := b.units[i]
	return b.data[u.Off : u.Off+u.Len]
}

// fill is the honest Fill.
func (b *blob) fill(_ context.Context, first, last int, put func(int, []byte) error) error {
	for i := first; i <= last; i++ {
		b.fills[i].Add(1)
		if err := put(i, b.unit(i)); err != nil {
			return err
		}
	}
	return nil
}

func (b *blob) filled() (n int64) {
	for i := range b.fills {
		n += b.fills[i].Load()
	}
	return n
}

func noFill(context.Context, int, int, func(int, []byte) error) error {
	return errors.New("nothing should be fetched")
}

func (b *blob) check(t *testing.T, p *Pack, off, n int64, fill Fill) {
	t.Helper()
	if err := p.Ensure(t.Context(), off, n, fill); err != nil {
		t.Fatalf("Ensure(%d, %d): %v", off, n, err)
	}
	got := make([]byte, n)
	if k, err := p.ReadAt(got, off); err != nil || int64(k) != n {
		t.Fatalf("ReadAt(%d, %d) = %d, %v", off, n, k, err)
	}
	if !bytes.Equal(got, b.data[off:off+n]) {
		t.Fatalf("ReadAt(%d, %d): wrong bytes", off, n)
	}
}

func openPack(t testing.TB, s *Store, b *blob) *Pack {
	t.Helper()
	p, err := s.Pack(b.d, b.units)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { letGo(p) })
	return p
}

func writePack(t testing.TB, s *Store, b *blob, index []byte) *Pack {
	t.Helper()
	w, err := s.Create(b.d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b.data); err != nil {
		t.Fatal(err)
	}
	p, err := w.Commit(index)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { letGo(p) })
	return p
}

func packPath(s *Store, d digest.Digest) string {
	return filepath.Join(s.dir, "layers", d.Algorithm().String(), d.Encoded(), "pack")
}

func TestPackRanges(t *testing.T) {
	b := makeBlob(1, 10, 5000, 1, 4096, 70000, 300000)
	size := int64(len(b.data))
	s := openStore(t, t.TempDir(), Options{})
	p := openPack(t, s, b)
	if p.Size() != size || p.Present() != 0 || p.IsComplete() || p.Has(0, 1) {
		t.Fatalf("empty pack: size %d, present %d, complete %v", p.Size(), p.Present(), p.IsComplete())
	}
	b.check(t, p, 9, 2, b.fill) // the border of units 0 and 1
	if want := int64(5010); p.Present() != want || b.filled() != 2 {
		t.Errorf("present %d, want %d; %d units fetched", p.Present(), want, b.filled())
	}
	if !p.Has(0, 5010) || p.Has(0, 5011) {
		t.Error("Has does not follow the units")
	}
	b.check(t, p, 0, size, b.fill)
	b.check(t, p, 0, size, noFill)
	if b.filled() != 6 || !p.IsComplete() {
		t.Errorf("%d units fetched, complete %v", b.filled(), p.IsComplete())
	}
	buf := make([]byte, 10)
	if n, err := p.ReadAt(buf, size-4); n != 4 || err != io.EOF || !bytes.Equal(buf[:4], b.data[size-4:]) {
		t.Errorf("ReadAt over the end = %d, %v", n, err)
	}
	if n, err := p.ReadAt(buf, size); n != 0 || err != io.EOF {
		t.Errorf("ReadAt at the end = %d, %v", n, err)
	}
}

func TestEnsureRange(t *testing.T) {
	b := makeBlob(2, 100, 100)
	p := openPack(t, openStore(t, t.TempDir(), Options{}), b)
	for _, c := range []struct {
		off, n  int64
		units   int64 // fetched after this step
		invalid bool
	}{
		{0, 0, 0, false}, {200, 50, 0, false}, {1 << 62, 1, 0, false},
		{-1, 5, 0, true}, {5, -1, 0, true}, {1 << 62, 1 << 62, 0, true},
		{99, 1, 1, false}, {199, 1 << 40, 2, false},
	} {
		err := p.Ensure(t.Context(), c.off, c.n, b.fill)
		if errors.Is(err, fs.ErrInvalid) != c.invalid || (err != nil) != c.invalid {
			t.Errorf("Ensure(%d, %d): %v", c.off, c.n, err)
		}
		if b.filled() != c.units {
			t.Errorf("Ensure(%d, %d): %d units fetched, want %d", c.off, c.n, b.filled(), c.units)
		}
	}
}

func TestBadUnits(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	d := digest.FromString("x")
	for _, units := range [][]Unit{
		{{Off: 1, Len: 5}}, {{Len: 0}}, {{Len: -1}}, {{Len: 5}, {Off: 6, Len: 1}}, {{Len: 5}, {Off: 4, Len: 1}},
		{{Len: 1 << 62}, {Off: 1 << 62, Len: 1 << 62}},
	} {
		if _, err := s.Pack(d, units); err == nil {
			t.Errorf("Pack(%v) is no error", units)
		}
	}
	if _, err := s.Pack("sha256:../../x", nil); err == nil {
		t.Error("a path was taken for a digest")
	}
}

func TestEmptyPacks(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	lazy, err := s.Pack(digest.FromString("lazy"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(lazy)
	whole := writePack(t, s, makeBlob(3), nil)
	for _, p := range []*Pack{lazy, whole} {
		n, err := p.ReadAt(make([]byte, 1), 0)
		if p.Size() != 0 || !p.IsComplete() || n != 0 || err != io.EOF || p.Ensure(t.Context(), 0, 10, nil) != nil {
			t.Errorf("empty pack: size %d, complete %v, read %d %v", p.Size(), p.IsComplete(), n, err)
		}
	}
}

// TestEnsureOnce: however many callers ask for overlapping ranges, a unit is fetched once.
func TestEnsureOnce(t *testing.T) {
	b := evenBlob(4, 64, 5000)
	s := openStore(t, t.TempDir(), Options{})
	p, q := openPack(t, s, b), openPack(t, s, b)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 50 {
				off := r.Int64N(int64(len(b.data)))
				n := r.Int64N(min(30000, int64(len(b.data))-off)) + 1
				pack := []*Pack{p, q}[r.IntN(2)]
				got := make([]byte, n)
				if k, err := pack.Read(t.Context(), got, off, b.fill); err != nil || int64(k) != n {
					t.Errorf("Read(%d, %d) = %d, %v", off, n, k, err)
				} else if !bytes.Equal(got, b.data[off:off+n]) {
					t.Errorf("Read(%d, %d): wrong bytes", off, n)
				}
			}
		})
	}
	wg.Wait()
	for i := range b.fills {
		if n := b.fills[i].Load(); n > 1 {
			t.Errorf("unit %d was fetched %d times", i, n)
		}
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	b := evenBlob(5, 8, 10000)
	s := openStore(t, dir, Options{})
	p := openPack(t, s, b)
	b.check(t, p, 10000, 25000, b.fill)
	if _, err := s.Complete(b.d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Complete of a part: %v", err)
	}
	letGo(p)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{})
	p = openPack(t, s, b)
	if p.Present() != 30000 {
		t.Errorf("present %d after reopening", p.Present())
	}
	b.check(t, p, 10000, 30000, noFill)
	b.check(t, p, 0, int64(len(b.data)), b.fill)
	if b.filled() != 8 {
		t.Errorf("%d units fetched", b.filled())
	}
	whole, err := s.Complete(b.d)
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(whole)
	b.check(t, whole, 0, int64(len(b.data)), nil)
}

// TestOtherUnits: a pack cut otherwise is replaced, and who has the old one open keeps it.
func TestOtherUnits(t *testing.T) {
	b := evenBlob(6, 4, 1000)
	s := openStore(t, t.TempDir(), Options{})
	p := openPack(t, s, b)
	b.check(t, p, 0, 4000, b.fill)
	c := makeBlob(6, 4000)
	c.d = b.d
	q := openPack(t, s, c)
	if q.Present() != 0 {
		t.Fatalf("the new pack has %d bytes", q.Present())
	}
	c.check(t, q, 0, 4000, c.fill)
	b.check(t, p, 0, 4000, noFill)
}

func TestFillErrors(t *testing.T) {
	boom := errors.New("boom")
	b := evenBlob(7, 3, 100)
	wrong := bytes.Repeat([]byte{1}, 100)
	for _, c := range []struct {
		name string
		fill Fill
		want error
	}{
		{"fails", func(context.Context, int, int, func(int, []byte) error) error { return boom }, boom},
		{"leaves out", func(context.Context, int, int, func(int, []byte) error) error { return nil }, errLeftOut},
		{"wrong bytes", func(_ context.Context, i, _ int, put func(int, []byte) error) error { return put(i, wrong) }, ErrCorrupt},
		{"wrong length", func(_ context.Context, i, _ int, put func(int, []byte) error) error { return put(i, wrong[1:]) }, fs.ErrInvalid},
		{"wrong unit", func(_ context.Context, _, _ int, put func(int, []byte) error) error { return put(3, wrong) }, fs.ErrInvalid},
		{"none", nil, ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := openPack(t, openStore(t, t.TempDir(), Options{}), b)
			if err := p.Ensure(t.Context(), 0, 300, c.fill); !errors.Is(err, c.want) {
				t.Fatalf("Ensure: %v, want %v", err, c.want)
			}
			if p.Present() != 0 || p.Has(0, 1) {
				t.Fatal("something counts as there")
			}
			b.check(t, p, 0, 300, b.fill) // and the next try succeeds
		})
	}
}

// TestReadAhead: a fill may put more than it was asked for, also what another one fetches.
func TestReadAhead(t *testing.T) {
	b := evenBlob(8, 10, 100)
	p := openPack(t, openStore(t, t.TempDir(), Options{}), b)
	started, release := make(chan struct{}), make(chan struct{})
	slow := func(ctx context.Context, first, last int, put func(int, []byte) error) error {
		close(started)
		<-release
		return b.fill(ctx, first, last, put)
	}
	done := make(chan error)
	go func() { done <- p.Ensure(context.Background(), 500, 100, slow) }()
	<-started
	ended := make(chan struct{})
	all := func(ctx context.Context, _, _ int, put func(int, []byte) error) error {
		defer close(ended)
		return b.fill(ctx, 0, 9, put)
	}
	if err := p.Ensure(t.Context(), 0, 1, all); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil { // although its own fill still hangs
		t.Fatal(err)
	}
	<-ended
	close(release)
	b.check(t, p, 0, 1000, noFill)
}

func ExamplePack() {
	dir, _ := os.MkdirTemp("", "cache")
	defer func() { _ = os.RemoveAll(dir) }()
	s, _ := Open(dir, Options{})
	data := []byte("the bytes of a layer")
	p, _ := s.Pack(digest.FromBytes(data), []Unit{{Len: int64(len(data)), Sum: sha256.Sum256(data)}})
	fetch := func(_ context.Context, first, _ int, put func(int, []byte) error) error {
		fmt.Println("fetching")
		return put(first, data)
	}
	for range 2 {
		b := make([]byte, 9)
		_, _ = p.Read(context.Background(), b, 4, fetch)
		fmt.Printf("%q\n", b)
	}
	_ = p.Close()
	_ = s.Close()
	// Output:
	// fetching
	// "bytes of "
	// "bytes of "
}

package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
)

// flip changes one byte of a file.
func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(f)
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// TestFlippedUnit: a changed byte costs a fetch of its unit and nothing else.
func TestFlippedUnit(t *testing.T) {
	dir := t.TempDir()
	b := evenBlob(200, 6, 5000)
	s := openStore(t, dir, Options{})
	p := openPack(t, s, b)
	b.check(t, p, 0, p.Size(), b.fill)
	letGo(p)
	s.bg.Wait()
	flip(t, packPath(s, b.d), 12345) // unit 2
	p = openPack(t, s, b)
	if !p.IsComplete() {
		t.Fatal("not complete")
	}
	b.check(t, p, 0, p.Size(), b.fill)
	for i := range b.fills {
		want := int64(1)
		if i == 2 {
			want = 2
		}
		if got := b.fills[i].Load(); got != want {
			t.Errorf("unit %d was fetched %d times, want %d", i, got, want)
		}
	}
	letGo(p)
	s.bg.Wait()
	p = openPack(t, s, b)
	b.check(t, p, 0, p.Size(), noFill)
}

// TestFlippedWhole: where nobody knows the sums, a changed byte is an error, and the pack
// is not complete for the next one.
func TestFlippedWhole(t *testing.T) {
	b := evenBlob(201, 10, 50000)
	s := openStore(t, t.TempDir(), Options{})
	letGo(writePack(t, s, b, nil))
	s.bg.Wait()
	flip(t, packPath(s, b.d), 200000)
	p, err := s.Complete(b.d)
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(p)
	b.check(t, p, 0, 190000, nil)
	if err := p.Ensure(t.Context(), 199999, 2, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Ensure of damaged bytes: %v", err)
	}
	unverified := func(_ context.Context, i, _ int, put func(int, []byte) error) error {
		return put(i, b.data[i*UnitSize:(i+1)*UnitSize])
	}
	if err := p.Ensure(t.Context(), 199999, 2, unverified); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Ensure of damaged bytes with a fill that cannot be verified: %v", err)
	}
	if p.IsComplete() {
		t.Error("still complete")
	}
	if _, err := s.Complete(b.d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Complete again: %v", err)
	}
	q := writePack(t, s, b, nil)
	b.check(t, q, 0, q.Size(), nil)
}

// TestDamagedMeta: damage of map or header costs fetches, never wrong bytes.
func TestDamagedMeta(t *testing.T) {
	b := evenBlob(202, 6, 5000)
	h := header{size: 30000, units: 6}
	for name, off := range map[string]int64{
		"mark":   h.mapOff() + 2*entrySize + 13,
		"crc":    h.mapOff() + 2*entrySize + 8,
		"end":    h.mapOff() + 2*entrySize,
		"magic":  h.headerOff(),
		"clean":  h.headerOff() + 12,
		"layout": h.headerOff() + 50,
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), Options{})
			p := openPack(t, s, b)
			b.check(t, p, 0, p.Size(), b.fill)
			letGo(p)
			s.bg.Wait()
			flip(t, packPath(s, b.d), off)
			before := b.filled()
			p = openPack(t, s, b)
			b.check(t, p, 0, p.Size(), b.fill)
			want := int64(6)
			if name == "mark" || name == "crc" {
				want = 1
			}
			if got := b.filled() - before; got != want {
				t.Errorf("%d units fetched again, want %d", got, want)
			}
		})
	}
}

func TestTruncatedPack(t *testing.T) {
	b := evenBlob(203, 6, 5000)
	s := openStore(t, t.TempDir(), Options{})
	p := openPack(t, s, b)
	b.check(t, p, 0, p.Size(), b.fill)
	letGo(p)
	s.bg.Wait()
	for _, size := range []int64{0, 100, blockSize, 20000} {
		if err := os.Truncate(packPath(s, b.d), size); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Complete(b.d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Complete of a file cut to %d bytes: %v", size, err)
		}
		p := openPack(t, s, b)
		b.check(t, p, 0, p.Size(), b.fill)
		letGo(p)
		s.bg.Wait()
	}
}

func TestWriter(t *testing.T) {
	big := makeBlob(204, 70000, 3, 500000, 65536, 131072, 1<<20, 17)
	for _, step := range []int{1000, 4096, 65536, 70001, 1 << 20, len(big.data)} {
		dir := t.TempDir()
		s := openStore(t, dir, Options{})
		w, err := s.Create(big.d)
		if err != nil {
			t.Fatal(err)
		}
		for rest := big.data; len(rest) > 0; rest = rest[min(step, len(rest)):] {
			if n, err := w.Write(rest[:min(step, len(rest))]); err != nil || n != min(step, len(rest)) {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		if _, err := s.Complete(big.d); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("visible before Commit: %v", err)
		}
		p, err := w.Commit([]byte("index"))
		if err != nil {
			t.Fatal(err)
		}
		if !p.IsComplete() || p.Present() != int64(len(big.data)) {
			t.Errorf("present %d", p.Present())
		}
		big.check(t, p, 0, p.Size(), nil)
		other := openStore(t, dir, Options{}) // another process sees it at once
		q, err := other.Complete(big.d)
		if err != nil {
			t.Fatal(err)
		}
		big.check(t, q, 0, q.Size(), nil)
		if b, err := other.Index(big.d); err != nil || string(b) != "index" {
			t.Errorf("index %q, %v", b, err)
		}
		letGo(p)
		letGo(q)
		s.bg.Wait()
		if !readHeader(t, packPath(s, big.d)).clean {
			t.Error("not clean after publication")
		}
	}
}

func TestWriterHoles(t *testing.T) {
	b := &blob{data: make([]byte, 8<<20), d: digest.FromString("holes")}
	copy(b.data[5<<20:], "something")
	s := openStore(t, t.TempDir(), Options{})
	p := writePack(t, s, b, nil)
	b.check(t, p, 0, p.Size(), nil)
	if n := onDisk(packPath(s, b.d)); n > 256<<10 {
		t.Errorf("8 MiB of zeros take %d bytes", n)
	}
}

func TestUntilHole(t *testing.T) {
	const k = blockSize
	for _, c := range []struct {
		zero       [2]int // which bytes are zero
		n          int
		data, hole int
	}{
		{[2]int{0, 0}, 10 * k, 10 * k, 0},
		{[2]int{0, 10 * k}, 10 * k, 0, 10 * k},
		{[2]int{2 * k, 8 * k}, 10 * k, 2 * k, 6 * k},
		{[2]int{2 * k, 5 * k}, 10 * k, 10 * k, 0}, // too short
		{[2]int{2*k + 1, 8*k - 1}, 10 * k, 3 * k, 4 * k},
		{[2]int{0, 10}, 10, 10, 0},
		{[2]int{4 * k, 9*k + 5}, 9*k + 5, 4 * k, 5 * k},
	} {
		b := bytes.Repeat([]byte{1}, c.n)
		clear(b[c.zero[0]:c.zero[1]])
		if data, hole := untilHole(b); data != c.data || hole != c.hole {
			t.Errorf("zeros %v of %d: %d, %d, want %d, %d", c.zero, c.n, data, hole, c.data, c.hole)
		}
	}
}

// TestWriterSlower: the second of two writers of the same layer succeeds as well.
func TestWriterSlower(t *testing.T) {
	dir := t.TempDir()
	b := evenBlob(205, 3, 100000)
	s, r := openStore(t, dir, Options{}), openStore(t, dir, Options{})
	p := writePack(t, s, b, []byte("i"))
	ino := inode(t, packPath(s, b.d))
	for _, store := range []*Store{s, r} {
		q := writePack(t, store, b, []byte("i"))
		b.check(t, q, 0, q.Size(), nil)
	}
	if inode(t, packPath(s, b.d)) != ino {
		t.Error("the pack was replaced")
	}
	b.check(t, p, 0, p.Size(), nil)
	if list, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(list) != 0 {
		t.Errorf("left behind: %v", list)
	}
}

// TestWriterReplacesPart: a whole pack takes the place of a lazily filled part.
func TestWriterReplacesPart(t *testing.T) {
	b := evenBlob(206, 3, 100000)
	s := openStore(t, t.TempDir(), Options{})
	p := openPack(t, s, b)
	b.check(t, p, 0, 10, b.fill)
	writePack(t, s, b, nil)
	q, err := s.Complete(b.d)
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(q)
	b.check(t, q, 0, q.Size(), nil)
	b.check(t, p, 0, p.Size(), b.fill) // the old one still works for who has it
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestAbort(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	w, err := s.Create(digest.FromString("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Write after Abort: %v", err)
	}
	if _, err := w.Commit(nil); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Commit after Abort: %v", err)
	}
	if list, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(list) != 0 {
		t.Errorf("left behind: %v", list)
	}
}

func TestRecords(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	const name = "tag/localhost:5000/a/../b"
	if _, err := s.Load(name); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		t.Fatalf("Load of nothing: %v", err)
	}
	for _, v := range []string{"one", "one", "two", "", strings.Repeat("x", 1<<20)} {
		if err := s.Save(name, []byte(v)); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Load(name); err != nil || string(b) != v {
			t.Fatalf("Load = %.10q, %v, want %.10q", b, err, v)
		}
	}
	if _, err := s.Load(name + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another name: %v", err)
	}
	s.bg.Wait()
	if list, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(list) != 0 {
		t.Errorf("left behind: %v", list)
	}
	flip(t, s.recordPath(name), 5000)
	if _, err := s.Load(name); !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("Load of a damaged record: %v", err)
	}
	if _, err := s.Load(name); errors.Is(err, ErrCorrupt) {
		t.Errorf("the damaged record was not dropped: %v", err)
	}
	if err := s.Save("a", []byte("v")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := s.Drop("a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Load("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of what was dropped: %v", err)
	}
	if err := s.Save("a", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.recordPath("a"), s.recordPath("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load("b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a record under another name: %v", err)
	}
}

func TestIndex(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	d := digest.FromString("layer")
	if _, err := s.Index(d); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Index of nothing: %v", err)
	}
	for _, v := range []string{"one", "two"} {
		if err := s.PutIndex(d, []byte(v)); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Index(d); err != nil || string(b) != v {
			t.Fatalf("Index = %q, %v", b, err)
		}
	}
	for _, bad := range []digest.Digest{"", "sha256:", "../../etc", "sha256:../../../../../../../../../../../../../../../../../../../../../../../../../x"} {
		if err := s.PutIndex(bad, nil); err == nil {
			t.Errorf("PutIndex(%q) is no error", bad)
		}
		if _, err := s.Index(bad); err == nil {
			t.Errorf("Index(%q) is no error", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	ends := []int64{UnitSize, 2 * UnitSize, 3 * UnitSize, 200000}
	m, sum := encodeEnds(ends)
	h := header{size: 200000, units: int64(len(ends)), ends: sum}
	f.Add(h.encode(), h.fileSize(), m)
	f.Add([]byte{}, int64(0), []byte{})
	f.Fuzz(func(t *testing.T, b []byte, size int64, m []byte) {
		if len(b) >= headerSize { // or the fuzzer would never get past the checksum
			b = bytes.Clone(b)
			copy(b, magic)
			binary.LittleEndian.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
		}
		h, err := parseHeader(b, size)
		if err != nil {
			return
		}
		if h.fileSize() != size || h.units > h.size || h.mapOff() < h.size {
			t.Fatalf("header out of range: %+v in %d bytes", h, size)
		}
		if int64(len(m)) < h.units*entrySize {
			return
		}
		ends, err := parseEnds(m, h)
		if err == nil && len(ends) > 0 && ends[len(ends)-1] != h.size {
			t.Fatalf("units end at %d of %d", ends[len(ends)-1], h.size)
		}
	})
}

func FuzzUnseal(f *testing.F) {
	f.Add(seal([]byte("content")))
	f.Add([]byte(sealMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if content, ok := unseal(b); ok && !bytes.Equal(seal(content), b) {
			t.Fatalf("%q is not what seals to %q", content, b)
		}
		if content, ok := unseal(seal(b)); !ok || !bytes.Equal(content, b) {
			t.Fatal("seal and unseal do not agree")
		}
	})
}

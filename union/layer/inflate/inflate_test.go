package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
)

// sampleText is n bytes that compress in all manners: text, runs, noise, far repeats.
func sampleText(r *rand.Rand, n int) []byte {
	var b []byte
	words := strings.Fields("the quick brown fox jumps over a lazy dog \x00\x00\x00\x00\x00\x00\x00\x00 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \xff\xfe")
	for len(b) < n {
		switch r.IntN(6) {
		case 0:
			for range r.IntN(300) {
				b = append(b, byte(r.Uint32()))
			}
		case 1:
			b = append(b, bytes.Repeat([]byte{byte(r.IntN(4))}, r.IntN(2000))...)
		case 2:
			if len(b) > 0 {
				from := max(0, len(b)-1-r.IntN(40000))
				b = append(b, b[from:min(len(b), from+r.IntN(600))]...)
			}
		default:
			for range r.IntN(200) {
				b = append(b, words[r.IntN(len(words))]...)
			}
		}
	}
	return b[:n]
}

// pack compresses data as members, each at a level of its own.
func pack(t testing.TB, r *rand.Rand, data []byte, members int) []byte {
	t.Helper()
	var out bytes.Buffer
	for i := range members {
		part := data[len(data)*i/members : len(data)*(i+1)/members]
		w, err := gzip.NewWriterLevel(&out, r.IntN(12)-2)
		if err != nil {
			t.Fatal(err)
		}
		w.Name, w.Comment, w.Extra = "name"[:r.IntN(5)], "comment"[:r.IntN(8)], make([]byte, r.IntN(3)*7)
		for len(part) > 0 {
			n := min(len(part), 1+r.IntN(100000))
			if _, err := w.Write(part[:n]); err != nil {
				t.Fatal(err)
			}
			if r.IntN(4) == 0 {
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			part = part[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestReader(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			data := sampleText(r, r.IntN(1_500_000))
			blob := pack(t, r, data, 1+r.IntN(3))
			garbage := bytes.Repeat([]byte{byte(r.IntN(2) * 7)}, r.IntN(3)*1000)
			var points []Checkpoint
			z := NewReader(bytes.NewReader(append(blob[:len(blob):len(blob)], garbage...)), Options{Span: 1 << 16, OnCheckpoint: func(c Checkpoint) { points = append(points, c) }})
			var got bytes.Buffer
			if _, err := z.WriteTo(&got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), data) {
				t.Fatal("decoded bytes differ")
			}
			if z.Trailing() != int64(len(garbage)) {
				t.Errorf("skipped %d bytes, want %d", z.Trailing(), len(garbage))
			}
			thinner := &Thinner{}
			for i, c := range points {
				checkResume(t, blob, data, c)
				checkThin(t, thinner, blob, data, c)
				if i > 0 && c.Out < points[i-1].Out+1<<16 {
					t.Errorf("checkpoints at %d and %d", points[i-1].Out, c.Out)
				}
			}
			checkSmallReads(t, blob, data)
		})
	}
}

// TestFirst: the first checkpoint is where the header ends.
func TestFirst(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	data := sampleText(r, 500_000)
	blob := pack(t, r, data, 2)
	var points []Checkpoint
	z := NewReader(bytes.NewReader(blob), Options{Span: 1 << 16, First: true, OnCheckpoint: func(c Checkpoint) { points = append(points, c) }})
	if _, err := io.Copy(io.Discard, z); err != nil {
		t.Fatal(err)
	}
	if len(points) < 3 || points[0].Out != 0 || points[0].Bits != 0 || points[0].Window != nil || points[1].Out < 1<<16 {
		t.Fatalf("%d checkpoints, the first is %+v", len(points), points[0])
	}
	for _, c := range points {
		checkResume(t, blob, data, c)
	}
}

// TestFirstEmpty: blocks that hold nothing come before the first byte of output.
func TestFirstEmpty(t *testing.T) {
	data := []byte("the first byte comes late")
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Name = "a name"
	for range 2 {
		if err := w.Flush(); err != nil { // an empty stored block of five bytes
			t.Fatal(err)
		}
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	header := int64(10 + len("a name") + 1)
	for first, want := range map[bool][]int64{true: {header, header + 5, header + 10}, false: nil} {
		var points []int64
		o := Options{Span: 1 << 16, First: first, OnCheckpoint: func(c Checkpoint) {
			points = append(points, c.In)
			checkResume(t, b.Bytes(), data, c)
		}}
		if _, err := io.Copy(io.Discard, NewReader(bytes.NewReader(b.Bytes()), o)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(points, want) {
			t.Errorf("%v: checkpoints at %v, want %v", first, points, want)
		}
	}
}

func checkResume(t *testing.T, blob, data []byte, c Checkpoint) {
	t.Helper()
	from := c.In
	if c.Bits > 0 {
		from--
	}
	z, err := Resume(bytes.NewReader(blob[from:]), c, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(got, data[c.Out:]) {
		t.Fatalf("from the checkpoint at %d: %v, %d bytes, want %d", c.Out, err, len(got), int64(len(data))-c.Out)
	}
}

// checkThin: a thinned window gives the same bytes; of too little input it is left as it was.
func checkThin(t *testing.T, thinner *Thinner, blob, data []byte, c Checkpoint) {
	t.Helper()
	next := blob[c.In:]
	if c.Bits > 0 {
		next = blob[c.In-1:]
	}
	whole := bytes.Clone(c.Window)
	if len(next) > 100 && len(data)-int(c.Out) > 2*WindowSize && thinner.Thin(c, next[:2]) && len(whole) > 0 {
		t.Errorf("the checkpoint at %d was thinned by two bytes", c.Out)
	}
	if !bytes.Equal(c.Window, whole) {
		t.Fatalf("the window at %d changed without a reason", c.Out)
	}
	if !thinner.Thin(c, next) {
		t.Errorf("the checkpoint at %d was not thinned", c.Out)
	}
	checkResume(t, blob, data, c)
	if len(whole) > 0 && bytes.Count(c.Window, []byte{0}) < bytes.Count(whole, []byte{0}) {
		t.Errorf("the window at %d has fewer zeros than before", c.Out)
	}
}

func checkSmallReads(t *testing.T, blob, data []byte) {
	t.Helper()
	for _, src := range []io.Reader{iotest.OneByteReader(bytes.NewReader(blob)), iotest.DataErrReader(bytes.NewReader(blob))} {
		got, err := io.ReadAll(iotest.HalfReader(NewReader(src, Options{})))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("small reads: %v", err)
		}
	}
}

// TestDamage: whatever is cut or flipped, the answer is an error or the right bytes.
func TestDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	data := sampleText(r, 300_000)
	blob := pack(t, r, data, 2)
	for range 300 {
		cut := r.IntN(len(blob))
		got, err := io.ReadAll(NewReader(bytes.NewReader(blob[:cut]), Options{}))
		if err == nil && len(got) != len(data)/2 || !bytes.HasPrefix(data, got) {
			t.Fatalf("cut at %d of %d: %d bytes, %v", cut, len(blob), len(got), err)
		}
		bad := bytes.Clone(blob)
		bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
		got, err = io.ReadAll(NewReader(bytes.NewReader(bad), Options{}))
		if err == nil && !bytes.Equal(got, data) && !bytes.Equal(got, data[:len(data)/2]) {
			t.Fatalf("one bit flipped: wrong bytes and no error")
		}
		if err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrChecksum) && err != io.ErrUnexpectedEOF {
			t.Fatalf("one bit flipped: %v", err)
		}
	}
}

// bitWriter writes DEFLATE by hand.
type bitWriter struct {
	b    []byte
	bits uint64
	n    uint
}

func (w *bitWriter) put(v uint64, n uint) *bitWriter {
	w.bits |= v << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.b = append(w.b, byte(w.bits))
		w.bits >>= 8
	}
	return w
}

func (w *bitWriter) bytes() []byte { return append(w.b, byte(w.bits)) }

// dynamic writes the beginning of a last block with the given code lengths, each with 4 bits.
func dynamic(lits, dists []uint8) *bitWriter {
	w := (&bitWriter{}).put(1, 1).put(2, 2).put(uint64(len(lits)-257), 5).put(uint64(len(dists)-1), 5).put(15, 4)
	for _, symbol := range codeOrder {
		n := uint64(4)
		if symbol >= 16 {
			n = 0
		}
		w.put(n, 3)
	}
	for _, n := range append(append([]uint8(nil), lits...), dists...) {
		var reversed uint64
		for i := range 4 {
			reversed |= uint64(n>>i&1) << (3 - i)
		}
		w.put(reversed, 4)
	}
	return w
}

func litLengths(set map[int]uint8, n int) []uint8 {
	l := make([]uint8, n)
	for symbol, bits := range set {
		l[symbol] = bits
	}
	return l
}

func TestCodes(t *testing.T) {
	for _, tt := range []struct {
		name string
		raw  []byte
		want string
		ok   bool
	}{
		{"empty stored block", []byte{1, 0, 0, 0xff, 0xff}, "", true},
		{"stored", []byte{1, 2, 0, 0xfd, 0xff, 'h', 'i'}, "hi", true},
		{"stored, wrong complement", []byte{1, 2, 0, 0xfd, 0xfe, 'h', 'i'}, "", false},
		{"block type 3", []byte{7}, "", false},
		{"fixed, end only", []byte{3, 0}, "", true},
		{"only the end", dynamic(litLengths(map[int]uint8{256: 1}, 257), []uint8{0}).put(0, 1).bytes(), "", true},
		{"one literal", dynamic(litLengths(map[int]uint8{'a': 1, 256: 1}, 257), []uint8{0}).put(0, 1).put(0, 1).put(1, 1).bytes(), "aa", true},
		{"one distance of one bit", dynamic(litLengths(map[int]uint8{'a': 1, 256: 2, 257: 2}, 258), []uint8{1}).put(0, 1).put(3, 2).put(0, 1).put(1, 2).bytes(), "aaaa", true},
		{"the unused half of it", dynamic(litLengths(map[int]uint8{'a': 1, 256: 2, 257: 2}, 258), []uint8{1}).put(0, 1).put(3, 2).put(1, 1).put(1, 2).bytes(), "", false},
		{"a distance without a code", dynamic(litLengths(map[int]uint8{'a': 1, 256: 2, 257: 2}, 258), []uint8{0}).put(0, 1).put(3, 2).put(0, 1).put(1, 2).bytes(), "", false},
		{"no end of block", dynamic(litLengths(map[int]uint8{'a': 1, 'b': 1}, 257), []uint8{0}).put(0, 1).bytes(), "", false},
		{"too many codes", dynamic(litLengths(map[int]uint8{'a': 1, 'b': 1, 256: 1}, 257), []uint8{0}).put(0, 1).bytes(), "", false},
		{"too few codes", dynamic(litLengths(map[int]uint8{'a': 2, 256: 2}, 257), []uint8{0}).put(0, 1).bytes(), "", false},
		{"too few distances", dynamic(litLengths(map[int]uint8{'a': 1, 256: 2, 257: 2}, 258), []uint8{2, 2}).put(0, 1).put(1, 2).bytes(), "", false},
		{"distance beyond the beginning", dynamic(litLengths(map[int]uint8{'a': 1, 256: 2, 257: 2}, 258), []uint8{1, 1}).put(0, 1).put(3, 2).put(1, 1).put(1, 2).bytes(), "", false},
	} {
		for _, pad := range []int{0, 100} { // by the slow loop, and by the fast one
			got, err := io.ReadAll(NewReader(bytes.NewReader(append(tt.raw[:len(tt.raw):len(tt.raw)], make([]byte, pad)...)), Options{Raw: true}))
			if (err == nil) != tt.ok || tt.ok && string(got) != tt.want {
				t.Errorf("%s, %d bytes behind it: %q, %v", tt.name, pad, got, err)
			}
			if std, stdErr := io.ReadAll(flate.NewReader(bytes.NewReader(tt.raw))); (stdErr == nil) != tt.ok || tt.ok && !bytes.Equal(std, got) {
				t.Errorf("%s: the standard library says %q, %v", tt.name, std, stdErr)
			}
		}
	}
}

// FuzzInflate holds the decoder against the standard library's.
func FuzzInflate(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 8 {
		f.Add(pack(f, r, sampleText(r, 3000), 1))
	}
	f.Add(dynamic(litLengths(map[int]uint8{'a': 1, 256: 2, 257: 2}, 258), []uint8{1}).put(0, 1).put(3, 2).put(0, 1).put(1, 2).bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(b), Options{Raw: true}), 1<<22))
		want, stdErr := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), 1<<22))
		if (err == nil) != (stdErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v; the standard library: %d bytes, %v", len(got), err, len(want), stdErr)
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(NewReader(bytes.NewReader(b), Options{Span: 1, OnCheckpoint: func(Checkpoint) {}}), 1<<22))
	})
}

// BenchmarkGzip decodes the same data by turns with this package, klauspost's
// and the standard library's. LAYERFS_GZIP names a file to use.
func BenchmarkGzip(b *testing.B) {
	blob := benchBlob(b)
	points := 0
	decoders := []struct {
		name string
		run  func(r io.Reader) (int64, error)
	}{
		{"layerfs", func(r io.Reader) (int64, error) {
			return NewReader(r, Options{Span: 2 << 20, OnCheckpoint: func(Checkpoint) { points++ }}).WriteTo(io.Discard)
		}},
		{"klauspost", func(r io.Reader) (int64, error) {
			z, err := kgzip.NewReader(r)
			if err != nil {
				return 0, err
			}
			return z.WriteTo(io.Discard)
		}},
		{"standard", func(r io.Reader) (int64, error) {
			z, err := gzip.NewReader(r)
			if err != nil {
				return 0, err
			}
			return io.Copy(io.Discard, z)
		}},
	}
	for _, d := range decoders {
		b.Run(d.name, func(b *testing.B) {
			for b.Loop() {
				n, err := d.run(bytes.NewReader(blob))
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}

package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/layerfs/layerfs/union/layer/inflate"
)

// zframe is b in a frame of its own.
func zframe(tb testing.TB, b []byte, o ...zstd.EOption) []byte {
	tb.Helper()
	z, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true)}, o...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return z.EncodeAll(b, nil)
}

// zstream is the same by the streaming encoder, which does not know the size beforehand.
func zstream(tb testing.TB, b []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := z.Write(b); err != nil {
		tb.Fatal(err)
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefgh"[r.IntN(8)]
	}
	return b
}

// A cutStream is a stream and where its sections begin, the first included.
type cutStream struct {
	*zstdStream
	cuts []inflate.Checkpoint
}

func newCutStream(tb testing.TB, r io.Reader) *cutStream {
	tb.Helper()
	c := &cutStream{cuts: make([]inflate.Checkpoint, 1)}
	var err error
	if c.zstdStream, err = newZstdStream(r, func(p inflate.Checkpoint) { c.cuts = append(c.cuts, p) }); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// check decodes every section by itself; want is what comes out of all of them.
func (c *cutStream) check(t *testing.T, name string, blob, want []byte) {
	t.Helper()
	for i, p := range c.cuts {
		end := inflate.Checkpoint{In: int64(len(blob)), Out: int64(len(want))}
		if i+1 < len(c.cuts) {
			end = c.cuts[i+1]
		}
		if n := end.Out - p.Out; end.In <= p.In && len(blob) > 0 || n < 0 || i+1 < len(c.cuts) && n < sectionSize {
			t.Errorf("%s: section from %+v to %+v", name, p, end)
			return
		}
		b, err := unpackFrames(blob[p.In:end.In], end.Out-p.Out, nil)
		if err != nil || !bytes.Equal(b, want[p.Out:end.Out]) {
			t.Errorf("%s: section from %+v to %+v: %d bytes, %v", name, p, end, len(b), err)
		}
	}
}

// TestZstdStream: the sections of a stream cover it, decode by themselves, and are none too small.
func TestZstdStream(t *testing.T) {
	noise := make([]byte, 3<<20)
	r := rand.New(rand.NewPCG(2, 3))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	seekTable := binary.LittleEndian.AppendUint32([]byte{0x5e, 0x2a, 0x4d, 0x18}, 9)
	seekTable = append(seekTable, "\x00\x00\x00\x00\x00\xb1\xea\x92\x8f"...)
	for _, tc := range []struct {
		name  string
		parts [][]byte // what is decompressed
		blob  [][]byte // a frame of each, or skippable ones
		cuts  int
	}{
		{"nothing", nil, nil, 1},
		{"one", [][]byte{text(3 << 20)}, [][]byte{zframe(t, text(3<<20))}, 1},
		{"empty", nil, [][]byte{zframe(t, nil)}, 1},
		{"three", [][]byte{text(1 << 20), noise, text(5)}, [][]byte{zframe(t, text(1<<20)), zframe(t, noise), zframe(t, text(5))}, 3},
		{"unknown sizes", [][]byte{text(2 << 20), noise}, [][]byte{zstream(t, text(2<<20)), zstream(t, noise)}, 2},
		{"zeros", [][]byte{make([]byte, 9<<20)}, [][]byte{zframe(t, make([]byte, 9<<20))}, 1},
		{
			"small ones", [][]byte{text(600_000), text(600_000), text(600_000), text(600_000), text(300)},
			[][]byte{zframe(t, text(600_000)), zframe(t, text(600_000)), zstream(t, text(600_000)), zframe(t, text(600_000)), zframe(t, text(300))}, 3,
		},
		{
			"skippable", [][]byte{text(1 << 20), text(1 << 20)},
			[][]byte{seekTable, zframe(t, text(1<<20)), skippable(nil, text(100_000)), seekTable, zframe(t, text(1<<20)), seekTable}, 2,
		},
		{"only skippable", nil, [][]byte{seekTable, seekTable}, 1},
	} {
		blob, want := bytes.Join(tc.blob, nil), bytes.Join(tc.parts, nil)
		s := newCutStream(t, &halves{blob})
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d, %v", tc.name, len(got), len(want), err)
		}
		if len(s.cuts) != tc.cuts || s.src.off != int64(len(blob)) {
			t.Errorf("%s: %d sections of %d bytes, want %d of %d", tc.name, len(s.cuts), s.src.off, tc.cuts, len(blob))
		}
		s.check(t, tc.name, blob, want)
	}
}

// TestZstdStreamCut: a stream that is cut anywhere is an error, unless between two frames.
func TestZstdStreamCut(t *testing.T) {
	first, second := zframe(t, text(300)), append(skippable(nil, []byte("skipped")), zstream(t, text(200_000))...)
	blob := append(bytes.Clone(first), second...)
	whole := map[int]bool{0: true, len(first): true, len(first) + 15: true}
	for n := range len(blob) {
		if n > len(first)+100 && n < len(blob)-100 && n%997 != 0 {
			continue
		}
		s := newCutStream(t, bytes.NewReader(blob[:n]))
		if _, err := io.Copy(io.Discard, s); whole[n] != (err == nil) || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d of %d: %v", n, len(blob), err)
		}
	}
}

// FuzzZstdStream holds the stream to the decoder that it wraps, which reads all frames at once.
func FuzzZstdStream(f *testing.F) {
	f.Add(append(zframe(f, text(300)), skippable(zstream(f, text(1000)), []byte("skipped"))...))
	f.Add(zframe(f, make([]byte, 1000), zstd.WithEncoderCRC(false)))
	f.Add(zframe(f, nil))
	f.Add(skippable(nil, nil))
	const most = 1 << 20 // what a few bytes can become is of no interest
	f.Fuzz(func(t *testing.T, b []byte) {
		z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		want, wantErr := io.ReadAll(io.LimitReader(z, most+1))
		s := newCutStream(t, bytes.NewReader(b))
		got, err := io.ReadAll(io.LimitReader(s, most+1))
		if wantErr == nil && (err != nil || !bytes.Equal(got, want)) {
			t.Fatalf("%d bytes, %v; the decoder alone: %d bytes", len(got), err, len(want))
		}
		if err == nil && len(got) <= most {
			s.check(t, "fuzz", b, got)
		}
	})
}

package layer_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/suite"
)

const (
	containers = "io.github.containers.zstd-chunked."
	stargz     = "io.containers.zstd-chunked."
)

// chunkedFormats are the two dialects, as the suite names them.
var chunkedFormats = []string{"zstd:chunked", "zstd:chunked stargz"}

func chunked(t *testing.T, text, format string) ([]byte, ocispec.Descriptor) {
	t.Helper()
	b, desc, _ := layertest.Blob(text, format, suite.Encoders[format])
	return b, desc
}

// with is desc with annotations changed; "" removes one.
func with(desc ocispec.Descriptor, pairs ...string) ocispec.Descriptor {
	desc.Annotations = maps.Clone(desc.Annotations)
	for i := 0; i < len(pairs); i += 2 {
		desc.Annotations[pairs[i]] = pairs[i+1]
		if pairs[i+1] == "" {
			delete(desc.Annotations, pairs[i])
		}
	}
	return desc
}

// TestChunked: one request opens a layer, reads fetch what they need, and a second process nothing.
func TestChunked(t *testing.T) {
	for _, format := range chunkedFormats {
		b, desc := chunked(t, lazyText, format)
		dir, r := t.TempDir(), &blob{b: b}
		s := openStore(t, dir)
		l := mustOpen(t, desc, r, s)
		if st := l.Status(); !st.Lazy || st.Index != "toc" || st.Requests != 1 || st.Fetched > 20_000 {
			t.Errorf("%s: after open: %+v", format, st)
		}
		if index, lazy := layer.IndexKind(desc, s); index != "toc" || !lazy {
			t.Errorf("%s: index %s, lazy %v", format, index, lazy)
		}
		wantFile(t, l)
		if n := r.requests.Load(); n != 2 {
			t.Errorf("%s: %d requests for one file", format, n)
		}
		wantRandom(t, l, "d/big", 9<<20)
		wantRandom(t, l, "e", 3<<20)
		wantRandom(t, l, "g", 1<<20)
		if st := l.Status(); !st.Complete || st.Fetched > desc.Size+desc.Size/10 {
			t.Errorf("%s: after all was read: %+v of %d", format, st, desc.Size)
		}
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		s, before := openStore(t, dir), r.requests.Load()
		l = mustOpen(t, desc, r, s)
		wantRandom(t, l, "d/big", 9<<20)
		if n := r.requests.Load() - before; n != 0 {
			t.Errorf("%s: %d requests by the second process", format, n)
		}
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestChunkedSmall: a layer that is small comes with its TOC.
func TestChunkedSmall(t *testing.T) {
	for _, format := range chunkedFormats {
		b, desc := chunked(t, "dir d\nfile d/f \"text\"\nrandom r 100KiB", format)
		r := &blob{b: b}
		l := mustOpen(t, desc, r, newStore(t))
		wantFile(t, l)
		if st := l.Status(); !st.Lazy || !st.Complete || r.requests.Load() != 1 {
			t.Errorf("%s: %d requests, %+v", format, r.requests.Load(), st)
		}
	}
}

// TestChunkedZeros: chunks of zeros are holes, and cost nothing.
func TestChunkedZeros(t *testing.T) {
	b, desc := chunked(t, "random a 1MiB\nzero z 4MiB\nrandom b 1MiB", "zstd:chunked")
	r := &blob{b: b}
	l := mustOpen(t, desc, r, newStore(t))
	before := r.requests.Load()
	id, _ := lookup(l, "z")
	if start, end := l.NextData(id, 0); start != 4<<20 || end != 4<<20 {
		t.Errorf("data from %d to %d", start, end)
	}
	got, err := readFile(t.Context(), l, "z", 1<<20)
	if err != nil || !bytes.Equal(got, make([]byte, 4<<20)) {
		t.Errorf("%d bytes, %v, or no zeros", len(got), err)
	}
	if n := r.requests.Load() - before; n != 0 || !l.Cached(id) {
		t.Errorf("%d requests for zeros", n)
	}
}

// TestChunkedDistrust: a TOC is used when what the manifest says of it is right, and else never.
func TestChunkedDistrust(t *testing.T) {
	text := "dir d\nfile d/f \"text\"\nrandom r 1MiB"
	other := digest.FromString("another").String()
	for _, format := range chunkedFormats {
		b, desc := chunked(t, text, format)
		prefix := containers
		if format != "zstd:chunked" {
			prefix = stargz
		}
		wrong := with(desc, prefix+"manifest-checksum", other)
		if _, err := layer.Open(t.Context(), wrong, &blob{b: b}, newStore(t), layer.Options{}); !errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: another checksum: %v", format, err)
		}
		bad := bytes.Clone(b)
		bad[offsetOf(t, desc, prefix)+20] ^= 1
		s := newStore(t)
		if _, err := layer.Open(t.Context(), desc, &blob{b: bad}, s, layer.Options{}); !errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: damaged TOC: %v", format, err)
		}
		nothingThere(t, s, desc.Digest)
	}
	b, desc := chunked(t, text, "zstd:chunked stargz")
	for name, d := range map[string]ocispec.Descriptor{
		"another TOC":               with(desc, tocAnnotation, other),
		"another TOC, no checksum":  with(desc, tocAnnotation, other, stargz+"manifest-checksum", ""),
		"malformed digest of a TOC": with(desc, tocAnnotation, "sha256:xyz"),
	} {
		if _, err := layer.Open(t.Context(), d, &blob{b: b}, newStore(t), layer.Options{}); !errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// offsetOf is where the manifest stands.
func offsetOf(t *testing.T, desc ocispec.Descriptor, prefix string) (off int) {
	t.Helper()
	if _, err := fmt.Sscanf(desc.Annotations[prefix+"manifest-position"], "%d:", &off); err != nil {
		t.Fatal(err)
	}
	return off
}

// TestChunkedWhole: what cannot be used is said, and the layer read whole.
func TestChunkedWhole(t *testing.T) {
	b, desc := chunked(t, "dir d\nfile d/f \"text\"\nrandom r 1MiB", "zstd:chunked")
	for position, why := range map[string]string{
		"":                               "four numbers",
		"1:2:3":                          "four numbers",
		"8:10:10:-1":                     "invalid syntax",
		"8:10:10:2":                      "type 2",
		"7:10:10:1":                      "bytes at 7",
		"8:99999999:10:1":                "99999999 bytes at 8",
		"4611686018427387904:1:1:1":      "out of range",
		"8:10:157286401:1":               "toc: more than 157286400",
		"8:10:10:99999999999999999999:1": "four numbers",
	} {
		l := mustOpen(t, with(desc, containers+"manifest-position", position), &blob{b: b}, newStore(t))
		if st := l.Status(); st.Lazy || !strings.Contains(st.Why, why) {
			t.Errorf("position %q: %+v", position, st)
		}
		wantFile(t, l)
	}
	l := mustOpen(t, with(desc, containers+"manifest-checksum", ""), &blob{b: b}, newStore(t))
	if st := l.Status(); st.Lazy || st.Why == "" {
		t.Errorf("no checksum: %+v", st)
	}
}

// TestChunkedBoth: of two dialects the one that verifies is used.
func TestChunkedBoth(t *testing.T) {
	b, desc := chunked(t, lazyText, "zstd:chunked stargz")
	position, sum := desc.Annotations[stargz+"manifest-position"], desc.Annotations[stargz+"manifest-checksum"]
	other := digest.FromString("another").String()
	for name, d := range map[string]ocispec.Descriptor{
		"the same":                 with(desc, containers+"manifest-position", position, containers+"manifest-checksum", sum),
		"containers' is wrong":     with(desc, containers+"manifest-position", position, containers+"manifest-checksum", other),
		"containers' is malformed": with(desc, containers+"manifest-position", "1:2", containers+"manifest-checksum", sum),
		"stargz's is wrong":        with(desc, containers+"manifest-position", position, containers+"manifest-checksum", sum, stargz+"manifest-checksum", other),
		"without compressed sum":   with(desc, stargz+"manifest-checksum", ""),
		"without TOC's sum":        with(desc, tocAnnotation, ""),
	} {
		l := mustOpen(t, d, &blob{b: b}, newStore(t))
		if st := l.Status(); !st.Lazy {
			t.Errorf("%s: %+v", name, st)
		}
		wantFile(t, l)
	}
	d := with(desc, containers+"manifest-position", position, containers+"manifest-checksum", other, stargz+"manifest-checksum", other)
	if _, err := layer.Open(t.Context(), d, &blob{b: b}, newStore(t), layer.Options{}); !errors.Is(err, layer.ErrDigest) {
		t.Errorf("both are wrong: %v", err)
	}
}

// TestChunkedCorrupt: a chunk that is not what the TOC says is an error and not kept.
func TestChunkedCorrupt(t *testing.T) {
	for _, format := range chunkedFormats {
		b, desc := chunked(t, lazyText, format)
		for _, damage := range []byte{0x55, 0xff} {
			bad := bytes.Clone(b)
			for i := 1 << 20; i < 1<<20+100; i++ {
				bad[i] ^= damage
			}
			r := &changing{}
			r.now.Store(&blob{b: bad})
			l := mustOpen(t, desc, r, newStore(t))
			if _, err := readFile(t.Context(), l, "d/big", 100_000); !errors.Is(err, layer.ErrDigest) {
				t.Errorf("%s: damaged chunk: %v", format, err)
			}
			wantRandom(t, l, "e", 3<<20)
			r.now.Store(&blob{b: b})
			wantRandom(t, l, "d/big", 9<<20)
		}
	}
}

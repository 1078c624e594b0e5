package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/suite"
)

// names are those of a tar, in its order.
func names(t *testing.T, b []byte) (all []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

// plainNames are the same without the slash of directories.
func plainNames(t *testing.T, b []byte) (all []string) {
	t.Helper()
	for _, name := range names(t, b) {
		all = append(all, strings.TrimSuffix(name, "/"))
	}
	return all
}

// TestSuitePrioritized is the suite on layers whose files were all put first, last to first.
func TestSuitePrioritized(t *testing.T) {
	s := newStore(t)
	for algorithm := range hasTOC {
		t.Run(algorithm, func(t *testing.T) {
			suite.Run(t, func(t *testing.T, b []byte, _ ocispec.Descriptor, _ digest.Digest) suite.Layer {
				profile := append([]string{"not/there"}, names(t, b)...)
				slices.Reverse(profile)
				b, e := encode(t, b, layer.Compression{Algorithm: algorithm, Prioritized: profile})
				l, err := layer.Open(t.Context(), e.Descriptor, &blob{b: b}, s, layer.Options{DiffID: e.DiffID})
				if err != nil {
					t.Fatal(err)
				}
				return l
			}, "tar")
		})
	}
}

func TestPrioritizedOrder(t *testing.T) {
	const text = `
		dir usr
		dir usr/bin
		file usr/bin/a "a"
		file usr/b "b"
		link usr/c usr/b
		dir etc
		opaque etc
		file etc/f "f"
		file etc/g "g"
		file stargz.index.json "{}"
		file .no.prefetch.landmark "\x0f"`
	for _, tc := range []struct {
		name, text string
		profile    []string
		first      string // names; the rest follows in its order
	}{
		{"files", text, []string{"/etc/f", "./usr/bin/a", "etc/f"}, "etc etc/.wh..wh..opq etc/f usr usr/bin usr/bin/a .prefetch.landmark"},
		{"hardlink", text, []string{"usr/c"}, "usr usr/b usr/c .prefetch.landmark"},
		{"directory", text, []string{"usr/bin"}, "usr usr/bin .no.prefetch.landmark"},
		{"nothing", text, []string{"x", "usr/bin/x", "", "/"}, ".no.prefetch.landmark"},
		{"empty profile", text, []string{}, ".no.prefetch.landmark"},
		{"twice", "file a \"1\"\nfile b \"\"\nfile a \"2\"", []string{"a", "b"}, "b .prefetch.landmark"},
		{"whiteout of a directory", "whiteout d\ndir d\nfile d/f \"\"\nfile g \"\"", []string{"d/f", "g"}, "g .prefetch.landmark"},
		{"below a symlink", "file d/f \"\"\nsymlink l d\nfile l/f \"\"", []string{"d/f"}, ".no.prefetch.landmark"},
		{"hardlink elsewhere", "link l x\nfile f \"\"", []string{"l", "f"}, "f .prefetch.landmark"},
	} {
		for algorithm := range hasTOC {
			b, e := encode(t, layertest.Tar(tc.text), layer.Compression{Algorithm: algorithm, Prioritized: tc.profile})
			got := plainNames(t, unpack(t, b, e.Descriptor.MediaType))
			want := strings.Fields(tc.first)
			dropped := append([]string{"stargz.index.json", ".no.prefetch.landmark"}, want...)
			left := slices.DeleteFunc(plainNames(t, layertest.Tar(tc.text)), func(name string) bool { return slices.Contains(dropped, name) })
			want = append(want, left...)
			if algorithm == "estargz" {
				want = append(want, "stargz.index.json")
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, %s: %q, want %q", tc.name, algorithm, got, want)
			}
		}
	}
}

// TestLandmark: what stands before it is fetched in one request, also by a process that
// has the index from the cache.
func TestLandmark(t *testing.T) {
	text := layertest.Tar("random a 1MiB\nrandom b 2MiB\nfile c \"c\"\nrandom d 3MiB\nrandom e 500KiB")
	for algorithm := range hasTOC {
		b, e := encode(t, text, layer.Compression{Algorithm: algorithm, Prioritized: []string{"e", "b"}})
		dir, r := t.TempDir(), &blob{b: b}
		s := openStore(t, dir)
		l := mustOpen(t, e.Descriptor, r, s)
		first, ok := l.Landmark()
		if !ok || first < 2<<20 || first > 3<<20 {
			t.Fatalf("%s: landmark at %d, %v", algorithm, first, ok)
		}
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir)
		l = mustOpen(t, e.Descriptor, r, s)
		end, ok := l.Landmark()
		if !ok || end != first {
			t.Errorf("%s: landmark at %d from the cache, %v, was at %d", algorithm, end, ok, first)
		}
		before := r.requests.Load()
		if err := l.FetchPrefix(t.Context(), end); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{"a": false, "b": true, "d": false, "e": true} {
			id, _ := lookup(l, name)
			if l.Cached(id) != want {
				t.Errorf("%s: %s is cached: %v", algorithm, name, !want)
			}
		}
		if n := r.requests.Load() - before; n != 1 {
			t.Errorf("%s: %d requests", algorithm, n)
		}
		for _, no := range []string{".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"} {
			if _, ok := lookup(l, no); ok {
				t.Errorf("%s: %s is shown", algorithm, no)
			}
		}
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoLandmark: without a landmark, or without a TOC, there is nothing to fetch at once.
func TestNoLandmark(t *testing.T) {
	for _, format := range append([]string{"gzip", "estargz"}, chunkedFormats...) {
		b, desc, _ := layertest.Blob("dir d\nfile d/f \"text\"\nrandom r 1MiB", format, suite.Encoders[format])
		l := mustOpen(t, desc, &blob{b: b}, newStore(t))
		if end, ok := l.Landmark(); ok || end != 0 {
			t.Errorf("%s: landmark at %d", format, end)
		}
		before := l.Status().Requests
		if err := l.FetchPrefix(t.Context(), 0); err != nil || l.Status().Requests != before {
			t.Errorf("%s: %v, %+v", format, err, l.Status())
		}
	}
}

func TestPrioritizedRefuses(t *testing.T) {
	good := layertest.Tar(`file a "x"`)
	profile := []string{"a"}
	for name, algorithm := range map[string]string{"gzip": "gzip", "zstd": "zstd"} {
		if _, err := layer.Encode(t.Context(), io.Discard, bytes.NewReader(good), layer.Compression{Algorithm: algorithm, Prioritized: profile}); !errors.Is(err, layer.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	once := struct{ io.Reader }{bytes.NewReader(good)}
	if _, err := layer.Encode(t.Context(), io.Discard, once, layer.Compression{Algorithm: "estargz", Prioritized: profile}); !errors.Is(err, layer.ErrUnsupported) {
		t.Errorf("read once: %v", err)
	}
	short := bytes.NewReader(layertest.Tar(`random a 2MiB`)[:1<<20])
	if _, err := layer.Encode(t.Context(), io.Discard, short, layer.Compression{Algorithm: "estargz", Prioritized: profile}); !errors.Is(err, layer.ErrFormat) {
		t.Errorf("cut short: %v", err)
	}
}

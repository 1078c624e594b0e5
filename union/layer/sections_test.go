package layer_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/estargztest"
	"github.com/layerfs/layerfs/union/layer/layertest/suite"
)

// TestSuiteEvicted is the suite on layers whose pack has left the cache: they open
// without a request all the same, and fetch what is read.
func TestSuiteEvicted(t *testing.T) {
	suite.Run(t, func(t *testing.T, b []byte, desc ocispec.Descriptor, diffID digest.Digest) suite.Layer {
		dir, r := t.TempDir(), &blob{b: b}
		s := openStore(t, dir)
		first, err := layer.Open(t.Context(), desc, r, s, layer.Options{DiffID: diffID})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(first.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir)
		t.Cleanup(func() { closing(t, s) })
		if err := s.Evict(desc.Digest); err != nil {
			t.Fatal(err)
		}
		before := r.requests.Load()
		l, err := layer.Open(t.Context(), desc, r, s, layer.Options{DiffID: diffID})
		if err != nil {
			t.Fatal(err)
		}
		if n := r.requests.Load() - before; n != 0 && desc.Size > 0 {
			t.Errorf("the second open made %d requests", n)
		}
		return l
	})
}

const sectionsText = "dir d\nrandom d/a 3MiB\nfile d/f \"text\"\ntext d/b 9MiB\nrandom e 5MiB\nfile z \"last\""

// evicted is a layer of sectionsText whose pack is gone.
func evicted(t *testing.T, format string) (*layer.Layer, *blob, ocispec.Descriptor, string) {
	t.Helper()
	b, desc, _ := layertest.Blob(sectionsText, format, estargztest.Encode)
	dir, r := t.TempDir(), &blob{b: b}
	s := openStore(t, dir)
	if err := errors.Join(mustOpen(t, desc, r, s).Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if err := s.Evict(desc.Digest); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, desc, r, s)
	t.Cleanup(func() { closing(t, l); closing(t, s) })
	r.requests.Store(0)
	return l, r, desc, dir
}

func wantContent(t *testing.T, l *layer.Layer, name string, piece int) {
	t.Helper()
	entries, err := layertest.Parse(sectionsText)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name != name {
			continue
		}
		want := new(bytes.Buffer)
		if _, err := want.ReadFrom(e.Content()); err != nil {
			t.Fatal(err)
		}
		if got, err := readFile(t.Context(), l, name, piece); err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s: %d bytes of %d, %v; or their content differs", name, len(got), want.Len(), err)
		}
	}
}

func TestSections(t *testing.T) {
	for _, format := range []string{"gzip", "zstd-multi", "tar"} {
		t.Run(format, func(t *testing.T) {
			l, r, desc, _ := evicted(t, format)
			if st := l.Status(); !st.Lazy || st.Index != "tar" || st.Complete || st.Fetched != 0 {
				t.Errorf("after open: %+v", st)
			}
			wantContent(t, l, "d/f", 100)
			if st := l.Status(); st.Fetched > 4<<20 || st.Requests != 1 {
				t.Errorf("for a small file: %+v", st)
			}
			var g sync.WaitGroup
			for i := range 4 {
				g.Go(func() {
					for _, name := range []string{"d/a", "d/b", "e", "z"} {
						wantContent(t, l, name, 30_000*(i+1))
					}
				})
			}
			g.Wait()
			if st := l.Status(); !st.Complete || st.Fetched > desc.Size+desc.Size/20+1<<20 {
				t.Errorf("after all was read: %+v of %d", st, desc.Size)
			}
			if n := r.requests.Load(); n > 16 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestSectionsDamage: a source that gives other bytes than before is found out, wherever they differ.
func TestSectionsDamage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, format := range []string{"gzip", "tar"} {
		l, r, desc, _ := evicted(t, format)
		good := r.b
		for range 20 {
			r.b = bytes.Clone(good)
			at := rnd.Int64N(desc.Size)
			r.b[at] ^= 1 << rnd.IntN(8)
			var failed bool
			for _, name := range []string{"d/a", "d/b", "e", "d/f", "z"} {
				_, err := readFile(t.Context(), l, name, 1<<20)
				if err != nil && !errors.Is(err, layer.ErrDigest) {
					t.Fatal(err)
				}
				failed = failed || err != nil
			}
			r.b = good
			for _, name := range []string{"d/a", "d/b", "e", "d/f", "z"} {
				wantContent(t, l, name, 1<<20)
			}
			if format == "tar" && !failed {
				t.Logf("byte %d is nobody's", at)
			}
			closing(t, l)
			l, r, _, _ = evicted(t, format)
			good = r.b
		}
	}
}

// TestSectionsMend: bytes that the disk damaged are fetched again.
func TestSectionsMend(t *testing.T) {
	b, desc, _ := layertest.Blob(sectionsText, "gzip", estargztest.Encode)
	dir, r := t.TempDir(), &blob{b: b}
	s := openStore(t, dir)
	if err := errors.Join(mustOpen(t, desc, r, s).Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	packs, err := filepath.Glob(filepath.Join(dir, "layers", "*", "*", "pack"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	f, err := os.OpenFile(packs[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, f)
	for at := int64(1000); at < 17<<20; at += 700_000 {
		if _, err := f.WriteAt([]byte("damage"), at); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, dir)
	defer closing(t, s)
	l := mustOpen(t, desc, r, s)
	defer closing(t, l)
	for _, name := range []string{"d/a", "d/b", "e", "d/f", "z"} {
		wantContent(t, l, name, 100_000)
	}
	if st := l.Status(); st.Fetched == 0 {
		t.Errorf("nothing was fetched: %+v", st)
	}
}

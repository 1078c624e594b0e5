package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/estargztest"
)

const (
	tocAnnotation = "containerd.io/snapshot/stargz/toc.digest"
	lazyText      = "dir d\nrandom d/big 9MiB\nfile d/f \"text\"\nrandom e 3MiB\nrandom g 1MiB\nfile z \"last\""
)

func eStargz(t *testing.T, text string) ([]byte, ocispec.Descriptor) {
	t.Helper()
	b, desc, _ := layertest.Blob(text, "estargz", estargztest.Encode)
	return b, desc
}

// readFile reads a whole file in pieces of n bytes.
func readFile(ctx context.Context, l *layer.Layer, name string, n int) ([]byte, error) {
	id, ok := lookup(l, name)
	if !ok {
		return nil, errors.New("not there")
	}
	all := make([]byte, 0, l.Entry(id).Size)
	for p := make([]byte, n); ; {
		k, err := l.ReadAt(ctx, id, p, int64(len(all)))
		all = append(all, p[:k]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func wantRandom(t *testing.T, l *layer.Layer, name string, size int64) {
	t.Helper()
	entries, err := layertest.Parse(lazyText)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name != name {
			continue
		}
		want, err := io.ReadAll(e.Content())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readFile(t.Context(), l, name, 100_000); err != nil || int64(len(got)) != size || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; or their content differs", name, len(got), err)
		}
	}
}

func TestLazy(t *testing.T) {
	b, desc := eStargz(t, lazyText)
	dir, r := t.TempDir(), &blob{b: b}
	s := openStore(t, dir)
	l := mustOpen(t, desc, r, s)
	if st := l.Status(); !st.Lazy || st.Index != "toc" || st.Requests != 1 || st.Fetched > 1<<20 || st.Complete {
		t.Errorf("after open: %+v", st)
	}
	wantFile(t, l)
	wantRandom(t, l, "d/big", 9<<20)
	if n := r.requests.Load(); n > 16 {
		t.Errorf("%d requests for a file that is read from its start to its end", n)
	}
	wantRandom(t, l, "e", 3<<20)
	wantRandom(t, l, "g", 1<<20)
	if st := l.Status(); !st.Complete || st.Fetched > desc.Size+desc.Size/10 {
		t.Errorf("after all was read: %+v of %d", st, desc.Size)
	}
	if err := errors.Join(l.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}

	s, before := openStore(t, dir), r.requests.Load()
	defer closing(t, s)
	l = mustOpen(t, desc, r, s)
	defer closing(t, l)
	wantRandom(t, l, "d/big", 9<<20)
	if n := r.requests.Load() - before; n != 0 {
		t.Errorf("%d requests by the second process", n)
	}
}

// TestLazySmall: a layer as small as its own tail is there after one request.
func TestLazySmall(t *testing.T) {
	b, desc := eStargz(t, "dir d\nfile d/f \"text\"\nrandom r 100KiB")
	r := &blob{b: b}
	l := mustOpen(t, desc, r, newStore(t))
	wantFile(t, l)
	if st := l.Status(); !st.Lazy || !st.Complete || r.requests.Load() != 1 {
		t.Errorf("%d requests, %+v", r.requests.Load(), st)
	}
}

func TestFetch(t *testing.T) {
	for _, format := range []string{"estargz", "gzip"} {
		b, desc, _ := layertest.Blob(lazyText, format, estargztest.Encode)
		s := newStore(t)
		if index, lazy := layer.IndexKind(desc, s); lazy != (format == "estargz") || lazy != (index == "toc") {
			t.Errorf("%s: index %s, lazy %v", format, index, lazy)
		}
		r := &blob{b: b}
		l := mustOpen(t, desc, r, s)
		if _, lazy := layer.IndexKind(desc, s); !lazy {
			t.Errorf("%s: not lazy after it was opened", format)
		}
		if err := l.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := l.Status(); !st.Complete || r.requests.Load() > 5 {
			t.Errorf("%s: %+v", format, st)
		}
	}
}

// TestLazyTogether: readers of everything at once fetch nothing twice.
func TestLazyTogether(t *testing.T) {
	b, desc := eStargz(t, lazyText)
	l := mustOpen(t, desc, &blob{b: b}, newStore(t))
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			for _, name := range []string{"d/big", "e", "g"} {
				if _, err := readFile(t.Context(), l, name, 10_000*(i+1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	if st := l.Status(); st.Fetched > desc.Size+desc.Size/5 || !st.Complete {
		t.Errorf("%d bytes fetched of %d, %+v", st.Fetched, desc.Size, st)
	}
}

// TestLazyCorrupt: a chunk that is not what the TOC says is an error and not kept; what is right is read.
func TestLazyCorrupt(t *testing.T) {
	b, desc := eStargz(t, lazyText)
	bad := bytes.Clone(b)
	for i := 1 << 20; i < 1<<20+100; i++ {
		bad[i] ^= 0x55
	}
	r := &changing{}
	r.now.Store(&blob{b: bad})
	l := mustOpen(t, desc, r, newStore(t))
	if _, err := readFile(t.Context(), l, "d/big", 100_000); !errors.Is(err, layer.ErrDigest) {
		t.Errorf("damaged chunk: %v", err)
	}
	wantRandom(t, l, "e", 3<<20)
	r.now.Store(&blob{b: b})
	wantRandom(t, l, "d/big", 9<<20)
}

// changing is one blob now and another later.
type changing struct{ now atomic.Pointer[blob] }

func (c *changing) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return c.now.Load().ReadRange(ctx, off, n)
}

func TestLazyInterrupted(t *testing.T) {
	b, desc := eStargz(t, lazyText)
	r := &changing{}
	r.now.Store(&blob{b: b})
	l := mustOpen(t, desc, r, newStore(t))
	r.now.Store(&blob{b: b, failAt: 1})
	if _, err := readFile(t.Context(), l, "e", 1000); !errors.Is(err, errSource) {
		t.Errorf("broken source: %v", err)
	}
	r.now.Store(&blob{b: b})
	wantRandom(t, l, "e", 3<<20)
}

// TestTOCDistrust: what is not the TOC that the manifest names is never used.
func TestTOCDistrust(t *testing.T) {
	b, desc := eStargz(t, lazyText)
	with := func(toc string) ocispec.Descriptor {
		d := desc
		d.Annotations = maps.Clone(desc.Annotations)
		d.Annotations[tocAnnotation] = toc
		return d
	}
	without := desc
	without.Annotations = nil

	s := newStore(t)
	wrong := with(digest.FromString("another").String())
	if _, err := layer.Open(t.Context(), wrong, &blob{b: b}, s, layer.Options{}); !errors.Is(err, layer.ErrDigest) {
		t.Errorf("another TOC's digest: %v", err)
	}
	bad := bytes.Clone(b)
	bad[len(bad)-300] ^= 1
	if _, err := layer.Open(t.Context(), desc, &blob{b: bad}, s, layer.Options{}); !errors.Is(err, layer.ErrDigest) {
		t.Errorf("damaged TOC: %v", err)
	}
	nothingThere(t, s, desc.Digest)

	for name, d := range map[string]ocispec.Descriptor{"no annotation": without, "malformed annotation": with("sha256:xyz")} {
		l := mustOpen(t, d, &blob{b: b}, newStore(t))
		if st := l.Status(); st.Lazy || st.Index != "tar" || st.Why == "" {
			t.Errorf("%s: %+v", name, st)
		}
		wantFile(t, l)
		if _, ok := lookup(l, "stargz.index.json"); ok {
			t.Errorf("%s: the index is shown as a file", name)
		}
	}
}

// TestTOCOfAnotherImage: an index that another manifest vouched for counts for nothing,
// nor does content that was verified only by it.
func TestTOCOfAnotherImage(t *testing.T) {
	b, desc := eStargz(t, "dir d\nfile d/f \"evil\"")
	honest, honestDesc, _ := layertest.Blob("dir d\nfile d/f \"text\"", "gzip", nil)
	s := newStore(t)
	desc.Digest, desc.Size = honestDesc.Digest, int64(len(b)) // a blob that pretends to be the honest one
	evil := mustOpen(t, desc, &blob{b: b}, s)
	if got, err := readFile(t.Context(), evil, "d/f", 10); string(got) != "evil" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if err := evil.Close(); err != nil {
		t.Fatal(err)
	}
	wantFile(t, mustOpen(t, honestDesc, &blob{b: honest}, s))
}

// TestNoFooter: a layer without the index it is said to have is read whole.
func TestNoFooter(t *testing.T) {
	for _, text := range []string{"dir d\nfile d/f \"text\"", lazyText, ""} {
		b, desc, _ := layertest.Blob(text, "gzip", nil)
		desc.Annotations = map[string]string{tocAnnotation: digest.FromString("x").String()}
		l := mustOpen(t, desc, &blob{b: b}, newStore(t))
		if st := l.Status(); st.Lazy || !strings.Contains(st.Why, "footer") {
			t.Errorf("%+v", st)
		}
	}
}

// TestLazyLeave: a reader leaves when its context ends, whatever the source does.
func TestLazyLeave(t *testing.T) {
	b, desc := eStargz(t, lazyText)
	r := &stuck{blob: blob{b: b}, entered: make(chan struct{}, 8)}
	l := mustOpen(t, desc, r, newStore(t))
	r.on = true
	ctx, cancel := context.WithCancel(t.Context())
	id, _ := lookup(l, "e")
	got := make(chan error)
	go func() {
		_, err := l.ReadAt(ctx, id, make([]byte, 10), 0)
		got <- err
	}()
	<-r.entered
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// stuck hangs when it is on, until its own context ends.
type stuck struct {
	blob
	on      bool
	entered chan struct{}
}

func (s *stuck) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if !s.on {
		return s.blob.ReadRange(ctx, off, n)
	}
	s.entered <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

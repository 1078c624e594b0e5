package union_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// A countedBlob notes the ranges that are asked for.
type countedBlob struct {
	blob
	mu     sync.Mutex
	ranges []layer.Range // protected by mu
	now    int           // protected by mu; requests under way
	most   int           // protected by mu
}

func (b *countedBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ranges = append(b.ranges, layer.Range{Off: off, N: n})
	b.now++
	b.most = max(b.most, b.now)
	body, err := b.blob.ReadRange(ctx, off, n)
	return &countedBlobBody{body, b}, err
}

type countedBlobBody struct {
	io.ReadCloser
	b *countedBlob
}

func (r *countedBlobBody) Close() error {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.b.now--
	return r.ReadCloser.Close()
}

// lazyTree is a tree of eStargz layers whose blobs count.
func lazyTree(t *testing.T, texts ...string) (*union.Tree, []*countedBlob) {
	t.Helper()
	layers, blobs := lazyLayers(t, texts...)
	return merge(t, layers), blobs
}

func lazyLayers(t *testing.T, texts ...string) ([]*layer.Layer, []*countedBlob) {
	t.Helper()
	s := openStore(t)
	var layers []*layer.Layer
	var blobs []*countedBlob
	for _, text := range texts {
		var buf bytes.Buffer
		enc, err := layer.Encode(ctx, &buf, bytes.NewReader(layertest.Tar(text)), layer.Compression{Algorithm: "estargz"})
		must(t, err)
		b := &countedBlob{blob: buf.Bytes()}
		l, err := layer.Open(ctx, enc.Descriptor, b, s, layer.Options{DiffID: enc.DiffID})
		must(t, err)
		t.Cleanup(func() { check(t, l.Close()) })
		layers, blobs = append(layers, l), append(blobs, b)
	}
	return layers, blobs
}

func (b *countedBlob) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ranges = nil
}

func (b *countedBlob) sum() (requests int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.ranges {
		bytes += r.N
	}
	return len(b.ranges), bytes
}

func TestPrefetch(t *testing.T) {
	base := "random a 2MiB\nrandom b 30MiB\nrandom c 100KiB\nrandom c2 100KiB\nrandom d 12MiB\nrandom end 1MiB\nsymlink s a\ndir dir\n"
	top := "random t/x 1MiB\nrandom t/y 40MiB\nrandom t/end 1MiB\n"
	for _, c := range []struct {
		name, profile string
		cached, not   []string
		requests      int   // at most
		bytes         int64 // at most
	}{
		{name: "nothing", profile: "# no file\n"},
		{name: "what is no file of the image", profile: "none\ns\ndir\na/b\n\"\\x01\"\n"},
		{name: "two layers", profile: "t/x\na\n", cached: []string{"a", "t/x"}, not: []string{"b", "t/y"}, requests: 4, bytes: 5 << 20},
		{name: "neighbours in one request", profile: "c2\nc\n", cached: []string{"c", "c2"}, not: []string{"b"}, requests: 1, bytes: 1 << 20},
		{name: "ranges", profile: "b\t0-99,20971520-20971530\n", not: []string{"b", "c"}, requests: 3, bytes: 10 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, blobs := lazyTree(t, base, top)
			for _, b := range blobs {
				b.reset()
			}
			p, err := union.ParseProfile(strings.NewReader(c.profile))
			must(t, err)
			must(t, tree.Prefetch(ctx, p))
			requests, bytes := blobs[0].sum()
			r, n := blobs[1].sum()
			if requests+r > c.requests || bytes+n > c.bytes {
				t.Errorf("%d requests, %d bytes", requests+r, bytes+n)
			}
			for _, name := range slices.Concat(c.cached, c.not) {
				id, err := tree.Resolve(name)
				must(t, err)
				if got, want := tree.Cached(id), slices.Contains(c.cached, name); got != want {
					t.Errorf("%s is cached: %v", name, got)
				}
			}
			for _, b := range blobs {
				b.reset()
			}
			must(t, tree.Prefetch(ctx, p)) // again: all is there
			if r, _ := blobs[0].sum(); r > 0 {
				t.Errorf("%d requests for what is there", r)
			}
		})
	}
}

// TestPrefetchRange: the ranges of a profile are there afterwards, and reads of them ask for nothing.
func TestPrefetchRange(t *testing.T) {
	tree, blobs := lazyTree(t, "random b 30MiB\nrandom end 1MiB\n")
	must(t, tree.Prefetch(ctx, union.Profile{Files: []union.ProfileFile{{Path: "b", Ranges: []layer.Range{{Off: 20 << 20, N: 11}}}}}))
	blobs[0].reset()
	id, err := tree.Resolve("b")
	must(t, err)
	if _, err := tree.ReadAt(ctx, id, make([]byte, 11), 20<<20); err != nil {
		t.Fatal(err)
	}
	if r, _ := blobs[0].sum(); r > 0 {
		t.Errorf("%d requests for what was prefetched", r)
	}
}

// TestPrefetchOrder: files that come first in the profile are fetched before those
// of a later batch, a few at a time, and the end of ctx is the end.
func TestPrefetchOrder(t *testing.T) {
	tree, blobs := lazyTree(t, "random a 10MiB\nrandom b 10MiB\nrandom c 10MiB\nrandom d 10MiB\nrandom end 1MiB\n")
	b := blobs[0]
	b.reset()
	must(t, tree.Prefetch(ctx, union.Profile{Files: []union.ProfileFile{{Path: "d"}, {Path: "a"}}}))
	if r := b.ranges[0]; r.Off < int64(len(b.blob))/2 {
		t.Errorf("the first request is at %d", r.Off)
	}
	if b.most > 3 {
		t.Errorf("%d requests at a time", b.most)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := tree.Prefetch(ended, union.Profile{Files: []union.ProfileFile{{Path: "b"}}}); err == nil {
		t.Error("no error after the end of ctx")
	}
}

// TestFetchHoles: what is left of a layer comes by one request after the other, and once.
func TestFetchHoles(t *testing.T) {
	var text strings.Builder
	var p union.Profile
	for i := range 60 {
		fmt.Fprintf(&text, "random f%02d %dKiB\n", i, 300+i)
		if i%2 == 0 {
			p.Files = append(p.Files, union.ProfileFile{Path: fmt.Sprintf("f%02d", i)})
		}
	}
	layers, blobs := lazyLayers(t, text.String()+"random end 2MiB\n")
	must(t, merge(t, layers).Prefetch(ctx, p))
	b := blobs[0]
	b.reset()
	b.most = 0
	have, total := layers[0].Present()
	if have == total {
		t.Fatal("no hole is left")
	}
	must(t, layers[0].Fetch(ctx))
	// Who waited for the last bytes of the prefetch had them before its request was closed.
	if have, total = layers[0].Present(); have != total || b.most > 2 {
		t.Errorf("%d of %d bytes are there, %d requests at a time", have, total, b.most)
	}
	if n, bytes := b.sum(); n > 31 || bytes > int64(len(b.blob)) {
		t.Errorf("%d requests, %d bytes of a blob of %d", n, bytes, len(b.blob))
	}
	b.reset()
	must(t, layers[0].Fetch(ctx))
	if n, _ := b.sum(); n > 0 {
		t.Errorf("%d requests when nothing was missing", n)
	}
}

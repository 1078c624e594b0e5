package layer_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

const faultText = "dir d\nrandom d/big 3MiB\nfile d/f \"text\"\nlink l d/f\nrandom e 200KiB"

var streamed = layertest.Formats()

// nothingThere fails unless the cache has no trace of a layer.
func nothingThere(t *testing.T, s *cache.Store, d digest.Digest) {
	t.Helper()
	if _, err := s.Complete(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a pack is in the cache: %v", err)
	}
	if _, err := s.Index(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an index is in the cache: %v", err)
	}
}

func mustOpen(t *testing.T, desc ocispec.Descriptor, r layer.Ranger, s *cache.Store) *layer.Layer {
	t.Helper()
	l, err := layer.Open(t.Context(), desc, r, s, layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, l) })
	return l
}

// wantFile reads d/f through a layer.
func wantFile(t *testing.T, l *layer.Layer) {
	t.Helper()
	id, ok := lookup(l, "d/f")
	b := make([]byte, 4)
	if _, err := l.ReadAt(t.Context(), id, b, 0); !ok || err != nil || string(b) != "text" {
		t.Errorf("d/f is %q, %v, %v", b, ok, err)
	}
}

// TestCorrupt flips bytes all over a blob: each is an ErrDigest, and leaves nothing behind.
func TestCorrupt(t *testing.T) {
	for _, format := range streamed {
		b, desc, _ := layertest.Blob(faultText, format, nil)
		s := newStore(t)
		for i := range 12 {
			bad := bytes.Clone(b)
			bad[len(b)*i/12] ^= 0x40
			if _, err := layer.Open(t.Context(), desc, &blob{b: bad}, s, layer.Options{}); !errors.Is(err, layer.ErrDigest) {
				t.Errorf("%s: byte %d of %d flipped: %v", format, len(b)*i/12, len(b), err)
			}
			nothingThere(t, s, desc.Digest)
		}
		wantFile(t, mustOpen(t, desc, &blob{b: b}, s))
	}
}

// TestInterrupted: a source that breaks off is its own error; the next open starts again.
func TestInterrupted(t *testing.T) {
	for _, format := range streamed {
		b, desc, _ := layertest.Blob(faultText, format, nil)
		s := newStore(t)
		for _, at := range []int64{1, 600, int64(len(b)) / 2, int64(len(b)) - 1} {
			if _, err := layer.Open(t.Context(), desc, &blob{b: b, failAt: at}, s, layer.Options{}); !errors.Is(err, errSource) {
				t.Errorf("%s: broken off at %d: %v", format, at, err)
			}
			nothingThere(t, s, desc.Digest)
		}
		wantFile(t, mustOpen(t, desc, &blob{b: b}, s))
	}
}

func TestDiffID(t *testing.T) {
	b, desc, diffID := layertest.Blob(faultText, "gzip", nil)
	s := newStore(t)
	wrong := digest.FromString("another tar")
	if _, err := layer.Open(t.Context(), desc, &blob{b: b}, s, layer.Options{DiffID: wrong}); !errors.Is(err, layer.ErrDigest) {
		t.Errorf("fresh: %v", err)
	}
	nothingThere(t, s, desc.Digest)
	l, err := layer.Open(t.Context(), desc, &blob{b: b}, s, layer.Options{DiffID: diffID})
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, l)
	if _, err := layer.Open(t.Context(), desc, &blob{b: b}, s, layer.Options{DiffID: wrong}); !errors.Is(err, layer.ErrDigest) {
		t.Errorf("from the cache: %v", err)
	}
}

func TestRefused(t *testing.T) {
	text := []byte("this is no layer, whatever its media type says")
	tar := layertest.Tar(`random a 5KiB`)
	erofs := make([]byte, 1<<20)
	copy(erofs[1024:], "\xe2\xe1\xf5\xe0")
	for _, tc := range []struct {
		name, mediaType string
		b               []byte
		want            error
		says            string
	}{
		{"no format", ocispec.MediaTypeImageLayerGzip, text, layer.ErrUnsupported, "neither tar nor gzip nor zstd"},
		{"encrypted", ocispec.MediaTypeImageLayerGzip + "+encrypted", tar, layer.ErrUnsupported, "decrypt"},
		{"nydus", "application/vnd.oci.image.layer.nydus.blob.v1", tar, layer.ErrUnsupported, "converted from"},
		{"attestation", "application/vnd.in-toto+json", []byte("{}"), layer.ErrUnsupported, "attestation"},
		{"erofs by its type", "application/vnd.erofs.layer.v1", tar, layer.ErrUnsupported, "mount -t erofs"},
		{"erofs", ocispec.MediaTypeImageLayer, erofs, layer.ErrUnsupported, "mount -t erofs"},
		{"cut short", "", tar[:3000], layer.ErrFormat, ""},
		{"bad header", "", append(bytes.Clone(tar[:6*512]), bytes.Repeat([]byte("x"), 1024)...), layer.ErrFormat, ""},
	} {
		desc := ocispec.Descriptor{MediaType: tc.mediaType, Digest: digest.FromBytes(tc.b), Size: int64(len(tc.b))}
		s := newStore(t)
		if _, err := layer.Open(t.Context(), desc, &blob{b: tc.b}, s, layer.Options{}); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %v: %s", tc.name, err, tc.want, tc.says)
		}
		nothingThere(t, s, desc.Digest)
	}
}

// TestMediaTypeLies: only the bytes count.
func TestMediaTypeLies(t *testing.T) {
	for _, format := range streamed {
		b, desc, _ := layertest.Blob(faultText, format, nil)
		desc.MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
		wantFile(t, mustOpen(t, desc, &blob{b: b}, newStore(t)))
	}
}

// TestTrailing: what follows the last member of a gzip stream is ignored, but part of the blob.
func TestTrailing(t *testing.T) {
	for _, format := range []string{"gzip", "gzip-multi"} {
		for _, tail := range []string{"\x00", strings.Repeat("\x00", 600<<10), "\x1f", "garbage"} {
			b, desc, _ := layertest.Blob(faultText, format, nil)
			b = append(b, tail...)
			desc.Digest, desc.Size = digest.FromBytes(b), int64(len(b))
			wantFile(t, mustOpen(t, desc, &blob{b: b}, newStore(t)))
		}
	}
}

// TestDamagedIndex: what is wrong in the cache is made anew.
func TestDamagedIndex(t *testing.T) {
	b, desc, _ := layertest.Blob(faultText, "gzip", nil)
	other, otherDesc, _ := layertest.Blob("file x \"\"", "gzip", nil)
	s := newStore(t)
	mustOpen(t, otherDesc, &blob{b: other}, s)
	foreign, err := s.Index(otherDesc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for name, index := range map[string][]byte{"garbage": []byte("garbage"), "empty": {}, "another layer's": foreign} {
		if err := mustOpen(t, desc, &blob{b: b}, s).Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.PutIndex(desc.Digest, index); err != nil {
			t.Fatal(err)
		}
		r := &blob{b: b}
		wantFile(t, mustOpen(t, desc, r, s))
		if r.requests.Load() != 1 {
			t.Errorf("index %s: %d requests, want 1", name, r.requests.Load())
		}
	}
}

// TestMissingPack: an index without its pack is of no use to a layer that is read whole.
func TestMissingPack(t *testing.T) {
	b, desc, _ := layertest.Blob(faultText, "zstd", nil)
	dir := t.TempDir()
	s := openStore(t, dir)
	if err := mustOpen(t, desc, &blob{b: b}, s).Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "layers", "sha256", desc.Digest.Encoded(), "pack")); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	defer closing(t, s)
	r := &blob{b: b}
	l := mustOpen(t, desc, r, s)
	defer closing(t, l)
	wantFile(t, l)
	if r.requests.Load() != 1 {
		t.Errorf("%d requests, want 1", r.requests.Load())
	}
}

// TestTogether: many open the same layer at once, one fetches it.
func TestTogether(t *testing.T) {
	b, desc, _ := layertest.Blob(faultText, "gzip", nil)
	s, r := newStore(t), &blob{b: b}
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			l, err := layer.Open(t.Context(), desc, r, s, layer.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			defer closing(t, l)
			wantFile(t, l)
		})
	}
	g.Wait()
	if r.requests.Load() != 1 {
		t.Errorf("%d requests, want 1", r.requests.Load())
	}
}

func TestProgress(t *testing.T) {
	b, desc, _ := layertest.Blob(faultText, "gzip", nil)
	s := newStore(t)
	states := map[string]int64{}
	o := layer.Options{Progress: func(p layer.Progress) {
		if p.Total != desc.Size || p.Done < states[p.State] {
			t.Errorf("progress %+v after %v", p, states)
		}
		states[p.State] = p.Done
	}}
	for _, want := range []map[string]int64{
		{"waiting": 0, "fetching": desc.Size, "index": desc.Size, "ready": desc.Size},
		{"waiting": 0, "cached": desc.Size},
	} {
		clear(states)
		l, err := layer.Open(t.Context(), desc, &blob{b: b}, s, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(states, want) {
			t.Errorf("progress %v, want %v", states, want)
		}
	}
}

func TestReadAtRules(t *testing.T) {
	b, desc, _ := layertest.Blob("file f \"0123456789\"\ndir d\nfile empty \"\"", "gzip", nil)
	l := mustOpen(t, desc, &blob{b: b}, newStore(t))
	f, _ := lookup(l, "f")
	d, _ := lookup(l, "d")
	empty, _ := lookup(l, "empty")
	for _, tc := range []struct {
		id   layer.ID
		n    int
		off  int64
		want string
		err  bool
	}{
		{f, 4, 3, "3456", false}, {f, 4, 8, "89", true}, {f, 10, 0, "0123456789", false}, {f, 1, 10, "", true},
		{f, 1, -1, "", true}, {empty, 1, 0, "", true}, {d, 1, 0, "", true},
	} {
		p := make([]byte, tc.n)
		n, err := l.ReadAt(t.Context(), tc.id, p, tc.off)
		if string(p[:n]) != tc.want || (err != nil) != tc.err {
			t.Errorf("%d bytes at %d of %d: %q, %v", tc.n, tc.off, tc.id, p[:n], err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ReadAt(t.Context(), f, make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := l.ReadAt(t.Context(), f, nil, 99); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read after close: %v", err)
	}
}

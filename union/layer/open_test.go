package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest/suite"
)

// blob is a Ranger over bytes that counts, and fails where it is told to.
type blob struct {
	b        []byte
	requests atomic.Int64
	failAt   int64 // reads break off here; 0 never
}

var errSource = errors.New("connection lost")

func (r *blob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	r.requests.Add(1)
	if off < 0 || n < 0 || off+n > int64(len(r.b)) {
		return nil, errors.New("range outside of the blob")
	}
	var body io.Reader = bytes.NewReader(r.b[off : off+n])
	if r.failAt > 0 && r.failAt < off+n {
		body = io.MultiReader(io.LimitReader(body, max(0, r.failAt-off)), broken{})
	}
	return io.NopCloser(body), nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errSource }

func newStore(t *testing.T) *cache.Store {
	t.Helper()
	s := openStore(t, t.TempDir())
	t.Cleanup(func() { closing(t, s) })
	return s
}

func TestSuite(t *testing.T) {
	s := newStore(t)
	suite.Run(t, func(t *testing.T, b []byte, desc ocispec.Descriptor, diffID digest.Digest) suite.Layer {
		l, err := layer.Open(t.Context(), desc, &blob{b: b}, s, layer.Options{DiffID: diffID})
		if err != nil {
			t.Fatal(err)
		}
		return l
	})
}

// TestSuiteReopened is the suite on layers that come from the cache.
func TestSuiteReopened(t *testing.T) {
	s := newStore(t)
	suite.Run(t, func(t *testing.T, b []byte, desc ocispec.Descriptor, diffID digest.Digest) suite.Layer {
		r := &blob{b: b}
		first, err := layer.Open(t.Context(), desc, r, s, layer.Options{DiffID: diffID})
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		before := r.requests.Load()
		l, err := layer.Open(t.Context(), desc, r, s, layer.Options{DiffID: diffID})
		if err != nil {
			t.Fatal(err)
		}
		if n := r.requests.Load() - before; n != 0 {
			t.Errorf("the second open made %d requests", n)
		}
		return l
	})
}

func closing(t *testing.T, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func openStore(t *testing.T, dir string) *cache.Store {
	t.Helper()
	s, err := cache.Open(dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lookup resolves a path.
func lookup(l *layer.Layer, name string) (layer.ID, bool) {
	id, ok := layer.Root, true
	for part := range strings.SplitSeq(name, "/") {
		if ok {
			id, ok = l.Lookup(id, part)
		}
	}
	return id, ok
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A tail is the end of a new layer's blob, kept while it is sent: of eStargz and zstd:chunked the index
// stands there, and the next mount need not fetch it.
type tail struct {
	b    []byte
	size int64 // of all that was written

	d      ocispec.Descriptor // set when it was written
	diffID digest.Digest
}

// maxTail is what is kept: the index of some 20,000 files. A longer one is fetched by the next mount.
const maxTail = 2 << 20

// hasIndex tells whether layers of a compression hold their own index.
func hasIndex(compression string) bool {
	return slices.Contains([]string{"estargz", "zstd:chunked"}, compression)
}

func (t *tail) Write(p []byte) (int, error) {
	t.size += int64(len(p))
	if len(p) >= maxTail {
		t.b = append(t.b[:0], p[len(p)-maxTail:]...)
		return len(p), nil
	}
	if len(t.b)+len(p) > 2*maxTail {
		t.b = append(t.b[:0], t.b[len(t.b)-maxTail:]...)
	}
	t.b = append(t.b, p...)
	return len(p), nil
}

// ReadRange makes it a layer.Ranger of the blob, as far as it goes.
func (t *tail) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	start := t.size - int64(len(t.b))
	if off < start || off+n > t.size {
		return nil, errors.New("this part of the new layer was not kept")
	}
	return io.NopCloser(bytes.NewReader(t.b[off-start : off-start+n])), nil
}

// wrap has the end of what a layer writes kept; a layer written again is kept anew.
func (t *tail) wrap(l *registry.NewLayer) *registry.NewLayer {
	return &registry.NewLayer{Repeatable: l.Repeatable, Write: func(ctx context.Context, w io.Writer) (d ocispec.Descriptor, diffID digest.Digest, err error) {
		t.b, t.size = t.b[:0], 0
		t.d, t.diffID, err = l.Write(ctx, io.MultiWriter(w, t))
		return t.d, t.diffID, err
	}}
}

// intoCache puts the index into the cache. Without it the image is as good.
func (t *tail) intoCache(ctx context.Context, e *env, im *image) {
	l, err := layer.Open(ctx, t.d, t, im.store, layer.Options{
		Limits: e.limits.Limits, Logger: e.log, FindDiffID: func(context.Context) (digest.Digest, error) { return t.diffID, nil },
	})
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		e.log.Info("the new layer's index is not in the cache", "err", fmt.Errorf("read it: %w", err))
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/layerfs/layerfs/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What stargz-snapshotter's converter calls the image with the TOCs of an image whose
// layers have none: the same name with another tag, and a layer for each layer.
const (
	tocTagSuffix       = "-esgztoc"
	tocLayerAnnotation = "containerd.io/snapshot/stargz/layer.digest"
)

// A tocImage is that image. It is opened when a layer asks for it, by the first that does.
type tocImage struct {
	ref     string // of the image that needs it
	options registry.Options
	once    sync.Once
	im      *registry.Image
	err     error
}

// fetcher returns what layer.Options.ExternalTOC wants for the layer d.
func (t *tocImage) fetcher(d digest.Digest) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		t.once.Do(func() { t.im, t.err = t.open(ctx) })
		if t.err != nil {
			return nil, t.err
		}
		for _, l := range t.im.Manifest.Layers {
			if l.Annotations[tocLayerAnnotation] == d.String() {
				return t.read(ctx, l)
			}
		}
		return nil, fmt.Errorf("%s has no TOC of it", t.im.Ref)
	}
}

func (t *tocImage) open(ctx context.Context) (*registry.Image, error) {
	r, err := registry.ParseRef(t.ref)
	if err != nil {
		return nil, err
	}
	if r.Tag == "" {
		return nil, errors.New("it would be found by the image's tag: open the image by that")
	}
	r.Tag += tocTagSuffix
	r.Digest = ""
	return registry.Open(ctx, r.String(), t.options)
}

func (t *tocImage) read(ctx context.Context, l ocispec.Descriptor) (io.ReadCloser, error) {
	return t.im.Blob(l).ReadRange(ctx, 0, l.Size)
}

func (t *tocImage) Close() error {
	if t.im == nil {
		return nil
	}
	return t.im.Close()
}

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// The one place where registry and layer meet.
var _ layer.Ranger = (*registry.Blob)(nil)

// An image is an opened image: its manifest, its layers, and what they make together.
type image struct {
	*registry.Image
	store    *cache.Store
	layers   []*layer.Layer       // the base first
	descs    []ocispec.Descriptor // of layers
	blobs    []*registry.Blob
	tree     *union.Tree
	warnings []string   // about layers on disk
	files    *openFiles // that the layers need

	index string // where the layers' indexes may come from; "": indexAuto

	first  int    // of layers in the image, from 0
	whole  *image // that this is a layer of; nil: it is whole
	before *image // whose layers are among these, and are closed here; nil: none
}

// openManifest opens an image without its layers.
func (e *env) openManifest(ctx context.Context, ref string) (*image, error) {
	return e.openDeferred(ctx, ref, false)
}

// openDeferred is openManifest; with deferConfig the config is read when a layer needs it: a
// mount of layers with indexes never does, and is there a round trip earlier.
func (e *env) openDeferred(ctx context.Context, ref string, deferConfig bool) (*image, error) {
	store, err := e.openStore()
	if err != nil {
		return nil, err
	}
	o := e.registryOptions(store)
	o.DeferConfig = deferConfig
	im, err := registry.Open(ctx, ref, o)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	out := &image{Image: im, store: store, files: &openFiles{}}
	if im.Stale != nil {
		out.warnings = append(out.warnings, fmt.Sprintf("the registry does not answer (%v); this is the image that the tag meant when it was last asked for", im.Stale))
	}
	if im.Unpacked != nil {
		out.warnings = append(out.warnings, im.Unpacked.Warnings...)
	}
	return out, nil
}

// openImage opens an image, all its layers at once, and merges them.
func (e *env) openImage(ctx context.Context, ref string) (*image, error) {
	im, err := e.openManifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	p := e.newProgress()
	err = im.openLayers(ctx, e, span{}, p.layer)
	p.done()
	if err != nil {
		return nil, errors.Join(err, im.Close())
	}
	e.warn(im)
	return im, nil
}

// A span is the layers of an image that are wanted: from … to, counted from 1 at the base. The zero span is all.
type span struct{ from, to int }

func (s span) of(n int) (span, error) {
	if s == (span{}) {
		return span{1, n}, nil
	}
	if s.from < 1 || s.to > n || s.from > s.to {
		return s, usageError(fmt.Sprintf("--layers %d-%d: the image has layers 1 to %d", s.from, s.to, n))
	}
	return s, nil
}

// first is how many layers are below those that are wanted.
func (s span) first() int { return max(s.from, 1) - 1 }

// A layerProgress is told how the opening of layer i of n goes.
type layerProgress func(i, n int, d ocispec.Descriptor, p layer.Progress)

// maxOpening bounds the layers that are opened at the same time: each streams over a connection of its own and takes some MB of buffers.
const maxOpening = 12

// openLayers opens the wanted layers, the upper ones first, and merges them.
func (im *image) openLayers(ctx context.Context, e *env, want span, progress layerProgress) error {
	want, err := want.of(len(im.Manifest.Layers))
	if err != nil && len(im.Manifest.Layers) > 0 {
		return err
	}
	descs := im.Manifest.Layers[want.from-1 : want.to]
	im.descs = descs
	im.layers = make([]*layer.Layer, len(descs))
	im.blobs = make([]*registry.Blob, len(descs))
	tocs := &tocImage{ref: im.Ref, options: e.registryOptions(im.store)}
	zTOCs, err := im.zTOCs(ctx, e)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxOpening)
	for i := len(descs) - 1; i >= 0; i-- {
		im.blobs[i] = im.Blob(descs[i])
		g.Go(func() (err error) {
			if im.isDir(want.from - 1 + i) {
				im.layers[i], err = im.openUnpacked(gctx, e, want.from-1+i)
				return wrapLayer(err, want.from+i, im.Ref)
			}
			o := layer.Options{Limits: e.limits.Limits, FindDiffID: im.findDiffID(want.from - 1 + i), Logger: e.log, ExternalTOC: tocs.fetcher(descs[i].Digest), ZTOC: zTOCs[descs[i].Digest], Checked: e.checked(descs[i].Digest)}
			if progress != nil {
				o.Progress = func(p layer.Progress) { progress(i, len(descs), descs[i], p) }
			}
			im.layers[i], err = layer.Open(gctx, im.asIndexed(descs[i]), e.source(descs[i].Digest, im.blobs[i]), im.store, o)
			return wrapLayer(err, want.from+i, im.Ref)
		})
	}
	if err := errors.Join(g.Wait(), tocs.Close()); err != nil {
		return err
	}
	im.warnings = append(im.warnings, im.unpackedWarnings(want)...)
	im.tree, err = union.Merge(ctx, im.layers)
	return err
}

func wrapLayer(err error, layer int, ref string) error {
	if err != nil {
		return fmt.Errorf("open layer %d of %s: %w", layer, ref, err)
	}
	return nil
}

// diffID is what the config says of layer i; "" when it says nothing.
func (im *image) diffID(i int) digest.Digest {
	if ids := im.Config.RootFS.DiffIDs; i < len(ids) {
		return ids[i]
	}
	return ""
}

// findDiffID is diffID for an image whose config may not have been read yet.
func (im *image) findDiffID(i int) func(context.Context) (digest.Digest, error) {
	return func(ctx context.Context) (digest.Digest, error) {
		if err := im.LoadConfig(ctx); err != nil {
			return "", err
		}
		return im.diffID(i), nil
	}
}

// size is the size of all layers' blobs.
func (im *image) size() (n int64) {
	for _, d := range im.Manifest.Layers {
		n += d.Size
	}
	return n
}

// fetched is what was fetched of the layers since they were opened.
func (im *image) fetched() (requests, bytes int64) {
	for _, b := range im.blobs {
		r, n := b.Stats()
		requests, bytes = requests+r, bytes+n
	}
	return requests, bytes
}

// Close closes the layers, the image and the cache. It is safe to call twice.
func (im *image) Close() error {
	var errs []error
	for _, l := range im.layers {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	im.layers = nil
	if im.before != nil {
		im.before.layers = nil
		errs = append(errs, im.before.Close())
		im.before = nil
	}
	errs = append(errs, im.files.Close())
	if im.store != nil {
		errs = append(errs, im.Image.Close(), im.store.Close())
		im.store = nil
	}
	return errors.Join(errs...)
}

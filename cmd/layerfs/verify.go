package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"
)

var verifyCommand = command{
	name: "verify", args: "IMAGE", short: "Check an image: manifest, config, layers, diff IDs",
	long: `
Every layer is read whole from its source and checked against its digest, its
size and its diff ID. With --deep the indexes of every layer are then held against
the tar itself: names, attributes and content. Those are what the image offers (a
table of contents, a SOCI index; with --index soci also one that only refers to
the image) and what the cache has. Exit code 6: something does not match.

Layers in a storage root (docker-root: and the like) are directories: each is held against
what the store kept of its tar, the tar-split and the diff ID, or the blob that it was
unpacked of. A container's own layer has nothing to be held against.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		deep := flags.Bool("deep", false, "also compare every layer's indexes with its tar")
		index := flags.String("index", indexAuto, "which indexes: auto, toc, soci or tar, as with mount")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("verify [flags] IMAGE", args, 1, 1); err != nil {
				return err
			}
			if !slices.Contains(indexes, *index) {
				return usageError("--index " + *index + ": want " + strings.Join(indexes, ", "))
			}
			return e.verify(ctx, args[0], *index, *deep)
		}
	},
}

func (e *env) verify(ctx context.Context, ref, index string, deep bool) error {
	im, err := e.openManifest(ctx, ref) // checks manifest and config
	if err != nil {
		return err
	}
	defer im.Close()
	e.warn(im)
	im.index = index
	v := &verifier{e: e, im: im, deep: deep}
	if v.zTOCs, err = im.zTOCs(ctx, e); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "ok       manifest %s\nok       config   %s\n", im.Desc.Digest, im.Manifest.Config.Digest)
	bad := 0
	for i := range im.Manifest.Layers {
		faults, unchecked, err := v.layer(ctx, i)
		if err != nil {
			return err
		}
		if unchecked != "" {
			fmt.Fprintf(e.stdout, "SKIPPED  layer %d  %s\n", i+1, unchecked)
			continue
		}
		for _, f := range faults {
			fmt.Fprintf(e.stdout, "MISMATCH layer %d  %s\n", i+1, safe(f))
		}
		if bad += len(faults); len(faults) == 0 {
			fmt.Fprintf(e.stdout, "ok       layer %d  %s\n", i+1, im.Manifest.Layers[i].Digest)
		}
	}
	if bad > 0 {
		return &exitError{exitIntegrity, fmt.Errorf("verify %s: %d mismatches", ref, bad)}
	}
	return nil
}

// A verifier checks the layers of one image.
type verifier struct {
	e     *env
	im    *image
	deep  bool
	zTOCs map[digest.Digest]*layer.ZTOC
}

// layer reads a layer from its source, as a plain tar whatever index it has.
// It needs room for the layer, for as long as that takes. unchecked says why there is
// nothing to check a layer on disk against.
func (v *verifier) layer(ctx context.Context, i int) (faults []string, unchecked string, err error) {
	if v.im.isDir(i) {
		return v.e.verifyUnpacked(ctx, v.im, i)
	}
	err = v.e.withScratch(func(store *cache.Store) error {
		o := v.options(i)
		o.Whole = true
		faults, err = v.open(ctx, i, store, o, func(tar *layer.Layer) ([]string, error) {
			if !v.deep {
				return nil, nil
			}
			return v.indexes(ctx, i, tar)
		})
		return err
	})
	return faults, "", err
}

func (v *verifier) options(i int) layer.Options {
	return layer.Options{Limits: v.e.limits.Limits, DiffID: v.im.diffID(i), Logger: v.e.log}
}

// open opens layer i and hands it on. What is wrong with the layer itself is a fault.
func (v *verifier) open(ctx context.Context, i int, store *cache.Store, o layer.Options, use func(*layer.Layer) ([]string, error)) ([]string, error) {
	d := v.im.Manifest.Layers[i]
	l, err := layer.Open(ctx, v.im.asIndexed(d), v.im.Blob(d), store, o)
	if errors.Is(err, layer.ErrDigest) || errors.Is(err, layer.ErrFormat) {
		return []string{err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	faults, err := use(l)
	return faults, errors.Join(err, l.Close())
}

// indexes holds every index of a layer that a mount would take against its tar: the one that
// the image offers, as if nothing were local, and the one that the cache has.
func (v *verifier) indexes(ctx context.Context, i int, tar *layer.Layer) (faults []string, err error) {
	compare := func(where string) func(*layer.Layer) ([]string, error) {
		return func(index *layer.Layer) (list []string, err error) {
			if where != "" && index.Status().Index == "tar" { // there is none: it was read whole
				return nil, nil
			}
			found, err := forensic.Compare(ctx, index, tar)
			for _, f := range found {
				list = append(list, f.Path+": "+f.What)
			}
			return list, err
		}
	}
	d := v.im.Manifest.Layers[i]
	o := v.options(i)
	tocs := &tocImage{ref: v.im.Ref, options: v.e.registryOptions(v.im.store)}
	defer func() { err = errors.Join(err, tocs.Close()) }()
	o.ZTOC, o.ExternalTOC = v.zTOCs[d.Digest], tocs.fetcher(d.Digest)
	if _, err := v.im.store.Index(d.Digest); err == nil {
		if faults, err = v.open(ctx, i, v.im.store, o, compare("")); err != nil {
			return faults, err
		}
	}
	if kind, _ := layer.IndexKind(v.im.asIndexed(d), v.im.store); kind != "toc" && o.ZTOC == nil {
		return faults, nil
	}
	err = v.e.withScratch(func(store *cache.Store) error {
		more, err := v.open(ctx, i, store, o, compare("image"))
		for _, f := range more {
			if !slices.Contains(faults, f) {
				faults = append(faults, f)
			}
		}
		return err
	})
	return faults, err
}

// withScratch lends an empty cache.
func (e *env) withScratch(use func(*cache.Store) error) (err error) {
	dir, err := os.MkdirTemp(e.root, "verify-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := cache.Open(dir, cache.Options{Logger: e.log})
	if err != nil {
		return err
	}
	return errors.Join(use(store), store.Close())
}

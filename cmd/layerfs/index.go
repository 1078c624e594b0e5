package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

// Where the index of a layer may come from. What the cache has of a layer whose blob it
// has verified is used by any of them but indexTOC's and indexSOCI's own.
const (
	indexAuto = "auto" // a TOC, else a zTOC that the manifest vouches for, else the tar
	indexTOC  = "toc"  // a TOC, else the tar
	indexSOCI = "soci" // a zTOC, also one that only refers to the image, else the tar
	indexTar  = "tar"  // the tar itself
)

var indexes = []string{indexAuto, indexTOC, indexSOCI, indexTar}

const indexUsage = "where a layer's index may come from: auto; toc: eStargz and zstd:chunked; soci: a SOCI index too that only refers to the image, which anybody may have put there; tar: the layer itself, which is read whole"

// asIndexed is the descriptor of a layer with the annotations that are to be heeded.
func (im *image) asIndexed(d ocispec.Descriptor) ocispec.Descriptor {
	if im.index == indexSOCI || im.index == indexTar {
		d.Annotations = nil
	}
	return d
}

// zTOCs are the zTOCs of the image's layers.
func (im *image) zTOCs(ctx context.Context, e *env) (map[digest.Digest]*layer.ZTOC, error) {
	if im.index == indexTOC || im.index == indexTar {
		return nil, nil
	}
	s, err := im.SOCI(ctx, im.index == indexSOCI && !e.offline)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		e.log.Warn("find the SOCI index", "image", im.Ref, "err", err) // the layers themselves are there
		return nil, nil
	}
	found := map[digest.Digest]*layer.ZTOC{}
	for d, z := range s.ZTOCs {
		found[d] = &layer.ZTOC{Digest: z.Digest, Open: func(ctx context.Context) (io.ReadCloser, error) {
			return im.Blob(z).ReadRange(ctx, 0, z.Size)
		}}
	}
	return found, nil
}

var indexCommand = command{
	name: "index", args: "[--push] IMAGE [DEST]", short: "Build the index of every layer that has none",
	long: `
Reads each layer whole that has no index yet, and keeps its index: a mount is then
there at once, and fetches content when it is read, also after the content
has left the cache. Prints a line for each layer: digest, index, lazy or not.

--push publishes the index for others: as a SOCI index of version 1 that refers
to the image, which --index soci and SOCI's tools find. With DEST, a new image
is pushed that is the same but names its SOCI index in its manifest (version 2),
so that everybody who trusts the image can use it without a flag.
SOCI knows gzip layers alone; those below 10 MiB are not worth one.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		push := flags.Bool("push", false, "publish it beside the image as a SOCI index")
		asJSON := flags.Bool("json", false, "one JSON document")
		return func(ctx context.Context, e *env, args []string) error {
			most := 1
			if *push {
				most = 2
			}
			if err := wantArgs("index [--push] IMAGE [DEST]", args, 1, most); err != nil {
				return err
			}
			if *push {
				return e.pushIndex(ctx, args[0], args[1:])
			}
			return e.withImage(ctx, args[0], func(im *image) error { return e.printIndexes(im, *asJSON) })
		}
	},
}

// An indexRow is the index of a layer.
type indexRow struct {
	Digest string `json:"digest"`
	Index  string `json:"index"`
	Lazy   bool   `json:"lazy"`
	Bytes  int    `json:"index_bytes"`
}

func (e *env) printIndexes(im *image, asJSON bool) error {
	rows := make([]indexRow, len(im.layers))
	for i, d := range im.descs {
		kind, lazy := layer.IndexKind(d, im.store)
		b, err := im.store.Index(d.Digest)
		if err != nil {
			return fmt.Errorf("index of layer %d: %w", i+1, err)
		}
		rows[i] = indexRow{d.Digest.String(), kind, lazy, len(b)}
	}
	if asJSON {
		return writeJSON(e.stdout, rows)
	}
	return table(e.stdout, func(w io.Writer) {
		fmt.Fprintln(w, "LAYER\tINDEX\tLAZY\tSIZE")
		for _, r := range rows {
			fmt.Fprintf(w, "%s\t%s\t%t\t%s\n", shortDigest(hexOf(r.Digest)), r.Index, r.Lazy, size(int64(r.Bytes), false))
		}
	})
}

// pushIndex builds and publishes zTOCs.
func (e *env) pushIndex(ctx context.Context, ref string, dest []string) error {
	im, err := e.openManifest(ctx, ref)
	if err != nil {
		return err
	}
	defer im.Close()
	ztocs, err := im.buildZTOCs(ctx, e)
	if err != nil {
		return err
	}
	if len(ztocs) == 0 {
		return fmt.Errorf("index %s: no layer of it can have a zTOC: they are not gzip, or smaller than %s", ref, size(registry.MinSOCILayer, false))
	}
	p := e.newProgress()
	defer p.done()
	o := registry.SOCIOptions{Options: e.registryOptions(im.store), Tool: tool(), Progress: p.blob}
	var name string
	if len(dest) > 0 {
		_, name, err = registry.PushSOCI(ctx, im.Image, dest[0], ztocs, o)
	} else {
		var d ocispec.Descriptor
		d, err = registry.AttachSOCI(ctx, im.Image, ztocs, o)
		name = d.Digest.String()
	}
	p.done()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.stdout, name)
	return err
}

func tool() string { return "layerfs " + version }

// buildZTOCs makes the zTOCs of the layers that are worth one. What a zTOC cannot describe is
// left out, with a word.
func (im *image) buildZTOCs(ctx context.Context, e *env) ([]registry.ZTOC, error) {
	layers := im.SOCILayers(registry.MinSOCILayer)
	built := make([]registry.ZTOC, len(layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxConverting)
	for i, d := range layers {
		g.Go(func() error {
			b, err := layer.BuildZTOC(ctx, d, im.Blob(d), tool())
			if errors.Is(err, layer.ErrUnsupported) {
				e.remark("%s: left without a zTOC: %v", d.Digest, err)
				return nil
			}
			built[i] = registry.ZTOC{Layer: d, Span: layer.ZTOCSpan, Blob: b}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var list []registry.ZTOC
	for _, z := range built {
		if z.Blob != nil {
			list = append(list, z)
		}
	}
	return list, nil
}

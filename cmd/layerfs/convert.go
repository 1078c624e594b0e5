package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

var convertCommand = command{
	name: "convert", args: "SRC DEST", short: "Re-encode an image's layers, for example to mount them lazily",
	long: `
SRC is any image, DEST as in copy. Prints DEST with the digest of the new image.

estargz and zstd:chunked have an index of their files, by which mount fetches only
what is read. The files, the history and the rest of the config stay what they
are, and the same image gives the same digest whenever and wherever it is
converted. A layer that is in the wanted form already stays as it is, unless
--level or --profile asks for another; foreign layers stay with their addresses.

Of a multi-platform image the one of --platform (default: of this machine) is
converted.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		compression := flags.String("compression", forms[0], strings.Join(forms, ", "))
		level := flags.Int("level", 0, "compression level (0: the usual one; of estargz 9)")
		profile := flags.String("profile", "", "put the files first that this file lists, one path a line, and have a mount fetch them at once")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("convert [flags] SRC DEST", args, 2, 2); err != nil {
				return err
			}
			if !slices.Contains(forms, *compression) {
				return usageError("--compression " + *compression + ": want " + strings.Join(forms, ", "))
			}
			want := layer.Compression{Algorithm: *compression, Level: *level}
			if *profile != "" {
				if !indexed(want.Algorithm) {
					return usageError("--profile: " + want.Algorithm + " has no order to fetch files in; estargz and zstd:chunked have")
				}
				var err error
				if want.Prioritized, err = readProfile(*profile); err != nil {
					return err
				}
			}
			return e.convert(ctx, args[0], args[1], want)
		}
	},
}

// forms are those that convert makes.
var forms = []string{"estargz", "zstd:chunked", "gzip", "zstd", "none"}

// indexed tells whether layers of a form have an index of their files.
func indexed(form string) bool { return form == "estargz" || form == "zstd:chunked" }

// readProfile reads the paths of a profile, as inspect --profile prints it or a person wrote it.
func readProfile(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the profile: %w", err)
	}
	defer f.Close()
	p, err := union.ParseProfile(f)
	if err != nil {
		return nil, fmt.Errorf("read the profile %s: %w", name, err)
	}
	paths := []string{} // not nil: an empty profile says that nothing is to be fetched at once
	for _, file := range p.Files {
		paths = append(paths, file.Path)
	}
	return paths, nil
}

// maxConverting bounds the layers that are re-encoded at a time: each compresses on all
// cores already, and a second one fills the gaps of the first.
const maxConverting = 2

func (e *env) convert(ctx context.Context, src, dest string, want layer.Compression) error {
	im, err := e.openManifest(ctx, src)
	if err != nil {
		return err
	}
	defer im.Close()
	layers, err := im.newLayers(ctx, want, filepath.Join(e.root, "cache", "tmp"))
	if err != nil {
		return err
	}
	p := e.newProgress()
	_, name, err := registry.Rewrite(ctx, im.Image, dest, registry.RewriteOptions{
		Options: e.registryOptions(im.store), Layers: layers, Parallel: maxConverting, Progress: p.blob,
	})
	p.done()
	if err != nil {
		return err
	}
	e.remarkArchive(dest)
	_, err = fmt.Fprintln(e.stdout, name)
	return err
}

// newLayers are the layers that are not in the wanted form, as they will be.
// What has to be on the disk meanwhile is in temp.
func (im *image) newLayers(ctx context.Context, want layer.Compression, temp string) (map[digest.Digest]registry.NewLayer, error) {
	forms, err := im.forms(ctx)
	if err != nil {
		return nil, err
	}
	layers := map[digest.Digest]registry.NewLayer{}
	for i, d := range im.Manifest.Layers {
		if forms[i] == "" || forms[i] == want.Algorithm && want.Level == 0 && want.Prioritized == nil {
			continue
		}
		old := oldLayer{im: im, d: d, diffID: im.diffID(i), indexed: indexed(forms[i]), temp: temp}
		layers[d.Digest] = registry.NewLayer{Repeatable: true, Write: func(ctx context.Context, w io.Writer) (ocispec.Descriptor, digest.Digest, error) {
			e, err := old.encode(ctx, w, levelled(want))
			return e.Descriptor, e.DiffID, im.layerError(i, err)
		}}
	}
	return layers, nil
}

// levelled gives eStargz its best level, unless one was asked for: it is made once and
// fetched often.
func levelled(c layer.Compression) layer.Compression {
	if c.Algorithm == "estargz" && c.Level == 0 {
		c.Level = 9
	}
	return c
}

// forms looks at all layers; "" is a foreign one.
func (im *image) forms(ctx context.Context) ([]string, error) {
	forms := make([]string, len(im.Manifest.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxOpening)
	for i, d := range im.Manifest.Layers {
		if registry.IsForeign(d.MediaType) {
			continue
		}
		g.Go(func() (err error) {
			forms[i], err = layer.FormOf(ctx, d, im.Blob(d))
			return im.layerError(i, err)
		})
	}
	return forms, g.Wait()
}

func (im *image) layerError(i int, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("convert layer %d of %s: %w", i+1, im.Ref, err)
}

// An oldLayer is a layer to be converted.
type oldLayer struct {
	im      *image
	d       ocispec.Descriptor
	diffID  digest.Digest
	indexed bool // the tar may hold what belongs to the form, not to the image
	temp    string
}

// encode streams the layer through: its tar is verified, and stored nowhere, unless
// files come first, which are known when all of it has been seen.
func (l oldLayer) encode(ctx context.Context, w io.Writer, want layer.Compression) (e layer.Encoded, err error) {
	tar, err := layer.Tar(ctx, l.d, l.im.Blob(l.d), l.diffID)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	var r io.Reader = tar
	if l.indexed {
		r = layer.WithoutTOC(r)
	}
	if want.Prioritized == nil {
		return layer.Encode(ctx, w, r, want)
	}
	f, err := l.spool(r)
	if err != nil {
		return e, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return e, err
	}
	return layer.Encode(ctx, w, io.NewSectionReader(f, 0, st.Size()), want)
}

// spool writes a tar to a file that has no name.
func (l oldLayer) spool(tar io.Reader) (*os.File, error) {
	f, err := os.CreateTemp(l.temp, "convert-")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = io.Copy(f, tar)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

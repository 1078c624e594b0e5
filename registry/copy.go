package registry

import (
	"context"
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// CopyOptions say what Copy copies.
type CopyOptions struct {
	Options // how source and destination are reached, and the platform of an index that is copied

	// All copies an index with the images of all platforms and what else it
	// names (attestations, SOCI indexes).
	All      bool
	Progress func(Progress) // called from one goroutine at a time; nil for none
}

// Copy writes the image that src names to dest, of the same forms as Push's, and
// returns the manifest's descriptor and DEST@DIGEST. No byte of a manifest, config or
// layer is changed. Blobs that are there already are not sent; a registry mounts
// those of its other repositories; the others are streamed through and
// verified in passing. The name is moved last.
//
// A docker archive that is read has no manifest of its own, and one that is written
// is read as another one later: these digests differ. It holds one image, so
// that All asks for an index to be refused there. What refers to an image from
// elsewhere (signatures, referrers) is not copied.
//
// Errors are *Error.
func Copy(ctx context.Context, src, dest string, o CopyOptions) (ocispec.Descriptor, string, error) {
	im, err := openCopied(ctx, src, o)
	if err != nil {
		return ocispec.Descriptor{}, "", wrapError("open", quoteRef(src), err)
	}
	defer func() { _ = im.Close() }() // only read
	if err := copyImage(ctx, im, dest, o); err != nil {
		return ocispec.Descriptor{}, "", wrapError("copy to", quoteRef(dest), err)
	}
	return im.Desc, dest + "@" + im.Desc.Digest.String(), nil
}

// openCopied opens the image of one platform, or with All whatever src names: then
// of the manifest only the bytes are there.
func openCopied(ctx context.Context, src string, o CopyOptions) (*Image, error) {
	if !o.All {
		return open(ctx, src, o.Options)
	}
	r, err := parseRef(src)
	if err != nil {
		return nil, err
	}
	s, err := newSource(r, o.Options)
	if err != nil {
		return nil, err
	}
	im := &Image{Ref: src, ref: r, src: s, blobs: map[string]*Blob{}}
	im.Desc, im.RawManifest, err = s.resolve(ctx)
	if err != nil {
		_ = s.close()
		return nil, err
	}
	return im, nil
}

func copyImage(ctx context.Context, im *Image, dest string, o CopyOptions) error {
	r, err := parseDest(dest)
	if err != nil {
		return err
	}
	c := &copying{mover: mover{base: im, report: o.Progress}}
	top, err := c.collect(ctx, im.Desc, im.RawManifest, 0)
	if err != nil {
		return err
	}
	im.Desc.MediaType = top
	if isIndex(top) && r.Transport == transportDockerArchive {
		return faultf(ErrUsage, "a docker archive holds the image of one platform").withHint("leave --all out")
	}
	if c.sink, err = newSink(ctx, r, o.Options, time.Unix(0, 0)); err != nil {
		return err
	}
	defer c.sink.close()
	return c.run(ctx)
}

// A copying is one Copy under way.
type copying struct {
	mover
	configs, layers []ocispec.Descriptor
	manifests       []rawManifest // those below come before those that name them
	size            int64         // of the manifests
}

// maxManifests bounds the manifests of one copy, which are in memory. An index of
// ten platforms with attestations has some 100 KiB.
const maxManifests = 64 << 20

type rawManifest struct {
	d   ocispec.Descriptor
	raw []byte
}

// collect lists what a manifest or an index needs, itself included, and returns its media type.
func (c *copying) collect(ctx context.Context, d ocispec.Descriptor, raw []byte, depth int) (string, error) {
	kind, err := manifestKind(d.MediaType, raw)
	if err != nil {
		return "", err
	}
	d.MediaType = kind
	if c.size += int64(len(raw)); c.size > maxManifests {
		return "", faultf(ErrUnsupported, "manifests of more than %d bytes", maxManifests)
	}
	if isIndex(kind) {
		err = c.collectIndex(ctx, d, raw, depth)
	} else {
		err = c.collectBlobs(d, raw)
	}
	c.manifests = append(c.manifests, rawManifest{d, raw})
	return kind, err
}

func (c *copying) collectBlobs(d ocispec.Descriptor, raw []byte) error {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return faultf(ErrIntegrity, "manifest %s: %w", d.Digest, err)
	}
	for _, b := range append(m.Layers, m.Config) {
		if b.Size < 0 || b.Digest.Validate() != nil {
			return faultf(ErrIntegrity, "manifest %s: blob with digest %q and size %d", d.Digest, b.Digest, b.Size)
		}
	}
	c.configs = append(c.configs, m.Config)
	c.layers = append(c.layers, m.Layers...)
	return nil
}

func (c *copying) collectIndex(ctx context.Context, d ocispec.Descriptor, raw []byte, depth int) error {
	if depth == maxIndexDepth {
		return faultf(ErrUnsupported, "indexes nested more than %d deep", maxIndexDepth)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return faultf(ErrIntegrity, "index %s: %w", d.Digest, err)
	}
	seen := map[digest.Digest]bool{}
	for _, e := range index.Manifests {
		if seen[e.Digest] {
			continue
		}
		seen[e.Digest] = true
		raw, err := fetchManifest(ctx, c.base.src, e)
		if err == nil {
			_, err = c.collect(ctx, e, raw, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// run moves blobs first, the name last.
func (c *copying) run(ctx context.Context) error {
	last := len(c.manifests) - 1
	top := c.manifests[last]
	c.manifests = c.manifests[:last]
	if err := c.send(ctx); err != nil {
		return err
	}
	d := c.base.Desc // without what an index said of it
	return c.sink.commit(ctx, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, top.raw)
}

// send copies what was collected.
func (c *copying) send(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.sink.parallel())
	c.copy(gctx, g, c.layers, c.progress)
	c.copy(gctx, g, c.configs, func(Progress) {}) // too small to be spoken of
	if err := g.Wait(); err != nil {
		return err
	}
	for _, m := range c.manifests {
		if err := c.sink.manifest(ctx, m.d, m.raw); err != nil {
			return err
		}
	}
	return nil
}

package registry

import (
	"context"
	"maps"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// A ZTOC is a zTOC to be published.
type ZTOC struct {
	Layer ocispec.Descriptor // whose zTOC it is: one of the image's layers
	Span  int64              // its distance of checkpoints
	Blob  []byte
}

// SOCIOptions say how zTOCs are published.
type SOCIOptions struct {
	Options // how the destination is reached

	Tool     string         // who made the zTOCs
	Progress func(Progress) // called from one goroutine at a time; nil for none
}

// AttachSOCI publishes zTOCs beside the image that they are of, in its repository or layout: as
// a SOCI index of version 1, which refers to the image. The image stays what it is. In a registry
// that lists no referrers the index is entered under the fallback tag. The same zTOCs
// give the same index, which may be published again. It returns the descriptor of the
// index. Errors are *Error.
func AttachSOCI(ctx context.Context, im *Image, ztocs []ZTOC, o SOCIOptions) (ocispec.Descriptor, error) {
	d, err := attachSOCI(ctx, im, ztocs, o)
	if err != nil {
		return ocispec.Descriptor{}, wrapError("attach a SOCI index to", quoteRef(im.Ref), err)
	}
	return d, nil
}

func attachSOCI(ctx context.Context, im *Image, ztocs []ZTOC, o SOCIOptions) (ocispec.Descriptor, error) {
	r := im.ref
	r.Tag, r.Digest = "", ""
	if r.Transport != transportDocker && r.Transport != transportOCI {
		return ocispec.Descriptor{}, faultf(ErrUnsupported, "nothing can be attached to images in a %s", r.Transport).
			withHint("copy the image to a registry or an oci: directory first")
	}
	p, err := newSOCIPush(ctx, r, im, ztocs, o)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer p.sink.close()
	subject := ocispec.Descriptor{MediaType: im.Desc.MediaType, Digest: im.Desc.Digest, Size: im.Desc.Size}
	d, raw, err := p.index(ctx, sociV1, &subject)
	if err != nil {
		return d, err
	}
	if s, ok := p.sink.(*remoteSink); ok {
		return d, s.attach(ctx, d, raw, subject.Digest)
	}
	return d, p.sink.commit(ctx, d, raw)
}

// PushSOCI writes to dest what SOCI calls a converted image: an index of the image, whose manifest
// names a SOCI index of version 2 by digest, and of that SOCI index. The layers are those of im, and are
// brought to dest as Push does. It returns the descriptor of what dest names then, and
// DEST@DIGEST. Errors are *Error.
func PushSOCI(ctx context.Context, im *Image, dest string, ztocs []ZTOC, o SOCIOptions) (ocispec.Descriptor, string, error) {
	d, err := pushSOCI(ctx, im, dest, ztocs, o)
	if err != nil {
		return ocispec.Descriptor{}, "", wrapError("push", quoteRef(dest), err)
	}
	return d, dest + "@" + d.Digest.String(), nil
}

func pushSOCI(ctx context.Context, im *Image, dest string, ztocs []ZTOC, o SOCIOptions) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	r, err := parseDest(dest)
	if err != nil {
		return none, err
	}
	if err := im.LoadConfig(ctx); err != nil {
		return none, err
	}
	if r.Transport == transportDockerArchive {
		return none, faultf(ErrUnsupported, "a docker archive cannot hold a SOCI index").withHint("oci-archive: can")
	}
	p, err := newSOCIPush(ctx, r, im, ztocs, o)
	if err != nil {
		return none, err
	}
	defer p.sink.close()
	index, raw, err := p.index(ctx, sociV2, nil)
	if err != nil {
		return none, err
	}
	if err := p.sink.manifest(ctx, index, raw); err != nil {
		return none, err
	}
	image, err := p.image(ctx, index.Digest)
	if err != nil {
		return none, err
	}
	return p.both(ctx, image, index)
}

// A sociPush is the publishing of zTOCs under way.
type sociPush struct {
	mover
	ztocs []ZTOC
	tool  string
}

func newSOCIPush(ctx context.Context, r Ref, im *Image, ztocs []ZTOC, o SOCIOptions) (*sociPush, error) {
	if len(ztocs) == 0 {
		return nil, faultf(ErrUnsupported, "no zTOCs to publish")
	}
	for _, z := range ztocs {
		if !im.hasLayer(z.Layer.Digest) {
			return nil, faultf(ErrUsage, "a zTOC of %s, which is no layer of the image", z.Layer.Digest)
		}
	}
	s, err := newSink(ctx, r, o.Options, time.Unix(0, 0))
	return &sociPush{mover: mover{base: im, sink: s, report: o.Progress}, ztocs: ztocs, tool: o.Tool}, err
}

// emptyConfig is the config of artifacts; its type is theirs.
var emptyConfig = []byte("{}")

// index stores the zTOCs and makes their index, which is left to the caller to store.
func (p *sociPush) index(ctx context.Context, version string, subject *ocispec.Descriptor) (ocispec.Descriptor, []byte, error) {
	m := ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      ocispec.Descriptor{MediaType: version, Digest: digest.FromBytes(emptyConfig), Size: int64(len(emptyConfig))},
		Layers:      make([]ocispec.Descriptor, len(p.ztocs)),
		Subject:     subject,
		Annotations: map[string]string{sociBuildTool: p.tool},
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.sink.parallel())
	for i, z := range p.ztocs {
		m.Layers[i] = z.describe()
		g.Go(func() error { return p.put(gctx, m.Layers[i], z.Blob) })
	}
	g.Go(func() error { return p.sink.put(gctx, m.Config, emptyConfig) })
	if err := g.Wait(); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	raw, err := marshal(m)
	d := ocispec.Descriptor{MediaType: m.MediaType, ArtifactType: version, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Annotations: m.Annotations}
	return d, raw, err
}

func (z ZTOC) describe() ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: octetStream, Digest: digest.FromBytes(z.Blob), Size: int64(len(z.Blob)),
		Annotations: map[string]string{
			sociLayerDigest: z.Layer.Digest.String(), sociLayerType: z.Layer.MediaType, sociSpanSize: strconv.FormatInt(z.Span, 10),
		},
	}
}

func (p *sociPush) put(ctx context.Context, d ocispec.Descriptor, b []byte) error {
	p.progress(Progress{Blob: d.Digest, State: "uploading", Total: d.Size})
	if err := p.sink.put(ctx, d, b); err != nil {
		return err
	}
	p.progress(Progress{Blob: d.Digest, State: "done", Done: d.Size, Total: d.Size})
	return nil
}

// image stores the image whose manifest names the index.
func (p *sociPush) image(ctx context.Context, index digest.Digest) (ocispec.Descriptor, error) {
	raw, err := sociManifest(p.base, index)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.sink.parallel())
	p.copy(gctx, g, p.base.Manifest.Layers, p.progress)
	g.Go(func() error { return p.sink.put(gctx, p.base.Manifest.Config, p.base.RawConfig) })
	if err := g.Wait(); err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, p.sink.manifest(ctx, d, raw)
}

// both stores the index of the image and its SOCI index, so that no garbage collector
// takes one for left over.
func (p *sociPush) both(ctx context.Context, image, index ocispec.Descriptor) (ocispec.Descriptor, error) {
	platform := p.base.Config.Platform
	image.Platform, index.Platform = &platform, &platform
	index.Annotations = map[string]string{sociManifestDigest: image.Digest.String()}
	raw, err := marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{image, index},
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, p.sink.commit(ctx, d, raw)
}

// sociManifest is the manifest of an image with the digest of its SOCI index. It is always an OCI manifest,
// because docker's has no annotations.
func sociManifest(im *Image, index digest.Digest) ([]byte, error) {
	m, err := parseRaw(im.RawManifest)
	if err != nil {
		return nil, faultf(ErrIntegrity, "manifest of the image: %w", err)
	}
	if im.Desc.MediaType == dockerManifest {
		layers, err := m.list("layers")
		if err == nil {
			layers, err = toOCI(layers)
		}
		if err != nil {
			return nil, err
		}
		m.setRaw("layers", rawList(layers))
		config := im.Manifest.Config
		config.MediaType = ocispec.MediaTypeImageConfig
		if err := m.set("config", config); err != nil {
			return nil, err
		}
	}
	annotations := maps.Clone(im.Manifest.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[sociIndexDigest] = index.String()
	if err := m.set("annotations", annotations); err != nil {
		return nil, err
	}
	err = m.set("mediaType", ocispec.MediaTypeImageManifest)
	return m.bytes(), err
}

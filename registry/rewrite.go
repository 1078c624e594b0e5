package registry

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// RewriteOptions say what Rewrite replaces.
type RewriteOptions struct {
	Options // how the destination is reached

	// Layers are what stands in place of the layers of the base, by the digest of
	// their blob. Those that are not here stay as they are.
	Layers map[digest.Digest]NewLayer
	// Parallel is how many of them may be written at a time; at least 1.
	Parallel int

	Progress func(Progress) // called from one goroutine at a time, of a new layer with the digest of the old one; nil for none
}

// Rewrite writes an image to dest, of the same forms as Push's, that is base with
// other blobs for some of its layers, and returns the manifest's descriptor and
// DEST@DIGEST. The new layers hold the same files: history and the rest of the
// config stay as they are, and only diff IDs that are others now are replaced. So
// the result depends on nothing but base and the new layers.
//
// The name is moved last. base must stay open until Rewrite returns. Errors are
// *Error, or what a layer's Write returned.
func Rewrite(ctx context.Context, base *Image, dest string, o RewriteOptions) (ocispec.Descriptor, string, error) {
	d, err := rewrite(ctx, base, dest, o)
	if err != nil {
		return ocispec.Descriptor{}, "", wrapError("convert to", quoteRef(dest), err)
	}
	return d, dest + "@" + d.Digest.String(), nil
}

func rewrite(ctx context.Context, base *Image, dest string, o RewriteOptions) (ocispec.Descriptor, error) {
	r, err := parseDest(dest)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := checkDiffIDs(base); err != nil {
		return ocispec.Descriptor{}, err
	}
	s, err := newSink(ctx, r, o.Options, time.Unix(0, 0))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer s.close()
	w := &rewriting{mover: mover{base: base, sink: s, report: o.Progress}, o: o, made: map[digest.Digest]*madeLayer{}}
	return w.run(ctx)
}

// A rewriting is one Rewrite under way.
type rewriting struct {
	mover
	o    RewriteOptions
	made map[digest.Digest]*madeLayer // by the old blob
}

// A madeLayer is a new layer and what it is once it is written.
type madeLayer struct {
	d      ocispec.Descriptor
	diffID digest.Digest
}

func (w *rewriting) run(ctx context.Context) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	if err := w.blobs(ctx); err != nil {
		return none, err
	}
	raw, err := w.config()
	if err != nil {
		return none, err
	}
	config := ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := w.sink.put(ctx, config, raw); err != nil {
		return none, err
	}
	raw, mediaType, err := w.manifest(config)
	if err != nil {
		return none, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, w.sink.commit(ctx, d, raw)
}

// blobs copies what stays and writes what is new.
func (w *rewriting) blobs(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, min(w.o.Parallel, w.sink.parallel())))
	var stay []ocispec.Descriptor
	for _, old := range w.base.Manifest.Layers {
		l, ok := w.o.Layers[old.Digest]
		if !ok {
			stay = append(stay, old)
			continue
		}
		if w.made[old.Digest] != nil {
			continue
		}
		m := &madeLayer{}
		w.made[old.Digest] = m
		g.Go(func() (err error) {
			m.d, m.diffID, err = w.create(ctx, &l, old.Digest)
			return err
		})
	}
	w.copy(ctx, g, stay, w.progress)
	return g.Wait()
}

// config replaces the diff IDs that are others. Where none is, it is the base's.
func (w *rewriting) config() ([]byte, error) {
	same := true
	ids := make([]digest.Digest, len(w.base.Manifest.Layers))
	for i, old := range w.base.Manifest.Layers {
		ids[i] = w.base.Config.RootFS.DiffIDs[i]
		if m := w.made[old.Digest]; m != nil && m.diffID != ids[i] {
			ids[i], same = m.diffID, false
		}
	}
	if same {
		return w.base.RawConfig, nil
	}
	c, err := parseRaw(w.base.RawConfig)
	if err != nil {
		return nil, faultf(ErrIntegrity, "config of the base image: %w", err)
	}
	fs, err := c.object("rootfs")
	if err == nil {
		err = fs.set("diff_ids", ids)
	}
	if err != nil {
		return nil, faultf(ErrIntegrity, "rootfs of the base image: %w", err)
	}
	c.setRaw("rootfs", fs.bytes())
	return c.bytes(), nil
}

// manifest names the new blobs. Annotations say something about the image, and stay.
func (w *rewriting) manifest(config ocispec.Descriptor) (raw []byte, mediaType string, err error) {
	m, err := parseRaw(w.base.RawManifest)
	if err != nil {
		return nil, "", faultf(ErrIntegrity, "manifest of the base image: %w", err)
	}
	layers, err := m.list("layers")
	if err != nil {
		return nil, "", faultf(ErrIntegrity, "layers of the base image: %w", err)
	}
	mediaType = w.base.Desc.MediaType
	if mediaType == dockerManifest && w.needsOCI() {
		mediaType = ocispec.MediaTypeImageManifest
		if layers, err = toOCI(layers); err != nil {
			return nil, "", err
		}
	}
	for i, old := range w.base.Manifest.Layers {
		made := w.made[old.Digest]
		if made == nil {
			continue
		}
		if layers[i], err = marshal(replacement(old, made.d, mediaType)); err != nil {
			return nil, "", err
		}
	}
	config.MediaType = configType(mediaType)
	m.setRaw("layers", rawList(layers))
	m.remove("subject") // what the base was attached to, the new image is not
	steps := []error{m.set("config", config), m.set("mediaType", mediaType), dropSOCI(m)}
	return m.bytes(), mediaType, errors.Join(steps...)
}

// needsOCI tells whether a new layer is something that a docker manifest has no
// words for: a compression, or annotations, which make a layer lazy.
func (w *rewriting) needsOCI() bool {
	for _, m := range w.made {
		if dockerType(m.d.MediaType) == "" || len(m.d.Annotations) > 0 {
			return true
		}
	}
	return false
}

// formAnnotations begin the annotations that describe the blob of a layer, and so
// are true of that one alone.
var formAnnotations = []string{
	"containerd.io/snapshot/stargz/", "io.containers.estargz.", "io.containers.zstd-chunked.", "io.github.containers.zstd-chunked.",
	sociAnnotations,
}

// replacement is the descriptor of a new layer, with what was said of the old one.
func replacement(old, made ocispec.Descriptor, manifestType string) ocispec.Descriptor {
	kept := maps.Clone(old.Annotations)
	maps.DeleteFunc(kept, func(k, _ string) bool {
		for _, prefix := range formAnnotations {
			if strings.HasPrefix(k, prefix) {
				return true
			}
		}
		return false
	})
	if kept == nil {
		kept = map[string]string{}
	}
	maps.Copy(kept, made.Annotations)
	made.Annotations = kept
	if manifestType == dockerManifest {
		made.MediaType = dockerType(made.MediaType)
	}
	return made
}

// dropSOCI takes away the annotations that bind a SOCI index to the base's manifest.
func dropSOCI(m *rawObject) error {
	a, err := m.object("annotations")
	if err != nil {
		return faultf(ErrIntegrity, "annotations of the base image: %w", err)
	}
	had := len(a.values)
	maps.DeleteFunc(a.values, func(k string, _ json.RawMessage) bool { return strings.HasPrefix(k, sociAnnotations) })
	if len(a.values) != had {
		m.setRaw("annotations", a.bytes())
	}
	return nil
}

package registry

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What SOCI calls things (soci-snapshotter, docs/soci-index-manifest-v2.md and soci/soci_index.go).
const (
	sociV1 = sociPrefix + "index.v1+json"
	sociV2 = sociPrefix + "index.v2+json"

	sociIndexDigest    = "com.amazon.soci.index-digest"          // of an image manifest: its v2 index
	sociManifestDigest = "com.amazon.soci.image-manifest-digest" // of a v2 index in an image index: its image manifest
	sociLayerDigest    = "com.amazon.soci.image-layer-digest"    // of a zTOC, as the next two
	sociLayerType      = "com.amazon.soci.image-layer-mediaType"
	sociSpanSize       = "com.amazon.soci.span-size"
	sociBuildTool      = "com.amazon.soci.build-tool-identifier" // of an index
)

// A SOCIIndex names the zTOCs of an image's layers.
type SOCIIndex struct {
	Desc ocispec.Descriptor // of the index; its ArtifactType tells the version
	// ZTOCs are the zTOCs by the digest of their layer; Image.Blob reads them. Few indexes have
	// one for every layer: small layers are not worth it.
	ZTOCs map[digest.Digest]ocispec.Descriptor
	// Bound tells that the image's manifest names the index by digest (v2), so that whoever vouches
	// for the image vouches for it. An index that is not (v1) refers to the image, and anybody who
	// can push to the repository may have put it there.
	Bound bool
}

// SOCI finds the image's SOCI index. What the manifest names comes first; the referrers of
// the manifest are asked for only if referrers is set. An image without an index has the
// zero SOCIIndex. Errors are *Error.
func (im *Image) SOCI(ctx context.Context, referrers bool) (SOCIIndex, error) {
	s, err := im.boundSOCI(ctx)
	if err == nil && s.ZTOCs == nil && referrers {
		s, err = im.referringSOCI(ctx)
	}
	if err != nil {
		return SOCIIndex{}, wrapError("find the SOCI index of", im.Ref, err)
	}
	return s, nil
}

// An addressed source finds other manifests than its reference's, by digest.
type addressed interface {
	at(d digest.Digest) source
}

func (s *remote) at(d digest.Digest) source {
	other := *s
	other.ref.Digest = d
	return &other
}

func (s *recorded) at(d digest.Digest) source {
	other := *s
	other.ref.Digest = d
	if s.inner != nil {
		other.inner = s.inner.(addressed).at(d)
	}
	return &other
}

func (l *layout) at(d digest.Digest) source {
	other := *l
	other.ref.Digest = d
	return &other
}

// boundSOCI reads the index that the manifest's annotation names. The annotation has no size.
func (im *Image) boundSOCI(ctx context.Context) (SOCIIndex, error) {
	d := digest.Digest(im.Manifest.Annotations[sociIndexDigest])
	src, ok := im.src.(addressed)
	if d == "" || !ok {
		return SOCIIndex{}, nil
	}
	if err := d.Validate(); err != nil {
		return SOCIIndex{}, faultf(ErrIntegrity, "annotation %s %q: %w", sociIndexDigest, d, err)
	}
	desc, raw, err := src.at(d).resolve(ctx)
	if err != nil {
		return SOCIIndex{}, err
	}
	desc.ArtifactType = sociV2
	s, err := im.readSOCI(desc, raw)
	s.Bound = true
	return s, err
}

// maxSOCI is how many of an image's v1 indexes are looked at. soci-snapshotter takes the
// first; one that is good for nothing must not be in the way of the next.
const maxSOCI = 8

// referringSOCI takes the first of the referrers that is an index of this image.
func (im *Image) referringSOCI(ctx context.Context) (SOCIIndex, error) {
	src, ok := im.src.(referring)
	if !ok {
		return SOCIIndex{}, nil
	}
	list, err := src.referrers(ctx, im.Desc.Digest, sociV1)
	if err != nil {
		return SOCIIndex{}, err
	}
	var last error
	for _, d := range list[:min(len(list), maxSOCI)] {
		raw, err := fetchManifest(ctx, im.src, d)
		if err == nil {
			var s SOCIIndex
			if s, err = im.readSOCI(d, raw); err == nil {
				return s, nil
			}
		}
		if ctx.Err() != nil {
			return SOCIIndex{}, context.Cause(ctx)
		}
		last = err
	}
	return SOCIIndex{}, last
}

// readSOCI reads an index manifest of the version that d names.
func (im *Image) readSOCI(d ocispec.Descriptor, raw []byte) (SOCIIndex, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return SOCIIndex{}, faultf(ErrIntegrity, "SOCI index %s: %w", d.Digest, err)
	}
	switch {
	case m.Config.MediaType != d.ArtifactType && m.ArtifactType != d.ArtifactType:
		return SOCIIndex{}, faultf(ErrUnsupported, "%s is no SOCI index but %s", d.Digest, oneLine(m.Config.MediaType))
	case d.ArtifactType == sociV1 && (m.Subject == nil || m.Subject.Digest != im.Desc.Digest):
		return SOCIIndex{}, faultf(ErrIntegrity, "SOCI index %s is of another image", d.Digest)
	}
	s := SOCIIndex{Desc: d, ZTOCs: map[digest.Digest]ocispec.Descriptor{}}
	for _, l := range m.Layers {
		of := digest.Digest(l.Annotations[sociLayerDigest])
		if l.MediaType != octetStream || !im.hasLayer(of) { // such as lists of spans to prefetch
			continue
		}
		if l.Digest.Validate() != nil || l.Size <= 0 {
			return SOCIIndex{}, faultf(ErrIntegrity, "SOCI index %s has a zTOC with digest %q and size %d", d.Digest, l.Digest, l.Size)
		}
		s.ZTOCs[of] = l
	}
	return s, nil
}

func (im *Image) hasLayer(d digest.Digest) bool {
	for _, l := range im.Manifest.Layers {
		if l.Digest == d {
			return true
		}
	}
	return false
}

// MinSOCILayer is the size from which a layer is worth a zTOC, by SOCI's default: smaller ones
// are fetched whole sooner than an index and parts of them.
const MinSOCILayer = 10 << 20

// SOCILayers returns the layers of at least so many bytes that can have a zTOC, each once:
// those that are said to be gzip.
func (im *Image) SOCILayers(least int64) []ocispec.Descriptor {
	var list []ocispec.Descriptor
	seen := map[digest.Digest]bool{}
	for _, l := range im.Manifest.Layers {
		gzip := strings.HasSuffix(l.MediaType, "gzip")
		if gzip && l.Size >= least && !IsForeign(l.MediaType) && !seen[l.Digest] {
			seen[l.Digest] = true
			list = append(list, l)
		}
	}
	return list
}

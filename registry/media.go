package registry

import (
	"encoding/json"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types beside those of image-spec.
const (
	dockerIndex        = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

	dockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"

	ociForeignLayer     = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	ociForeignLayerGzip = ociForeignLayer + "+gzip"

	octetStream = "application/octet-stream"
)

// acceptManifests are the types asked for. The two of schema 1 are not among
// them, so that a registry that can convert does.
var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerIndex,
}, ", ")

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerIndex
}

// IsForeign tells of a layer's media type whether it must not be uploaded (image-spec
// layer.md, "Non-Distributable Layers"): the descriptor says where such a layer is.
func IsForeign(mediaType string) bool {
	return strings.HasPrefix(mediaType, ociForeignLayer) || mediaType == dockerForeignLayer
}

// manifestKind returns the media type of a manifest: what it says of itself,
// what it was served as, or what its members tell. It refuses what is neither
// an image nor an index.
func manifestKind(served string, raw []byte) (string, error) {
	var m struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		Config        json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", faultf(ErrIntegrity, "manifest is no JSON: %w", err)
	}
	served, _, _ = strings.Cut(served, ";")
	for _, t := range []string{m.MediaType, strings.TrimSpace(served)} {
		switch t {
		case ocispec.MediaTypeImageManifest, dockerManifest:
			return t, ambiguous(m.Manifests != nil)
		case ocispec.MediaTypeImageIndex, dockerIndex:
			return t, ambiguous(m.Layers != nil || m.Config != nil)
		case dockerSchema1, dockerSchema1Signed:
			return "", errSchema1()
		}
	}
	switch {
	case m.SchemaVersion == 1:
		return "", errSchema1()
	case m.Manifests != nil && m.Config == nil && m.Layers == nil:
		return ocispec.MediaTypeImageIndex, nil
	case m.Config != nil && m.Manifests == nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", faultf(ErrUnsupported, "not an image manifest (media type %q)", m.MediaType)
}

// ambiguous refuses documents that are an index to one reader and an image to
// another (CVE-2021-41190).
func ambiguous(both bool) error {
	if both {
		return faultf(ErrIntegrity, "manifest is an image and an index at once")
	}
	return nil
}

func errSchema1() error {
	return faultf(ErrUnsupported, "the manifest has the old schema 1, without sizes and diff IDs").
		withHint("convert it: skopeo copy --format oci docker://OLD docker://NEW")
}

// checkManifest refuses manifests whose layers are no root file system.
func checkManifest(m ocispec.Manifest) error {
	switch t := m.Config.MediaType; t {
	case ocispec.MediaTypeImageConfig, dockerConfig, octetStream, "":
	default:
		if m.ArtifactType != "" {
			t = m.ArtifactType
		}
		return faultf(ErrUnsupported, "not an image but an artifact of type %s", t)
	}
	for _, l := range m.Layers {
		if isNydus(l) {
			return faultf(ErrUnsupported, "a nydus image: its layers are no tar archives").
				withHint("mount the image it was converted from")
		}
		if l.Size < 0 || l.Digest.Validate() != nil {
			return faultf(ErrIntegrity, "layer with digest %q and size %d", l.Digest, l.Size)
		}
	}
	return nil
}

// isNydus recognises layers of nydus-snapshotter's converter: data blobs by
// media type, the bootstrap by annotation.
func isNydus(l ocispec.Descriptor) bool {
	_, bootstrap := l.Annotations["containerd.io/snapshot/nydus-bootstrap"]
	return bootstrap || strings.HasPrefix(l.MediaType, "application/vnd.oci.image.layer.nydus.")
}

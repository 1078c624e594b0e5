package registry

import (
	"encoding/json"
	"maps"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations of image-spec annotations.md, "Pre-Defined Annotation Keys".
const (
	annotationBaseName   = "org.opencontainers.image.base.name"
	annotationBaseDigest = "org.opencontainers.image.base.digest"
)

// sociAnnotations begin what SOCI says of a manifest and its layers.
const sociAnnotations = "com.amazon.soci."

// newManifest returns the manifest of an image that adds layer (nil: none) to
// base, and its media type. The base's descriptors stay byte by byte what they
// were, unless a docker manifest must become an OCI one for the new layer's sake.
func newManifest(base *Image, config ocispec.Descriptor, layer *ocispec.Descriptor, baseName, created string) (raw []byte, mediaType string, err error) {
	m, err := parseRaw(base.RawManifest)
	if err != nil {
		return nil, "", faultf(ErrIntegrity, "manifest of the base image: %w", err)
	}
	layers, err := m.list("layers")
	if err != nil {
		return nil, "", faultf(ErrIntegrity, "layers of the base image: %w", err)
	}
	mediaType = base.Desc.MediaType
	if mediaType == dockerManifest && layer != nil && dockerType(layer.MediaType) == "" {
		mediaType = ocispec.MediaTypeImageManifest
		if layers, err = toOCI(layers); err != nil {
			return nil, "", err
		}
	}
	if layers, err = appendLayer(layers, layer, mediaType); err != nil {
		return nil, "", err
	}
	config.MediaType = configType(mediaType)
	if err := m.set("config", config); err != nil {
		return nil, "", err
	}
	m.setRaw("layers", rawList(layers))
	m.remove("subject") // what the base was attached to, the new image is not
	if err := annotate(m, base, mediaType, baseName, created); err != nil {
		return nil, "", err
	}
	if err := m.set("mediaType", mediaType); err != nil {
		return nil, "", err
	}
	return m.bytes(), mediaType, nil
}

func appendLayer(layers []json.RawMessage, layer *ocispec.Descriptor, manifestType string) ([]json.RawMessage, error) {
	if layer == nil {
		return layers, nil
	}
	d := *layer
	if manifestType == dockerManifest {
		d.MediaType = dockerType(d.MediaType)
	}
	b, err := marshal(d)
	return append(layers, b), err
}

func configType(manifestType string) string {
	if manifestType == dockerManifest {
		return dockerConfig
	}
	return ocispec.MediaTypeImageConfig
}

// dockerType is the docker manifest's name for a type of layer; "" if it has
// none, as for zstd.
func dockerType(t string) string {
	switch t {
	case ocispec.MediaTypeImageLayer, dockerLayer:
		return dockerLayer
	case ocispec.MediaTypeImageLayerGzip, dockerLayerGzip:
		return dockerLayerGzip
	}
	return ""
}

// toOCI gives docker layers their OCI types and leaves the rest of their descriptors.
func toOCI(layers []json.RawMessage) ([]json.RawMessage, error) {
	types := map[string]string{
		dockerLayer:        ocispec.MediaTypeImageLayer,
		dockerLayerGzip:    ocispec.MediaTypeImageLayerGzip,
		dockerLayerZstd:    ocispec.MediaTypeImageLayerZstd,
		dockerForeignLayer: ociForeignLayerGzip,
	}
	out := make([]json.RawMessage, len(layers))
	for i, raw := range layers {
		d, err := parseRaw(raw)
		if err != nil {
			return nil, faultf(ErrIntegrity, "layer %d of the base image: %w", i+1, err)
		}
		var t string
		if err := d.get("mediaType", &t); err != nil {
			return nil, faultf(ErrIntegrity, "layer %d of the base image: %w", i+1, err)
		}
		if oci, ok := types[t]; ok {
			if err := d.set("mediaType", oci); err != nil {
				return nil, err
			}
		}
		out[i] = d.bytes()
	}
	return out, nil
}

// annotate says what the image is based on. Docker manifests have no
// annotations. Those of the base stay, except what was true of its manifest only.
func annotate(m *rawObject, base *Image, mediaType, baseName, created string) error {
	if mediaType == dockerManifest {
		return nil
	}
	have := map[string]string{}
	if err := m.get("annotations", &have); err != nil {
		return faultf(ErrIntegrity, "annotations of the base image: %w", err)
	}
	if have == nil { // null
		have = map[string]string{}
	}
	maps.DeleteFunc(have, func(k, _ string) bool { return strings.HasPrefix(k, sociAnnotations) })
	if have[ocispec.AnnotationCreated] != "" {
		have[ocispec.AnnotationCreated] = created
	}
	delete(have, annotationBaseName)
	delete(have, annotationBaseDigest)
	if base.Desc.Digest == "" { // it has none of the base's layers
		return m.set("annotations", have)
	}
	if base.ref.Transport == transportDocker { // a path of this machine would mean nothing elsewhere
		have[annotationBaseName] = base.ref.String()
		if named, err := parseRef(baseName); err == nil && named.Transport == transportDocker {
			have[annotationBaseName] = named.String()
		}
	}
	have[annotationBaseDigest] = base.Desc.Digest.String()
	return m.set("annotations", have)
}

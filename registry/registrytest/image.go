package registrytest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Layer of an Image. Of the descriptor only what Blob does not say itself is
// needed: the media type (default: tar+gzip), annotations, addresses.
type Layer struct {
	Blob   []byte
	Desc   ocispec.Descriptor
	DiffID digest.Digest // "" is the digest of the blob, which is right for a plain tar only
}

// An Image to push. What is left out is filled in: platform linux/amd64, the
// config's rootfs, a history entry per layer.
type Image struct {
	Layers      []Layer
	Config      ocispec.Image
	RawConfig   []byte // in place of Config, byte by byte
	MediaType   string // of the manifest; "" is OCI's
	Annotations map[string]string
}

// PutBlob stores b in a repository and describes it.
func (s *Server) PutBlob(repo string, b []byte) ocispec.Descriptor {
	dg := digest.FromBytes(b)
	id, u, err := s.data.begin(repo)
	if err == nil {
		defer s.data.end(id)
		err = u.append(bytes.NewReader(b))
	}
	if err == nil {
		err = s.data.keep(repo, u, dg)
	}
	if err != nil {
		panic(fmt.Sprintf("registrytest: put blob: %v", err))
	}
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: dg, Size: int64(len(b))}
}

// PutManifest stores b under a tag or a digest without a look at it, so that a
// test can have a manifest that no registry would take.
func (s *Server) PutManifest(repo, ref, mediaType string, b []byte) ocispec.Descriptor {
	dg := s.data.putManifest(repo, ref, manifest{mediaType, b})
	return ocispec.Descriptor{MediaType: mediaType, Digest: dg, Size: int64(len(b))}
}

// PushImage stores an image under "repo:tag" and describes its manifest.
func (s *Server) PushImage(name string, im Image) ocispec.Descriptor {
	repo, tag := splitName(name)
	config := im.RawConfig
	if config == nil {
		config = mustJSON(im.fullConfig())
	}
	m := ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   orElse(im.MediaType, ocispec.MediaTypeImageManifest),
		Config:      s.PutBlob(repo, config),
		Layers:      []ocispec.Descriptor{},
		Annotations: im.Annotations,
	}
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	if m.MediaType != ocispec.MediaTypeImageManifest {
		m.Config.MediaType = "application/vnd.docker.container.image.v1+json"
	}
	for _, l := range im.Layers {
		d := s.PutBlob(repo, l.Blob)
		d.MediaType = orElse(l.Desc.MediaType, ocispec.MediaTypeImageLayerGzip)
		d.Annotations, d.URLs = l.Desc.Annotations, l.Desc.URLs
		m.Layers = append(m.Layers, d)
	}
	return s.PutManifest(repo, tag, m.MediaType, mustJSON(m))
}

// PushIndex stores an index of manifests under "repo:tag".
func (s *Server) PushIndex(name string, manifests ...ocispec.Descriptor) ocispec.Descriptor {
	repo, tag := splitName(name)
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: manifests,
	}
	return s.PutManifest(repo, tag, index.MediaType, mustJSON(index))
}

// fullConfig is the config with what the layers say of themselves.
func (im Image) fullConfig() ocispec.Image {
	c := im.Config
	c.Architecture = orElse(c.Architecture, "amd64")
	c.OS = orElse(c.OS, "linux")
	if c.RootFS.Type != "" {
		return c
	}
	c.RootFS.Type = "layers"
	for _, l := range im.Layers {
		id := l.DiffID
		if id == "" {
			id = digest.FromBytes(l.Blob)
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, id)
		if len(im.Config.History) == 0 {
			c.History = append(c.History, ocispec.History{CreatedBy: "registrytest"})
		}
	}
	return c
}

func splitName(name string) (repo, tag string) {
	repo, tag, ok := strings.Cut(name, ":")
	if !ok {
		tag = "latest"
	}
	return repo, tag
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("registrytest: %v", err))
	}
	return b
}

// Command estargz converts an OCI image layout to eStargz layers.
//
// It stands on the format's reference implementation and on nothing of ours, so
// that the tests which mount its output hold our reader against the original.
package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: estargz FROM-LAYOUT TO-LAYOUT")
		os.Exit(2)
	}
	if err := convert(layout(os.Args[1]), layout(os.Args[2])); err != nil {
		fmt.Fprintln(os.Stderr, "estargz:", err)
		os.Exit(1)
	}
}

// A layout is the directory of an OCI image layout.
type layout string

func (l layout) blob(d digest.Digest) string {
	return filepath.Join(string(l), "blobs", d.Algorithm().String(), d.Encoded())
}

func (l layout) readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON stores v as a blob and describes it.
func (l layout) writeJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, os.WriteFile(l.blob(d.Digest), b, 0o644)
}

func convert(from, to layout) error {
	if err := os.MkdirAll(filepath.Join(string(to), "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	var index ocispec.Index
	if err := from.readJSON(filepath.Join(string(from), "index.json"), &index); err != nil {
		return err
	}
	for i, d := range index.Manifests {
		converted, err := convertManifest(from, to, d)
		if err != nil {
			return err
		}
		converted.Annotations, converted.Platform = d.Annotations, d.Platform
		index.Manifests[i] = converted
	}
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(string(to), "index.json"), b, 0o644); err != nil {
		return err
	}
	b, err = json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(string(to), ocispec.ImageLayoutFile), b, 0o644)
}

func convertManifest(from, to layout, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	var m ocispec.Manifest
	if err := from.readJSON(from.blob(d.Digest), &m); err != nil {
		return none, err
	}
	var config ocispec.Image
	if err := from.readJSON(from.blob(m.Config.Digest), &config); err != nil {
		return none, err
	}
	for i, l := range m.Layers {
		converted, diffID, err := convertLayer(from, to, l)
		if err != nil {
			return none, fmt.Errorf("layer %d: %w", i+1, err)
		}
		m.Layers[i], config.RootFS.DiffIDs[i] = converted, diffID
	}
	var err error
	if m.Config, err = to.writeJSON(m.Config.MediaType, config); err != nil {
		return none, err
	}
	return to.writeJSON(d.MediaType, m)
}

func convertLayer(from, to layout, l ocispec.Descriptor) (ocispec.Descriptor, digest.Digest, error) {
	var none ocispec.Descriptor
	in, err := os.Open(from.blob(l.Digest))
	if err != nil {
		return none, "", err
	}
	defer in.Close()
	built, err := estargz.Build(io.NewSectionReader(in, 0, l.Size), estargz.WithCompressionLevel(6))
	if err != nil {
		return none, "", err
	}
	defer built.Close()
	out, err := os.CreateTemp(string(to), "layer")
	if err != nil {
		return none, "", err
	}
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(out, sum), built)
	if err != nil {
		return none, "", err
	}
	if err := out.Close(); err != nil {
		return none, "", err
	}
	blob := ocispec.Descriptor{
		MediaType:   ocispec.MediaTypeImageLayerGzip,
		Digest:      digest.NewDigest(digest.SHA256, sum),
		Size:        size,
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: built.TOCDigest().String()},
	}
	return blob, built.DiffID(), os.Rename(out.Name(), to.blob(blob.Digest))
}

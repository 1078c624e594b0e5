// Package estargztest encodes eStargz layers with the format's reference implementation, for tests.
package estargztest

import (
	"bytes"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ChunkSize is small, so that files of a few hundred KiB have several chunks.
// One goroutine cuts them, so that the same tar gives the same blob.
const ChunkSize = 64 << 10

// Encode is a layertest.Encoder for "estargz". It knows less than a tar: a
// hardlink whose target is in no other entry, a name that is no UTF-8.
func Encode(tar []byte) ([]byte, ocispec.Descriptor, digest.Digest, error) {
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))), estargz.WithChunkSize(ChunkSize), estargz.WithParallelism(1))
	if err != nil {
		return nil, desc, "", err
	}
	defer built.Close()
	blob, err := io.ReadAll(built)
	if err != nil {
		return nil, desc, "", err
	}
	desc.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: built.TOCDigest().String()}
	return blob, desc, built.DiffID(), nil
}

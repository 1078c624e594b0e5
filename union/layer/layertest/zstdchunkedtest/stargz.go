package zstdchunkedtest

import (
	"bytes"
	"io"
	"maps"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// stargz is zstdchunked's two halves, which it does not join itself.
type stargz struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

// EncodeStargz is a layertest.Encoder for the dialect of stargz-snapshotter, by its
// reference implementation. It knows less than a tar, as estargztest.Encode does.
func EncodeStargz(tar []byte) ([]byte, ocispec.Descriptor, digest.Digest, error) {
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Annotations: map[string]string{}}
	c := &zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: desc.Annotations}
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))),
		estargz.WithChunkSize(ChunkSize), estargz.WithParallelism(1), estargz.WithCompression(stargz{c, &zstdchunked.Decompressor{}}))
	if err != nil {
		return nil, desc, "", err
	}
	defer built.Close()
	blob, err := io.ReadAll(built)
	if err != nil {
		return nil, desc, "", err
	}
	desc.Annotations = maps.Clone(desc.Annotations)
	desc.Annotations[estargz.TOCJSONDigestAnnotation] = built.TOCDigest().String()
	return blob, desc, built.DiffID(), nil
}

package layer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime"
	"strconv"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression says how Encode makes a blob.
type Compression struct {
	// Algorithm is "gzip", "zstd", "estargz" (gzip with an index, read lazily),
	// "zstd:chunked" (zstd with one) or "none"; "" is gzip.
	Algorithm string
	// Level is the algorithm's own: 1 … 9 for gzip and estargz, 1 … 22 for zstd and
	// zstd:chunked. 0 is its default.
	Level int
	// Prioritized, of estargz and zstd:chunked, are paths of files that come first in the
	// blob, in this order, with a landmark behind them that says to fetch them at once; paths
	// that the layer has not, or whose place matters, are passed over. When it is not nil,
	// the tar must be an io.ReaderAt with a Size, as *io.SectionReader is, and is read from
	// its start. Diff ID and size are those of the tar in its new order.
	Prioritized []string
}

// Encoded is what Encode made.
type Encoded struct {
	Descriptor ocispec.Descriptor // media type, digest, size, annotations
	DiffID     digest.Digest      // of the tar inside the blob; an index of estargz is part of it
	TarSize    int64              // of the tar inside the blob
}

// Encode makes a layer blob of a tar in one pass. It compresses in parallel, and the
// same tar gives the same bytes on any number of cores. The error wraps ErrUnsupported
// for an unknown algorithm or level, and, with estargz and zstd:chunked, for entries that
// their index cannot hold: sparse files, and names that are no UTF-8.
func Encode(ctx context.Context, w io.Writer, tar io.Reader, c Compression) (Encoded, error) {
	return encodeWith(ctx, w, tar, c, runtime.GOMAXPROCS(0))
}

func encodeWith(ctx context.Context, w io.Writer, tar io.Reader, c Compression, cores int) (Encoded, error) {
	if c.Algorithm == "" {
		c.Algorithm = "gzip"
	}
	for _, enc := range encoders {
		if enc.name != c.Algorithm {
			continue
		}
		if c.Prioritized != nil && !enc.toc {
			return Encoded{}, fmt.Errorf("encode layer: %w: %s puts no files first", ErrUnsupported, enc.name)
		}
		if c.Level < 0 || c.Level > enc.maxLevel {
			return Encoded{}, fmt.Errorf("encode layer: %w: %s has no level %d", ErrUnsupported, enc.name, c.Level)
		}
		if c.Prioritized != nil {
			var err error
			if tar, err = c.sorted(ctx, tar); err != nil {
				return Encoded{}, fmt.Errorf("encode layer: %w", err)
			}
		}
		e := &encoding{out: hashing{w: w, h: sha256.New()}, tar: sha256.New(), level: c.Level, cores: cores}
		buffered := bufio.NewWriterSize(&e.out, 256<<10)
		err := enc.encode(e, buffered, &tarInput{ctx: ctx, r: tar})
		if err == nil {
			err = buffered.Flush()
		}
		if err != nil {
			return Encoded{}, fmt.Errorf("encode layer: %w", err)
		}
		return e.result(enc.mediaType), nil
	}
	return Encoded{}, fmt.Errorf("encode layer: %w: compression %q", ErrUnsupported, c.Algorithm)
}

var encoders = []struct {
	name, mediaType string
	maxLevel        int
	toc             bool
	encode          func(e *encoding, w io.Writer, tar io.Reader) error
}{
	{"gzip", ocispec.MediaTypeImageLayerGzip, 9, false, (*encoding).gzip},
	{"zstd", ocispec.MediaTypeImageLayerZstd, 22, false, (*encoding).zstd},
	{"estargz", ocispec.MediaTypeImageLayerGzip, 9, true, (*encoding).estargz},
	{"zstd:chunked", ocispec.MediaTypeImageLayerZstd, 22, true, (*encoding).zstdChunked},
	{"none", ocispec.MediaTypeImageLayer, 0, false, (*encoding).plain},
}

// An encoding is the state of one call of Encode.
type encoding struct {
	out         hashing   // the blob
	tar         hash.Hash // of the tar
	tarSize     int64
	level       int // 0: the algorithm's default
	cores       int
	annotations map[string]string
}

func (e *encoding) result(mediaType string) Encoded {
	return Encoded{
		Descriptor: ocispec.Descriptor{
			MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, e.out.h), Size: e.out.n, Annotations: e.annotations,
		},
		DiffID: digest.NewDigest(digest.SHA256, e.tar), TarSize: e.tarSize,
	}
}

// A hashing counts what it passes on, and hashes it unless h is nil.
type hashing struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (h *hashing) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	if h.h != nil {
		h.h.Write(p[:n])
	}
	h.n += int64(n)
	return n, err
}

// tarInput ends with its context. It is no reader of its own right: Encode's caller
// waits in Encode for as long as it lives.
type tarInput struct {
	ctx context.Context
	r   io.Reader
}

func (t *tarInput) Read(p []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	return t.r.Read(p)
}

// copy writes the tar to w as it is.
func (e *encoding) copy(w io.Writer, tar io.Reader) error {
	in := &hashing{w: w, h: e.tar}
	_, err := io.CopyBuffer(struct{ io.Writer }{in}, struct{ io.Reader }{tar}, make([]byte, bufferSize))
	e.tarSize = in.n
	return err
}

func (e *encoding) plain(w io.Writer, tar io.Reader) error { return e.copy(w, tar) }

// gzipBlock is what one goroutine compresses. The bytes of the blob depend on it.
const gzipBlock = 1 << 20

func (e *encoding) gzip(w io.Writer, tar io.Reader) error {
	z, err := pgzip.NewWriterLevel(w, gzipLevel(e.level))
	if err != nil {
		return err
	}
	if err := z.SetConcurrency(gzipBlock, e.cores+1); err != nil {
		return err
	}
	if err := e.copy(z, tar); err != nil {
		_ = z.Close() // ends its goroutines
		return err
	}
	return z.Close()
}

func gzipLevel(level int) int {
	if level == 0 {
		return pgzip.DefaultCompression
	}
	return level
}

func (e *encoding) zstd(w io.Writer, tar io.Reader) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstdLevel(e.level)), zstd.WithEncoderConcurrency(e.cores), zstd.WithZeroFrames(true))
	if err != nil {
		return err
	}
	if err := e.copy(z, tar); err != nil {
		_ = z.Close() // ends its goroutines
		return err
	}
	return z.Close()
}

func zstdLevel(level int) zstd.EncoderLevel {
	if level == 0 {
		return zstd.SpeedDefault
	}
	return zstd.EncoderLevelFromZstd(level)
}

// annotate sets what an eStargz layer's descriptor must say.
func (e *encoding) annotate(toc digest.Digest, off int64) {
	e.annotations = map[string]string{
		tocDigestAnnotation:    toc.String(),
		tocOffsetAnnotation:    strconv.FormatInt(off, 10),
		uncompressedAnnotation: strconv.FormatInt(e.tarSize, 10),
	}
}

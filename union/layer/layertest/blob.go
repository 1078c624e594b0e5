package layertest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Encoder makes a layer blob of a tar. The descriptor needs only annotations
// and the media type ("" is tar+gzip); the diff ID is that of the tar inside the
// blob, which need not be the one that went in.
type Encoder func(tar []byte) (blob []byte, desc ocispec.Descriptor, diffID digest.Digest, err error)

// Formats are those that Blob knows by itself. The other one, "estargz", comes
// from an Encoder, so that a program that links this package does not link the
// format's library.
func Formats() []string {
	return []string{"tar", "gzip", "gzip-multi", "zstd", "zstd-multi"}
}

// Blob is the layer blob of a text archive in a format. The multi formats
// consist of several members, or frames, cut without regard for the tar. enc is
// used for a format that is none of Formats. Blob panics on what Parse refuses.
func Blob(text, format string, enc Encoder) (blob []byte, desc ocispec.Descriptor, diffID digest.Digest) {
	blob, desc, diffID, err := encode(mustParse(text), format, enc)
	if err != nil {
		panic(fmt.Sprintf("layertest: %s: %v", format, err))
	}
	desc.Digest, desc.Size = digest.FromBytes(blob), int64(len(blob))
	desc.Annotations = maps.Clone(desc.Annotations)
	if desc.MediaType == "" {
		desc.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	return blob, desc, diffID
}

func encode(entries []Entry, format string, enc Encoder) ([]byte, ocispec.Descriptor, digest.Digest, error) {
	var b bytes.Buffer
	var w io.WriteCloser
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}
	switch format {
	case "tar":
		desc.MediaType = ocispec.MediaTypeImageLayer
		w = plain{&b}
	case "gzip":
		w = gzip.NewWriter(&b)
	case "gzip-multi":
		w = &members{open: func() io.WriteCloser { return gzip.NewWriter(&b) }}
	case "zstd":
		desc.MediaType = ocispec.MediaTypeImageLayerZstd
		w = newZstd(&b)
	case "zstd-multi":
		desc.MediaType = ocispec.MediaTypeImageLayerZstd
		w = &members{open: func() io.WriteCloser { return newZstd(&b) }}
	default:
		return encodeBy(enc, entries)
	}
	sum := sha256.New()
	if err := Write(io.MultiWriter(w, sum), entries); err != nil {
		return nil, desc, "", err
	}
	err := w.Close()
	return b.Bytes(), desc, digest.NewDigest(digest.SHA256, sum), err
}

func encodeBy(enc Encoder, entries []Entry) ([]byte, ocispec.Descriptor, digest.Digest, error) {
	var b bytes.Buffer
	if err := Write(&b, entries); err != nil {
		return nil, ocispec.Descriptor{}, "", err
	}
	return enc(b.Bytes())
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

// newZstd works in one goroutine, so that the same text gives the same bytes.
func newZstd(w io.Writer) io.WriteCloser {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true))
	if err != nil {
		panic(fmt.Sprintf("layertest: %v", err)) // the options are constant
	}
	return z
}

// memberSize is odd, so that members end within headers and within content, and
// small, so that a small layer has several.
const memberSize = 3001

// members cuts what is written into compressed streams of their own, which read
// one after the other as one. The first is empty.
type members struct {
	open func() io.WriteCloser
	cur  io.WriteCloser
	left int
}

func (m *members) next() error {
	if m.cur != nil {
		if err := m.cur.Close(); err != nil {
			return err
		}
		m.left = memberSize
	}
	m.cur = m.open()
	return nil
}

func (m *members) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if m.left == 0 {
			if err := m.next(); err != nil {
				return done, err
			}
		}
		n := min(m.left, len(p)-done)
		if n > 0 {
			if _, err := m.cur.Write(p[done : done+n]); err != nil {
				return done, err
			}
		}
		m.left -= n
		done += n
	}
	return done, nil
}

func (m *members) Close() error { return m.cur.Close() }

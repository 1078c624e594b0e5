// Package ztoc reads, writes and makes zTOCs, the indexes that SOCI (Seekable OCI) puts beside gzip layers.
//
// A zTOC holds the entries of a layer's tar, the checkpoints at which its gzip
// stream can be entered, and a digest of the compressed bytes between them: with
// it a file in the middle of a layer can be read, and what was fetched for it
// verified, without the rest. It is a FlatBuffer of the schema ztoc.fbs, version 0.9,
// as soci-snapshotter writes it; the checkpoints are a binary blob inside, its
// zinfo, which [Build] makes byte by byte as soci-snapshotter does.
//
// The package knows no network and no cache. Who vouches for a zTOC is not its
// concern either: the entries carry no digests and are as trustworthy as where
// the zTOC came from.
package ztoc

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/layerfs/layerfs/union/layer/inflate"
)

var (
	// ErrFormat says that bytes are no zTOC, or one that contradicts itself.
	ErrFormat = errors.New("malformed zTOC")
	// ErrLayer says that bytes are no gzip layer, or a damaged one.
	ErrLayer = errors.New("malformed gzip layer")
	// ErrUnsupported says that a layer is of a kind that zTOCs cannot describe, or a
	// zTOC of a version that this package does not know.
	ErrUnsupported = errors.New("unsupported by zTOC")
	// ErrLimit says that a zTOC is larger than a sane one would be.
	ErrLimit = errors.New("zTOC exceeds a limit")
	// ErrDigest says that the bytes of a span are not those that the zTOC was made of.
	ErrDigest = errors.New("digest mismatch")
)

const (
	// MaxSize is the largest zTOC that is read or made. One of a layer of 600 MB and
	// 20,000 entries has 6 MB; this is enough for 16 GB of tar.
	MaxSize = 150 << 20
	// MaxEntries is the most entries of one. The largest images have a tenth.
	MaxEntries = 4 << 20
	// DefaultSpan is the distance of checkpoints that SOCI uses, in bytes of tar.
	DefaultSpan = 4 << 20
)

// version is the only one there is.
const version = "0.9"

// An Algorithm is how a layer is compressed.
type Algorithm uint8

// The algorithms of ztoc.fbs, with its numbers.
const (
	Gzip         Algorithm = 1
	Uncompressed Algorithm = 2
)

// A ZTOC is the index of one layer.
type ZTOC struct {
	BuildTool        string
	Algorithm        Algorithm
	ArchiveSize      int64 // of the blob
	UncompressedSize int64 // of the tar: up to its end marker at least, what follows that may be left out
	Files            []File
	SpanSize         int64 // the distance of checkpoints that was asked for, in bytes of tar
	Checkpoints      []Checkpoint
	SpanDigests      []digest.Digest
}

// A File is an entry of the tar.
type File struct {
	Name, Linkname     string // as they stand in the tar
	Type               byte   // archive/tar's: TypeReg, TypeLink, TypeSymlink, TypeDir, TypeChar, TypeBlock, TypeFifo
	Offset, Size       int64  // of the content, in the tar
	Mode               int64  // with the set-ID and sticky bits, perhaps with those of the type
	UID, GID           uint32
	Uname, Gname       string
	ModTime            time.Time // zero if the zTOC has none
	DevMajor, DevMinor int64
	PAX                []Record // of the extended header; what they say of the fields above is in these already
}

// A Record is one of a PAX extended header.
type Record struct{ Key, Value string }

// A Checkpoint is where a span begins.
type Checkpoint struct {
	In     int64  // bytes of the blob before the first one that is needed whole
	Bits   uint8  // how many bits of the byte at In-1 are needed too, its highest ones (0 to 7)
	Out    int64  // bytes of the tar before it
	Window []byte // the windowSize bytes of the tar before Out, with zeros before the first
}

const windowSize = inflate.WindowSize

// xattrPrefix is how star, GNU tar and others name extended attributes in PAX headers.
const xattrPrefix = "SCHILY.xattr."

// Xattrs calls yield with the extended attributes among the PAX records.
func (e *File) Xattrs(yield func(name, value string) bool) {
	for _, r := range e.PAX {
		if name, ok := strings.CutPrefix(r.Key, xattrPrefix); ok && !yield(name, r.Value) {
			return
		}
	}
}

// A Span is a part of the blob that is fetched, verified and decoded by itself.
type Span struct {
	Start, End  int64 // the range in the blob; the byte at Start may be the last one of the span before as well
	Out, OutEnd int64 // the range in the tar
	Digest      digest.Digest
	Bits        uint8  // of the byte at Start: how many of its bits begin the span, the highest ones; 0: all eight
	Window      []byte // what decoding needs of the tar before Out, at most 32 KiB; nil when not compressed
}

// Spans returns the spans in their order. They cover the tar; spans from which nothing
// comes are left out. Only a ZTOC from Parse or Build has spans that hold what Span promises.
func (z *ZTOC) Spans() []Span {
	spans := make([]Span, 0, len(z.SpanDigests))
	for i, d := range z.SpanDigests {
		s := z.span(i)
		s.Digest = d
		if s.Out < s.OutEnd {
			spans = append(spans, s)
		}
	}
	return spans
}

// span is the i-th span without its digest.
func (z *ZTOC) span(i int) Span {
	if z.Algorithm == Uncompressed {
		at := int64(i) * z.SpanSize
		end := min(z.SpanSize, z.ArchiveSize-at) + at
		return Span{Start: at, End: end, Out: at, OutEnd: min(end, z.UncompressedSize)}
	}
	c := z.Checkpoints[i]
	s := Span{Start: c.In, End: z.ArchiveSize, Out: c.Out, OutEnd: z.UncompressedSize, Bits: c.Bits}
	s.Window = c.Window[windowSize-min(c.Out, windowSize):]
	if c.Bits > 0 {
		s.Start--
	}
	if i+1 < len(z.Checkpoints) {
		s.End, s.OutEnd = z.Checkpoints[i+1].In, min(z.Checkpoints[i+1].Out, z.UncompressedSize)
	}
	return s
}

// Verify compares b, the bytes of the blob from Start to End, with the digest. The
// error wraps ErrDigest.
func (s Span) Verify(b []byte) error {
	if int64(len(b)) != s.End-s.Start || s.Digest.Algorithm().FromBytes(b) != s.Digest {
		return fmt.Errorf("%w: bytes %d to %d of the layer", ErrDigest, s.Start, s.End)
	}
	return nil
}

// Checkpoint is where [inflate.Resume] begins with the bytes of the span, if the layer is
// compressed.
func (s Span) Checkpoint() inflate.Checkpoint {
	c := inflate.Checkpoint{In: s.Start, Bits: s.Bits, Out: s.Out, Window: s.Window}
	if s.Bits > 0 {
		c.In++
	}
	return c
}

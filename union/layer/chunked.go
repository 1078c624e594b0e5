package layer

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Annotations of a zstd:chunked layer's descriptor: a dialect and what it says of the
// manifest, as both dialects call the TOC.
const (
	containersDialect = "io.github.containers.zstd-chunked." // containers/storage, pkg/chunked
	stargzDialect     = "io.containers.zstd-chunked."        // stargz-snapshotter, estargz/zstdchunked

	manifestChecksum = "manifest-checksum" // of the manifest as it stands in the blob, compressed
	manifestPosition = "manifest-position" // see parsePosition
	tarSplitPosition = "tarsplit-position" // the same without a type; only written
)

// skippableHeader stands before the content of a skippable frame (RFC 8878, section 3.1.2).
const skippableHeader = 8

// A chunkedTOC is a TOC in a skippable frame of a zstd:chunked layer. The annotations say
// where, so that one request brings it.
type chunkedTOC struct {
	position string
	packed   digest.Digest // of the compressed manifest; "" when only toc is there
	toc      digest.Digest // of the JSON; "" when nobody says it
}

// chunkedSources are the dialects that the annotations speak.
func chunkedSources(annotations map[string]string) (sources []tocSource) {
	at := func(key string) digest.Digest { return digest.Digest(annotations[key]) }
	if p, sum := annotations[containersDialect+manifestPosition], at(containersDialect+manifestChecksum); p != "" || sum != "" {
		sources = append(sources, chunkedTOC{position: p, packed: sum})
	}
	if p := annotations[stargzDialect+manifestPosition]; p != "" {
		sources = append(sources, chunkedTOC{position: p, packed: at(stargzDialect + manifestChecksum), toc: at(tocDigestAnnotation)})
	}
	return sources
}

func (c chunkedTOC) codec() codec { return codecZstd }

func (c chunkedTOC) key() digest.Digest {
	if c.packed != "" {
		return c.packed
	}
	return c.toc
}

func (c chunkedTOC) fetch(ctx context.Context, op *opening) (*foundTOC, error) {
	p, err := parsePosition(c.position)
	if err != nil {
		return nil, err
	}
	if err := p.check(op.desc.Size, op.o.Limits.TOC); err != nil {
		return nil, err
	}
	start := p.off
	if end := p.off + p.packed; end <= smallLayer {
		start = 0 // all of it, in the same request
	}
	run, err := op.src.read(ctx, start, p.off+p.packed-start)
	if err != nil {
		return nil, err
	}
	b, err := c.unpack(run[p.off-start:], p.size)
	if err != nil {
		return nil, err
	}
	return &foundTOC{json: b, end: p.off - skippableHeader, run: run, runOff: start}, nil
}

// unpack verifies a manifest before and after it is decompressed, as far as there are digests.
func (c chunkedTOC) unpack(b []byte, size int64) ([]byte, error) {
	if c.packed != "" && c.packed.Algorithm().FromBytes(b) != c.packed {
		return nil, fmt.Errorf("%w: the compressed TOC is not %s", ErrDigest, c.packed)
	}
	json, err := unpackFrames(b, size, nil)
	if err != nil {
		if c.packed == "" {
			return nil, fmt.Errorf("%w: TOC: %w", ErrDigest, err)
		}
		return nil, fmt.Errorf("%w: TOC: %w", ErrFormat, err)
	}
	if c.toc != "" && (c.toc.Validate() != nil || c.toc.Algorithm().FromBytes(json) != c.toc) {
		return nil, fmt.Errorf("%w: the TOC is not %s", ErrDigest, c.toc)
	}
	return json, nil
}

// A position is where the manifest is: packed bytes at off, of which come size.
type position struct{ off, packed, size int64 }

// parsePosition reads "off:packed:size:type", decimal numbers. Type 1 is the TOC of
// CRFS, which eStargz has too; there is no other.
func parsePosition(s string) (p position, err error) {
	fields := strings.Split(s, ":")
	if len(fields) != 4 {
		return p, fmt.Errorf("%w: %s is %.80q, want four numbers", errNoTOC, manifestPosition, s)
	}
	var numbers [4]int64
	for i, f := range fields {
		n, err := strconv.ParseUint(f, 10, 62)
		if err != nil {
			return p, fmt.Errorf("%w: %s is %.80q: %w", errNoTOC, manifestPosition, s, err)
		}
		numbers[i] = int64(n)
	}
	if numbers[3] != 1 {
		return p, fmt.Errorf("%w: manifest of type %d, want 1", errNoTOC, numbers[3])
	}
	return position{numbers[0], numbers[1], numbers[2]}, nil
}

// check compares p with the size of the blob and with what a TOC may have.
func (p position) check(blob, maxTOC int64) error {
	switch {
	case p.off < skippableHeader || p.off > blob || p.packed > blob-p.off || p.packed == 0:
		return fmt.Errorf("%w: %d bytes at %d of a blob of %d", errNoTOC, p.packed, p.off, blob)
	case p.size > maxTOC || p.packed > maxTOC:
		return fmt.Errorf("%w: %w", errNoTOC, &LimitError{"toc", maxTOC})
	}
	return nil
}

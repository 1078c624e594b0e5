package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/opencontainers/go-digest"
)

const (
	footerSize         = 51
	legacyFooterSize   = 47 // of stargz, without the subfield of RFC 1952
	externalFooterSize = 46 // of a layer whose TOC lies in another image
	footerMagic        = "STARGZ"
	externalMagic      = "STARGZEXTERNALTOC"
)

// errExternalTOC says that the TOC lies in another image, as stargz-snapshotter's
// converter makes it when the layers have to stay small.
var errExternalTOC = fmt.Errorf("%w: it lies in another image", errNoTOC)

// smallLayer is what costs as much time to fetch as a request: such layers are fetched with their TOC.
const smallLayer = 256 << 10

// tailSize is how much of the end of a blob is read in the hope that footer and
// TOC are in it, which saves a request. TOCs are 1/45 … 1/1500 of their blob, those of
// Debian's base files 1/157.
func tailSize(size int64) int64 {
	if size <= smallLayer {
		return size
	}
	return min(max(size/155, smallLayer), 416<<10)
}

// stargzTOC is the digest of an eStargz TOC, whose place the blob's footer says.
type stargzTOC digest.Digest

func (s stargzTOC) codec() codec       { return codecGzip }
func (s stargzTOC) key() digest.Digest { return digest.Digest(s) }

func (s stargzTOC) fetch(ctx context.Context, op *opening) (*foundTOC, error) {
	tail, off, err := op.readTail(ctx)
	start := op.desc.Size - int64(len(tail))
	packed := tail[max(0, off-start):]
	if errors.Is(err, errExternalTOC) {
		off = op.desc.Size - externalFooterSize
		packed, err = op.externalTOC(ctx)
	}
	if err != nil {
		return nil, err
	}
	b, err := readTOC(packed, s.key(), op.o.Limits.TOC)
	if err != nil {
		return nil, err
	}
	return &foundTOC{json: b, end: off, run: tail, runOff: start}, nil
}

// externalTOC is the TOC from another image, as it stands there.
func (op *opening) externalTOC(ctx context.Context) ([]byte, error) {
	if op.o.ExternalTOC == nil {
		return nil, errExternalTOC
	}
	body, err := op.o.ExternalTOC(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errExternalTOC, err)
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, op.o.Limits.TOC+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errExternalTOC, err)
	}
	if int64(len(b)) > op.o.Limits.TOC {
		return nil, fmt.Errorf("%w: %w", errExternalTOC, &LimitError{"toc", op.o.Limits.TOC})
	}
	return b, nil
}

// readTail returns the end of the blob, from the TOC at the latest, and the offset of the
// TOC in the blob. With errExternalTOC it returns what it has read.
func (op *opening) readTail(ctx context.Context) (tail []byte, off int64, err error) {
	size := op.desc.Size
	n := tailSize(size)
	if off, err := strconv.ParseInt(op.desc.Annotations[tocOffsetAnnotation], 10, 64); err == nil && off >= 0 && off <= size-footerSize && size-off <= op.o.Limits.TOC {
		n = max(size-off, min(size, smallLayer/4)) // a hint: the footer decides
	}
	if n < footerSize {
		return nil, 0, fmt.Errorf("%w: no footer", errNoTOC)
	}
	if tail, err = op.src.read(ctx, size-n, n); err != nil {
		return nil, 0, err
	}
	if off, err = parseFooter(tail[n-footerSize:]); err != nil {
		return tail, 0, err
	}
	if off > size-legacyFooterSize {
		return nil, 0, fmt.Errorf("%w: its offset %d lies behind the blob", errNoTOC, off)
	}
	if missing := size - n - off; missing > 0 {
		if missing > op.o.Limits.TOC {
			return nil, 0, fmt.Errorf("%w: %w", errNoTOC, &LimitError{"toc", op.o.Limits.TOC})
		}
		head, err := op.src.read(ctx, off, missing)
		if err != nil {
			return nil, 0, err
		}
		tail = append(head, tail...)
	}
	return tail, off, nil
}

// parseFooter returns the offset of the TOC. The footer is an empty gzip member
// whose extra field has it, in one of two lengths.
func parseFooter(b []byte) (int64, error) {
	for _, n := range []int{footerSize, legacyFooterSize} {
		extra, err := gzipExtra(b[len(b)-n:])
		if err != nil {
			continue
		}
		if n == footerSize && len(extra) == 26 && string(extra[:4]) == "SG\x16\x00" {
			extra = extra[4:]
		}
		if len(extra) != 22 || string(extra[16:]) != footerMagic {
			continue
		}
		off, err := strconv.ParseUint(string(extra[:16]), 16, 63)
		if err == nil {
			return int64(off), nil
		}
	}
	if extra, err := gzipExtra(b[len(b)-externalFooterSize:]); err == nil && string(extra) == "SG\x11\x00"+externalMagic {
		return 0, errExternalTOC
	}
	return 0, fmt.Errorf("%w: no footer", errNoTOC)
}

// readTOC reads the TOC out of the end of a blob: a gzip member with a tar with
// one file. Only the bytes that want names are parsed.
func readTOC(tail []byte, want digest.Digest, maxTOC int64) ([]byte, error) {
	z, err := gunzip(bytes.NewReader(tail), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: TOC: %w", ErrDigest, err)
	}
	in := tarStreamOf(io.LimitReader(z, maxTOC))
	r := &tarReader{in: in}
	h, err := r.next()
	if err != nil {
		return nil, fmt.Errorf("%w: TOC: %w", ErrDigest, err)
	}
	if clean(h.name) != tocName {
		return nil, fmt.Errorf("%w: TOC: where it should be is %q", ErrDigest, h.name)
	}
	if h.stored > maxTOC {
		return nil, &LimitError{"toc", maxTOC}
	}
	b := make([]byte, h.stored)
	if err := r.readBody(b); err != nil {
		return nil, fmt.Errorf("%w: TOC: %w", ErrDigest, err)
	}
	if want.Algorithm().FromBytes(b) != want {
		return nil, fmt.Errorf("%w: the TOC is not %s", ErrDigest, want)
	}
	return b, nil
}

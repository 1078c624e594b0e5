package layer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/layerfs/layerfs/cache"
)

// Annotations of an eStargz layer's descriptor (eStargz specification).
const (
	tocDigestAnnotation    = "containerd.io/snapshot/stargz/toc.digest"
	uncompressedAnnotation = "io.containers.estargz.uncompressed-size"
)

const (
	footerSize       = 51
	legacyFooterSize = 47 // of stargz, without the subfield of RFC 1952
	footerMagic      = "STARGZ"

	// maxTOC bounds the JSON; the largest images have some 20 MiB.
	maxTOC = 150 << 20
)

// errNoTOC says why a layer has to be read whole although its descriptor speaks of a TOC.
var errNoTOC = errors.New("no usable TOC")

// tailSize is how much of the end of a blob is read in the hope that footer and
// TOC are in it, which saves a request. TOCs are 1/45 … 1/1500 of their blob, those of
// Debian's base files 1/157; a request costs as much time as some 256 KiB.
func tailSize(size int64) int64 {
	if size <= 256<<10 {
		return size
	}
	return min(max(size/155, 256<<10), 512<<10)
}

// lazily opens a layer by its own index, or returns nil when there is none.
func (op *opening) lazily(ctx context.Context) (*Layer, error) {
	want, ok := op.desc.Annotations[tocDigestAnnotation]
	if !ok {
		return nil, nil
	}
	op.report("index", 0)
	l, err := op.openTOC(ctx, digest.Digest(want))
	if errors.Is(err, errNoTOC) {
		op.log.Warn("layer is read whole", "layer", op.desc.Digest, "err", err)
		op.why = err.Error()
		return nil, nil
	}
	if l != nil {
		op.report("ready", op.src.fetched.Load())
	}
	return l, err
}

func (op *opening) openTOC(ctx context.Context, want digest.Digest) (*Layer, error) {
	if err := want.Validate(); err != nil {
		return nil, fmt.Errorf("%w: annotation: %w", errNoTOC, err)
	}
	tail, off, err := op.readTail(ctx)
	if err != nil {
		return nil, err
	}
	toc, err := readTOC(tail[off-op.tailStart(tail):], want)
	if err != nil {
		return nil, err
	}
	x, err := toc.index(off)
	if err != nil {
		return nil, err
	}
	x.blob, x.toc = op.desc.Digest, want
	if err := op.store.PutIndex(op.desc.Digest, x.encode()); err != nil {
		op.log.Warn("save index", "layer", op.desc.Digest, "err", err) // a full disk must not stop reads
	}
	l, err := op.lazyLayer(x)
	if err != nil {
		return nil, err
	}
	l.lazy.preload(ctx, tail, op.tailStart(tail))
	return l, nil
}

func (op *opening) tailStart(tail []byte) int64 { return op.desc.Size - int64(len(tail)) }

// readTail returns the end of the blob, from the TOC at the latest, and the offset of the TOC in the blob.
func (op *opening) readTail(ctx context.Context) (tail []byte, off int64, err error) {
	size := op.desc.Size
	n := tailSize(size)
	if n < footerSize {
		return nil, 0, fmt.Errorf("%w: no footer", errNoTOC)
	}
	if tail, err = op.src.read(ctx, size-n, n); err != nil {
		return nil, 0, err
	}
	if off, err = parseFooter(tail[n-footerSize:]); err != nil {
		return nil, 0, err
	}
	if off > size-legacyFooterSize {
		return nil, 0, fmt.Errorf("%w: its offset %d lies behind the blob", errNoTOC, off)
	}
	if missing := size - n - off; missing > 0 {
		if missing > maxTOC {
			return nil, 0, fmt.Errorf("%w: %d bytes", errNoTOC, missing)
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
	return 0, fmt.Errorf("%w: no footer", errNoTOC)
}

// readTOC reads the TOC out of the end of a blob: a gzip member with a tar with
// one file. Only the bytes that want names are parsed.
func readTOC(tail []byte, want digest.Digest) (*toc, error) {
	z, err := gunzip(bytes.NewReader(tail), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: TOC: %w", ErrDigest, err)
	}
	in := tarStreamOf(io.LimitReader(z, maxTOC))
	r := &tarReader{in: in}
	h, err := r.next()
	if err != nil || clean(h.name) != tocName || h.stored > maxTOC {
		return nil, fmt.Errorf("%w: TOC: where it should be is something else (%v)", ErrDigest, err)
	}
	b := make([]byte, h.stored)
	if err := r.readBody(b); err != nil {
		return nil, fmt.Errorf("%w: TOC: %w", ErrDigest, err)
	}
	if want.Algorithm().FromBytes(b) != want {
		return nil, fmt.Errorf("%w: the TOC is not %s", ErrDigest, want)
	}
	return parseTOC(b)
}

// A toc is the JSON.
type toc struct {
	Version int        `json:"version"`
	Entries []tocEntry `json:"entries"`
}

type tocEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size"`
	ModTime     string            `json:"modtime"` // RFC 3339
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"` // as in a tar
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      string            `json:"digest"` // of the whole file
	Offset      int64             `json:"offset"`
	InnerOffset int64             `json:"innerOffset"`
	ChunkOffset int64             `json:"chunkOffset"` // in the file
	ChunkSize   int64             `json:"chunkSize"`   // 0: to the end of the file
	ChunkDigest string            `json:"chunkDigest"`
}

func parseTOC(b []byte) (*toc, error) {
	t := &toc{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("%w: TOC: %w", ErrFormat, err)
	}
	if t.Version != 1 {
		return nil, fmt.Errorf("%w: version %d", errNoTOC, t.Version)
	}
	if len(t.Entries) > maxEntries {
		return nil, fmt.Errorf("%w: %d entries", ErrLimit, len(t.Entries))
	}
	return t, nil
}

// cachedTOC opens a layer whose TOC is in the cache. The TOC must be the one that
// this descriptor vouches for: another image's manifest may have named another one for
// the same blob, and only the TOC's digest was ever compared.
func (op *opening) cachedTOC(x *index) (*Layer, error) {
	if string(x.toc) != op.desc.Annotations[tocDigestAnnotation] {
		return nil, nil
	}
	return op.lazyLayer(x)
}

func (op *opening) lazyLayer(x *index) (*Layer, error) {
	units := make([]cache.Unit, len(x.chunks))
	var off int64
	for i, c := range x.chunks {
		units[i] = cache.Unit{Off: off, Len: c.n, Sum: c.sum}
		off += c.n
	}
	pack, err := op.store.Pack(op.desc.Digest, units)
	if err != nil {
		return nil, err
	}
	l := op.layer(x.tree, pack, newLazy(op.src, pack, &chunks{x.chunks, x.blobEnd}, units))
	l.toc = true
	return l, nil
}

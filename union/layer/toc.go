package layer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/layerfs/layerfs/cache"
)

// Annotations of an eStargz layer's descriptor (eStargz specification).
const (
	tocDigestAnnotation = "containerd.io/snapshot/stargz/toc.digest"
	// tocOffsetAnnotation is our own: where the TOC begins in the blob, as the footer says it
	// too. Who knows it beforehand fetches no more than the TOC.
	tocOffsetAnnotation    = "layerfs.toc.offset"
	uncompressedAnnotation = "io.containers.estargz.uncompressed-size"
)

// errNoTOC says why a layer has to be read whole although its descriptor speaks of a TOC.
var errNoTOC = errors.New("no usable TOC")

// A tocSource is a place where a TOC is, and what the descriptor vouches for it with.
type tocSource interface {
	codec() codec
	// key is the digest by which the cache knows the TOC.
	key() digest.Digest
	// fetch returns the TOC after it was verified. The error wraps errNoTOC when there is
	// none that can be used, and ErrDigest when it is not the one that was vouched for.
	fetch(ctx context.Context, op *opening) (*foundTOC, error)
}

// A foundTOC is a TOC that was verified, and what of the blob came with it.
type foundTOC struct {
	json   []byte
	end    int64 // of the chunks in the blob
	run    []byte
	runOff int64 // of run in the blob
}

// tocSources are the TOCs that annotations speak of, in the order in which they are
// tried. Only annotations count: the manifest's digest covers them. A footer alone would
// name a TOC that nobody vouches for, and would cost a request of every layer without one.
//
// zstd:chunked has two dialects, and a layer may be annotated in both, which
// containers/storage refuses. The first whose TOC verifies is used here, theirs before
// stargz's: the manifest vouches for either, so neither can deceive.
func tocSources(annotations map[string]string) []tocSource {
	sources := chunkedSources(annotations)
	if toc := annotations[tocDigestAnnotation]; toc != "" && annotations[stargzDialect+manifestPosition] == "" {
		sources = append(sources, stargzTOC(toc))
	}
	return sources
}

// lazily opens a layer by its own index, or returns nil when there is none.
func (op *opening) lazily(ctx context.Context) (*Layer, error) {
	var failed error
	for _, src := range tocSources(op.desc.Annotations) {
		op.report("index", 0)
		l, err := op.openTOC(ctx, src)
		if err == nil {
			op.report("ready", op.src.fetched.Load())
			return l, nil
		}
		if failed == nil || errors.Is(failed, errNoTOC) && !errors.Is(err, errNoTOC) {
			failed = err
		}
	}
	if errors.Is(failed, errNoTOC) {
		op.log.Warn("layer is read whole", "layer", op.desc.Digest, "err", failed)
		op.why = failed.Error()
		return nil, nil
	}
	return nil, failed
}

func (op *opening) openTOC(ctx context.Context, src tocSource) (*Layer, error) {
	if err := src.key().Validate(); err != nil {
		return nil, fmt.Errorf("%w: annotation: %w", errNoTOC, err)
	}
	found, err := src.fetch(ctx, op)
	if err == nil || errors.Is(err, ErrDigest) {
		op.src.check(Check{What: "toc", Digest: src.key(), Err: err})
	}
	if err != nil {
		return nil, err
	}
	toc, err := parseTOC(found.json, op.o.Limits)
	if err != nil {
		return nil, err
	}
	x, err := toc.index(found.end, src.codec(), op.o.Limits)
	if err != nil {
		return nil, err
	}
	x.blob, x.toc = op.desc.Digest, src.key()
	if err := op.store.PutIndex(op.desc.Digest, x.encode()); err != nil {
		op.log.Warn("save index", "layer", op.desc.Digest, "err", err) // a full disk must not stop reads
	}
	l, err := op.lazyLayer(x)
	if err != nil {
		return nil, err
	}
	l.lazy.preload(ctx, found.run, found.runOff)
	return l, nil
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
	ChunkType   string            `json:"chunkType"` // of zstd:chunked: "zeros" has no data in the blob
}

func parseTOC(b []byte, limits Limits) (*toc, error) {
	t := &toc{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, fmt.Errorf("%w: TOC: %w", ErrFormat, err)
	}
	if t.Version != 1 {
		return nil, fmt.Errorf("%w: version %d", errNoTOC, t.Version)
	}
	if int64(len(t.Entries)) > limits.Entries {
		return nil, &LimitError{"entries", limits.Entries}
	}
	return t, nil
}

// cachedTOC opens a layer whose TOC is in the cache. The TOC must be the one that
// this descriptor vouches for: another image's manifest may have named another one for
// the same blob, and only the TOC's digest was ever compared.
func (op *opening) cachedTOC(x *index) (*Layer, error) {
	for _, src := range tocSources(op.desc.Annotations) {
		if src.key() == x.toc && src.codec() == x.codec {
			return op.lazyLayer(x)
		}
	}
	return nil, nil
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
	l := op.layer(x.tree, pack, newLazy(op.src, pack, newChunks(x, units), units))
	l.kind = "toc"
	l.prefix = min(x.prefix, x.blobEnd)
	return l, nil
}

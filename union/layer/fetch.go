package layer

import (
	"context"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetchStep is how much Fetch asks for at a time: enough for requests of full
// size, and less than the cache holds in memory when the disk is full.
const fetchStep = 16 << 20

// Fetch brings everything that is missing into the cache, so that the layer can
// be read without its source. It is safe beside reads, and goes on where an
// earlier one was interrupted.
func (l *Layer) Fetch(ctx context.Context) error {
	if l.lazy == nil {
		return nil
	}
	size := l.pack.Size()
	for off := int64(0); off < size; off += fetchStep {
		if err := l.pack.Ensure(ctx, off, min(fetchStep, size-off), l.lazy.fill); err != nil {
			return fmt.Errorf("fetch layer %s: %w", l.digest, err)
		}
	}
	return nil
}

// Cached tells whether all of a regular file is in the cache.
func (l *Layer) Cached(id ID) bool {
	for _, x := range l.tree.fileExtents(id) {
		if !l.pack.Has(x.at, x.n) {
			return false
		}
	}
	return !l.closed.Load()
}

// IndexKind tells, from the descriptor alone, where Open will take a layer's
// tree from ("toc": an eStargz table of contents, "tar": the whole archive),
// and whether its content is then fetched only when it is read.
func IndexKind(d ocispec.Descriptor) (index string, lazy bool) {
	if d.Annotations[tocDigestAnnotation] != "" {
		return "toc", true
	}
	return "tar", false
}

package layer

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/layerfs/layerfs/cache"
)

// A chunk is a run of a file's bytes that is compressed, fetched and verified by
// itself; it is a unit of the pack. Chunks stand in the order of off and inner.
type chunk struct {
	off   int64 // where its gzip member or zstd frame begins in the blob
	inner int64 // how many uncompressed bytes of that stand before it
	n     int64 // uncompressed bytes
	sum   [sha256.Size]byte
}

// chunks are the pieces of a layer with a TOC: each of them one unit of the pack,
// whose sum the cache compares.
type chunks struct {
	list  []chunk
	end   int64 // where the last one ends in the blob at the latest
	codec codec
	more  []bool // of chunk i: the next one is of the same file, and behind it there
}

// newChunks are the pieces of an index with a TOC.
func newChunks(x *index, units []cache.Unit) *chunks {
	c := &chunks{list: x.chunks, end: x.blobEnd, codec: x.codec, more: make([]bool, len(x.chunks))}
	for id := range x.tree.inodes {
		ext := x.tree.fileExtents(ID(id))
		for k := 1; k < len(ext); k++ {
			before := ext[k-1]
			if ext[k].off != before.off+before.n || ext[k].at != before.at+before.n {
				continue
			}
			if i, ok := sort.Find(len(units), func(i int) int { return cmp.Compare(before.at, units[i].Off) }); ok {
				c.more[i] = true
			}
		}
	}
	return c
}

func (c *chunks) joined(i int) bool             { return c.more[i] }
func (c *chunks) count() int                    { return len(c.list) }
func (c *chunks) units(i int) (int, int)        { return i, i }
func (c *chunks) bounds(i int) (int64, int64)   { return c.list[i].off, c.endOf(i) }
func (c *chunks) sameMember(i, before int) bool { return c.list[i].off == c.list[before].off }

// endOf is where chunk i ends in the blob at the latest: at the next member.
func (c *chunks) endOf(i int) int64 {
	off := c.list[i].off
	next := i + sort.Search(len(c.list)-i, func(k int) bool { return c.list[i+k].off > off })
	if next < len(c.list) {
		return c.list[next].off
	}
	return c.end
}

func (c *chunks) read(body io.Reader, first, last int, put putUnit) error {
	m := c.codec.reader(body, c.list[first].off)
	for i := first; i <= last; i++ {
		if i == first || !c.sameMember(i, i-1) {
			if err := m.open(c.list[i].off, c.endOf(i), c.needOf(i, last)); err != nil {
				return err
			}
		}
		b, err := m.chunk(&c.list[i])
		if err != nil {
			return fmt.Errorf("%w: chunk sha256:%x at %d of the blob: %w", ErrDigest, c.list[i].sum, c.list[i].off, err)
		}
		err = put(i, b)
		if errors.Is(err, cache.ErrCorrupt) {
			err = fmt.Errorf("%w: %w", ErrDigest, err)
		}
		if err != nil {
			return fmt.Errorf("chunk at %d of the blob: %w", c.list[i].off, err)
		}
	}
	return nil
}

// needOf is how many uncompressed bytes of chunk i's member chunks up to last need.
func (c *chunks) needOf(i, last int) int64 {
	need := int64(0)
	for k := i; k <= last && c.sameMember(k, i); k++ {
		need = max(need, c.list[k].inner+c.list[k].n)
	}
	return need
}

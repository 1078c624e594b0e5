package layer

import (
	"bytes"
	"fmt"
	"io"

	"github.com/layerfs/layerfs/union/layer/inflate"
)

// A compression is told by its first bytes, never by a media type: docker's types
// carry zstd and plain tar in practice.
type compression struct {
	name  string
	match func(b []byte) bool
	// open decodes all of r. Where it could begin again it calls begin, which may be nil.
	open func(r io.Reader, begin func(inflate.Checkpoint)) (io.Reader, error)
	// resume decodes a section, whose bytes are in d.
	resume func(d *sectionDecoder, s *section) (io.Reader, error)
	// ratio is how many bytes one compressed byte can become at most: more is a
	// forgery. DEFLATE codes 258 bytes in 2 bits (1032:1), zstd a block of 128 KiB in 4 bytes.
	ratio int64
	// parts: begin is called often, whoever made the stream, but for forgeries. A zstd stream may
	// be one frame, which nothing can be fetched of.
	parts bool
}

// sniffLen is what match and isErofs need to see.
const sniffLen = erofsOff + 4

var compressions = []compression{
	{name: "gzip", match: isGzip, open: gunzip, resume: resumeGzip, ratio: 1032, parts: true},
	{name: "zstd", match: isZstd, open: unzstd, resume: resumeZstd, ratio: 1 << 15},
	{name: "tar", match: isTar, open: untar, resume: resumeTar, ratio: 1, parts: true},
}

func isGzip(b []byte) bool { return bytes.HasPrefix(b, []byte{0x1f, 0x8b, 8}) }

// isZstd knows frames and skippable frames (RFC 8878).
func isZstd(b []byte) bool {
	return bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(b) >= 4 && b[0]&0xf0 == 0x50 && bytes.Equal(b[1:4], []byte{0x2a, 0x4d, 0x18})
}

// isTar accepts a header block, the two blocks of zeros of an empty archive, and
// nothing at all, which some tools write in their place.
func isTar(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if len(b) < blockSize {
		return false
	}
	block := [blockSize]byte(b)
	return block == [blockSize]byte{} || checksumOK(&block)
}

// codingNamed is the inverse of compression.name.
func codingNamed(name string) *compression {
	for i := range compressions {
		if compressions[i].name == name {
			return &compressions[i]
		}
	}
	return nil
}

const erofsOff = 1024 // of the superblock (Linux, fs/erofs/erofs_fs.h); what stands before it may be zeros, like an empty tar

func isErofs(b []byte) bool {
	return len(b) >= erofsOff+4 && bytes.Equal(b[erofsOff:erofsOff+4], []byte{0xe2, 0xe1, 0xf5, 0xe0})
}

func sniff(b []byte) (*compression, error) {
	if isErofs(b) && !checksumOK((*[blockSize]byte)(b)) {
		return nil, fmt.Errorf("%w: %s", ErrUnsupported, whyErofs)
	}
	for i := range compressions {
		if c := &compressions[i]; c.match(b) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: neither tar nor gzip nor zstd (begins with % x)", ErrUnsupported, b[:min(len(b), 8)])
}

// untar passes a tar on. A section is whatever is long enough.
func untar(r io.Reader, begin func(inflate.Checkpoint)) (io.Reader, error) {
	if begin == nil {
		return r, nil
	}
	return &tarCutter{r: r, begin: begin}, nil
}

type tarCutter struct {
	r     io.Reader
	at    int64
	begin func(inflate.Checkpoint)
}

func (c *tarCutter) Read(p []byte) (int, error) {
	const size = sectionSize
	if c.at > 0 && c.at%size == 0 && len(p) > 0 {
		// Only when there is more: a section is never empty.
		n, err := c.r.Read(p[:min(len(p), size)])
		if n > 0 {
			c.begin(inflate.Checkpoint{In: c.at, Out: c.at})
		}
		c.at += int64(n)
		return n, err
	}
	n, err := c.r.Read(p[:min(int64(len(p)), size-c.at%size)])
	c.at += int64(n)
	return n, err
}

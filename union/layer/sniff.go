package layer

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A compression is told by its first bytes, never by a media type: docker's types
// carry zstd and plain tar in practice.
type compression struct {
	name  string
	match func(b []byte) bool
	open  func(r io.Reader) (io.Reader, error)
	// ratio is how many bytes one compressed byte can become at most: more is a
	// forgery. DEFLATE codes 258 bytes in 2 bits (1032:1), zstd a block of 128 KiB in 4 bytes.
	ratio int64
}

// sniffLen is what match needs to see.
const sniffLen = blockSize

var compressions = []compression{
	{name: "gzip", match: isGzip, open: gunzip, ratio: 1032},
	{name: "zstd", match: isZstd, open: unzstd, ratio: 1 << 15},
	{name: "tar", match: isTar, open: func(r io.Reader) (io.Reader, error) { return r, nil }, ratio: 1},
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

func sniff(b []byte) (*compression, error) {
	for i := range compressions {
		if c := &compressions[i]; c.match(b) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: neither tar nor gzip nor zstd (begins with % x)", ErrUnsupported, b[:min(len(b), 8)])
}

// maxWindow is the memory that a zstd frame may ask for: what `zstd --long` makes.
const maxWindow = 128 << 20

func unzstd(r io.Reader) (io.Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(false))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

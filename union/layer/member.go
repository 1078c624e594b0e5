package layer

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A codec is what the chunks of a layer with a TOC are compressed with. Indexes hold its number.
type codec uint8

const (
	codecGzip codec = iota // chunks stand in gzip members: eStargz
	codecZstd              // in zstd frames: zstd:chunked
	codecs
)

// A chunkReader takes chunks out of a run of the blob.
type chunkReader interface {
	// open goes on to the member (or frame) at off, which ends at end at the latest; no more
	// than need bytes of what it unpacks to will be asked for. The end is where the next
	// chunk begins: what zstd:chunked's endOffset says besides, the frame says itself.
	open(off, end, need int64) error
	// chunk returns the bytes of c, which stands in that member. They are valid until the
	// next call, and not verified.
	chunk(c *chunk) ([]byte, error)
}

// ratio is how many bytes can come out of one at most: see compression.
func (c codec) ratio() int64 {
	if c == codecZstd {
		return 1 << 15
	}
	return 1032
}

// reader reads chunks out of body, whose first byte is that at offset at of the blob.
func (c codec) reader(body io.Reader, at int64) chunkReader {
	if c == codecZstd {
		return &frameReader{packed: packed{body: body, at: at}}
	}
	return &memberReader{packed: packed{body: body, at: at}}
}

// packed is one member after the other, as it stands in the blob.
type packed struct {
	body io.Reader
	at   int64 // of body, in the blob
	b    []byte
}

// load reads the member at off, or as much of it as need bytes of content can take.
func (p *packed) load(off, end, need int64) error {
	if _, err := io.CopyN(io.Discard, p.body, off-p.at); err != nil {
		return unexpected(err)
	}
	// What follows the chunks in a member may be long (it is not ours, and not
	// verified); neither DEFLATE nor zstd needs more than this for what is wanted.
	n := min(end-off, need+need/64+1<<16)
	p.b = resize(p.b, n)
	if _, err := io.ReadFull(p.body, p.b); err != nil {
		return unexpected(err)
	}
	p.at = off + n
	return nil
}

// resize returns n bytes, of b's memory when they fit.
func resize(b []byte, n int64) []byte {
	if int64(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// A memberReader is the chunkReader of gzip. It unpacks as far as it has to.
type memberReader struct {
	packed
	z      gunzipper
	opened bool
	pos    int64 // of z, when opened
	out    []byte
}

func (m *memberReader) open(off, end, need int64) error {
	m.opened = false
	return m.load(off, end, need)
}

func (m *memberReader) chunk(c *chunk) ([]byte, error) {
	if !m.opened || m.pos > c.inner {
		m.opened, m.pos = true, 0
		m.z.reset(bytes.NewReader(m.b))
	}
	skipped, err := io.CopyN(io.Discard, &m.z, c.inner-m.pos)
	m.pos += skipped
	if err != nil {
		return nil, unexpected(err)
	}
	m.out = resize(m.out, c.n)
	n, err := io.ReadFull(&m.z, m.out)
	m.pos += int64(n)
	return m.out, unexpected(err)
}

// maxFrame is the most of one frame that is unpacked at once: a chunk of the largest size
// and as much in front of it.
const maxFrame = 2 * maxChunk

// maxBlock is the most that a block of a frame unpacks to (RFC 8878, section 3.1.1.2.3).
const maxBlock = 128 << 10

// A frameReader is the chunkReader of zstd. It unpacks a frame in one go, which needs no
// window beside the output.
type frameReader struct {
	packed
	need int64
	out  []byte
	done bool
}

func (f *frameReader) open(off, end, need int64) error {
	f.done, f.need = false, need
	return f.load(off, end, need)
}

func (f *frameReader) chunk(c *chunk) ([]byte, error) {
	if !f.done {
		if err := f.unpack(); err != nil {
			return nil, err
		}
	}
	return f.out[c.inner : c.inner+c.n], nil
}

// unpack decodes at least need bytes. Frames that follow are decoded too where there is
// room; an error behind what is needed does not matter.
func (f *frameReader) unpack() error {
	room := f.need + maxBlock // the decoder stops before the block that would not fit
	var h zstd.Header
	if err := h.Decode(f.b); err != nil {
		return err
	}
	if h.HasFCS && h.FrameContentSize > uint64(room) {
		room = int64(min(h.FrameContentSize, maxFrame+1))
	}
	if room > maxFrame {
		return fmt.Errorf("%w: a zstd frame of more than %d bytes", ErrLimit, maxFrame)
	}
	z := zstdDecoders.Get().(*zstd.Decoder)
	defer zstdDecoders.Put(z)
	out, err := z.DecodeAll(f.b, resize(f.out, room)[:0])
	if int64(len(out)) < f.need {
		return unexpected(cmp.Or(err, io.EOF))
	}
	f.out, f.done = out, true
	return nil
}

// zstdDecoders decode whole frames into memory that is there, of which they use no more
// than they are given. They start no goroutines, so that the collector may take them.
var zstdDecoders = sync.Pool{New: func() any {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		panic(err) // the options are constant
	}
	return z
}}

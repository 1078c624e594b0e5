package layer

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/layerfs/layerfs/union/layer/inflate"
)

// maxWindow is the memory that a zstd frame may ask for: what `zstd --long` makes.
const maxWindow = 128 << 20

// A zstdStream decodes a stream of zstd frames and tells where they begin. Most blobs
// have a single frame; those of pzstd, zstd:chunked and the seekable format (whose
// table at the end says nothing that is not seen in passing) have many, and each can be
// decoded by itself.
type zstdStream struct {
	z      *zstd.Decoder
	src    frameSource
	begin  func(inflate.Checkpoint) // may be nil
	inside bool                     // a frame is being decoded
	out    int64                    // bytes that have come out
	begun  int64                    // of out, when begin was called last
}

func newZstdStream(r io.Reader, begin func(inflate.Checkpoint)) (*zstdStream, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(false))
	if err != nil {
		return nil, err
	}
	return &zstdStream{z: z, src: frameSource{r: r}, begin: begin}, nil
}

func unzstd(r io.Reader, begin func(inflate.Checkpoint)) (io.Reader, error) {
	return newZstdStream(r, begin)
}

// Close lets go of the decoder's memory.
func (s *zstdStream) Close() error {
	s.z.Close()
	return nil
}

// Read is io.Reader's.
func (s *zstdStream) Read(p []byte) (int, error) {
	for {
		if !s.inside {
			if err := s.next(); err != nil {
				return 0, err
			}
		}
		n, err := s.z.Read(p)
		s.out += int64(n)
		if err == io.EOF {
			err = s.end()
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// next begins with the next frame; io.EOF when there is none. A section begins with a
// frame where the one before is long enough.
func (s *zstdStream) next() error {
	if err := s.src.begin(); err != nil {
		return err
	}
	if s.begin != nil && s.out-s.begun >= sectionSize {
		s.begin(inflate.Checkpoint{In: s.src.start, Out: s.out})
		s.begun = s.out
	}
	s.inside = true
	return s.z.Reset(&s.src)
}

// end is called when the decoder sees the end of a frame.
func (s *zstdStream) end() error {
	if !s.src.done() {
		return io.ErrUnexpectedEOF
	}
	s.inside = false
	return nil
}

// A frameSource reads one frame after the other from a stream (RFC 8878, section 3.1).
// Within a frame it is an io.Reader that ends with the frame.
type frameSource struct {
	r     io.Reader
	off   int64 // of r
	start int64 // of the frame

	head  []byte // what the reader gets next: a header
	buf   [18]byte
	body  int64 // what follows head
	last  bool  // the block is the frame's last
	check bool  // a checksum follows the last block
}

// begin passes over skippable frames and reads the header of the next one; io.EOF when
// the stream ends before.
func (f *frameSource) begin() error {
	for {
		f.start = f.off
		f.head = f.buf[:0]
		if err := f.more(4); err != nil {
			return err
		}
		switch magic := binary.LittleEndian.Uint32(f.head); {
		case magic == zstdMagic:
			return unexpected(f.header())
		case magic&^0xf == skippableMagic:
			if err := f.skip(); err != nil {
				return unexpected(err)
			}
		default:
			return fmt.Errorf("no zstd frame at %d", f.start)
		}
	}
}

const (
	zstdMagic      = 0xfd2fb528
	skippableMagic = 0x184d2a50 // and the 15 that follow
)

// more appends n bytes to head.
func (f *frameSource) more(n int) error {
	b := f.head[len(f.head) : len(f.head)+n]
	k, err := io.ReadFull(f.r, b)
	f.off += int64(k)
	f.head = f.head[:len(f.head)+k]
	return err
}

func (f *frameSource) skip() error {
	if err := f.more(4); err != nil {
		return err
	}
	n, err := io.CopyN(io.Discard, f.r, int64(binary.LittleEndian.Uint32(f.head[4:])))
	f.off += n
	return err
}

// header reads the rest of a frame's header (section 3.1.1.1).
func (f *frameSource) header() error {
	if err := f.more(1); err != nil {
		return err
	}
	descriptor := f.head[4]
	single := descriptor&(1<<5) != 0
	n := []int{0, 1, 2, 4}[descriptor&3] + []int{0, 2, 4, 8}[descriptor>>6] // dictionary ID, content size
	if single && descriptor>>6 == 0 || !single {
		n++ // content size of one byte, or the window's
	}
	f.check, f.last, f.body = descriptor&(1<<2) != 0, false, 0
	return f.more(n)
}

// block reads a block's header (section 3.1.1.2), or what follows the last block.
func (f *frameSource) block() error {
	f.head = f.buf[:0]
	if f.last {
		f.check = false
		return f.more(4)
	}
	if err := f.more(3); err != nil {
		return err
	}
	h := uint32(f.head[0]) | uint32(f.head[1])<<8 | uint32(f.head[2])<<16
	f.last = h&1 != 0
	f.body = int64(h >> 3)
	if rle := h>>1&3 == 1; rle {
		f.body = 1
	}
	return nil
}

// done reports whether the frame has been read to its end.
func (f *frameSource) done() bool {
	return len(f.head) == 0 && f.body == 0 && f.last && !f.check
}

// Read is io.Reader's.
func (f *frameSource) Read(p []byte) (int, error) {
	if f.done() {
		return 0, io.EOF
	}
	if len(f.head) == 0 && f.body == 0 {
		if err := f.block(); err != nil {
			return 0, unexpected(err)
		}
	}
	if len(f.head) > 0 {
		n := copy(p, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.body)])
	f.off += int64(n)
	f.body -= int64(n)
	if n > 0 {
		return n, nil
	}
	return n, unexpected(err)
}

// unpackFrames decodes a run of frames into out's memory; n bytes must come of it.
func unpackFrames(b []byte, n int64, out []byte) ([]byte, error) {
	z := zstdDecoders.Get().(*zstd.Decoder)
	defer zstdDecoders.Put(z)
	out, err := z.DecodeAll(b, resize(out, n)[:0])
	if err == nil && int64(len(out)) != n {
		err = fmt.Errorf("%d bytes, want %d", len(out), n)
	}
	return out, err
}

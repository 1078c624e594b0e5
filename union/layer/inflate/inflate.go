// Package inflate decodes DEFLATE and gzip (RFC 1951, RFC 1952) with checkpoints: points in the middle of a stream at which decoding can start again.
//
// It knows nothing of tar or OCI. It exists because the standard library's
// decoder and those of others tell nobody where a block began, and so a file in
// the middle of a gzip stream could only be read by decoding all before it. A
// [Checkpoint] holds what the decoder knew there: the position to the bit and
// the last 32 KiB of output, which later bytes may refer to.
//
// How it is fast: the bits wait in a 64-bit word that one load refills; one
// look into a table of 2,048 entries decodes most symbols, extra bits
// included; the output goes to one buffer that is window and result at once;
// matches are copied eight bytes at a time. Near the end of the input or of
// the buffer a slower loop takes over that checks every bit.
package inflate

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

var (
	// ErrFormat says that the input is no gzip, or no DEFLATE.
	ErrFormat = errors.New("malformed gzip")
	// ErrChecksum says that the decoded bytes are not those that were encoded.
	ErrChecksum = errors.New("gzip checksum mismatch")
)

// WindowSize is how far back a match may reach (RFC 1951, section 2).
const WindowSize = 32 << 10

// A Checkpoint is a block boundary at which decoding can start again.
type Checkpoint struct {
	In     int64  // bytes of the input before the first one that is needed whole
	Bits   uint8  // how many bits of the byte at In-1 are still to be decoded, its highest ones (0 to 7)
	Out    int64  // bytes of output before it
	Window []byte // the last output before it, at most WindowSize; nil where a gzip member begins
}

// Options of NewReader.
type Options struct {
	Raw          bool             // DEFLATE without gzip's header and trailer; it ends after the last block
	Span         int64            // a checkpoint at the first block boundary after every Span bytes of output; 0: none
	First        bool             // with Span: one at the first block as well, and at each block before the first byte of output
	OnCheckpoint func(Checkpoint) // called while reading; what it gets is its own
}

const (
	inSize = 128 << 10
	// slack is the room that a step of the fast loop may need beyond where it
	// stands: a match of 258 bytes, three literals, and 8 bytes written too much.
	slack   = 258 + 3 + 8
	outSize = WindowSize + 192<<10 + slack
)

// A Reader decodes. It is not safe for concurrent use.
type Reader struct {
	src   io.Reader
	o     Options
	in    []byte
	pos   int    // of the next byte in in
	end   int    // of what in holds
	inOff int64  // offset of in[0] in the input
	bits  uint64 // the next bits, the lowest first; those above nbits are not to be trusted, but never wrong
	nbits uint

	out     []byte
	r, w    int   // what is decoded and not yet read
	outOff  int64 // offset of out[0] in the output
	history int   // where in out the member begins, or what of it is left

	state     func(*Reader) error
	err       error // sticky, given out when out[r:w] is empty
	last      bool  // the block is the member's last
	stored    int   // bytes left of a stored block
	partial   bool  // begun in the middle of a member: nothing to check at its end
	crc       uint32
	crcFrom   int   // in out: what is not in crc yet
	memberOut int64 // offset in the output where the member begins
	nextPoint int64 // offset in the output of the next checkpoint
	trailing  int64

	lit   *litTable // of the block
	dist  *distTable
	codes *codes
}

// codes is the memory for tables.
type codes struct {
	lit     litTable // of a dynamic block
	dist    distTable
	fixLit  *litTable // made when first needed
	fixDist *distTable
}

// NewReader decodes r, which it reads to its end and beyond what is gzip:
// bytes after the last member that begin no other are skipped (Trailing counts
// them), so that a hash below sees the whole blob.
//
// Errors wrap ErrFormat or ErrChecksum, or are those of r; an input that ends
// too early is io.ErrUnexpectedEOF.
func NewReader(r io.Reader, o Options) *Reader {
	z := &Reader{}
	z.Reset(r, o)
	return z
}

// Reset makes z what NewReader returns, with the memory that it has.
func (z *Reader) Reset(r io.Reader, o Options) {
	in, out := z.in, z.out
	if in == nil {
		in, out = make([]byte, inSize), make([]byte, outSize)
	}
	*z = Reader{src: r, o: o, in: in, out: out, nextPoint: o.Span, codes: z.codes}
	if z.codes == nil {
		z.codes = &codes{}
	}
	if o.Span <= 0 || o.OnCheckpoint == nil {
		z.nextPoint, z.o.First = 1<<63-1, false
	}
	z.state = (*Reader).memberHeader
	if o.Raw {
		z.state = (*Reader).blockHeader
	}
}

// Resume goes on at a checkpoint. r begins with the byte at c.In, or the one
// before when c.Bits is not 0. The member that c is in is not checked against
// its checksum, for its beginning was not seen; later ones are. Of a stream
// read with Options.Raw it reads the blocks alone when raw is set.
func Resume(r io.Reader, c Checkpoint, raw bool) (*Reader, error) {
	z := &Reader{}
	if err := z.Resume(r, c, raw); err != nil {
		return nil, err
	}
	return z, nil
}

// Resume makes z what the function Resume returns, with the memory that it has.
func (z *Reader) Resume(r io.Reader, c Checkpoint, raw bool) error {
	if len(c.Window) > WindowSize || c.Bits > 7 {
		return fmt.Errorf("%w: checkpoint", ErrFormat)
	}
	z.Reset(r, Options{Raw: raw})
	z.state, z.partial = (*Reader).blockHeader, true
	z.w = copy(z.out, c.Window)
	z.r, z.crcFrom = z.w, z.w
	z.inOff, z.outOff = c.In, c.Out-int64(z.w)
	if c.Bits == 0 {
		return nil
	}
	z.inOff--
	if err := z.need(8); err != nil {
		return err
	}
	z.drop(8 - uint(c.Bits))
	return nil
}

// Trailing is how many bytes after the last member were skipped.
func (z *Reader) Trailing() int64 { return z.trailing }

// Read reads decoded bytes.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := z.more(); err != nil {
		return 0, err
	}
	n := copy(p, z.out[z.r:z.w])
	z.r += n
	return n, nil
}

// WriteTo writes all decoded bytes to w, in large pieces that w must not keep.
func (z *Reader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if err := z.more(); err != nil {
			if err == io.EOF {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(z.out[z.r:z.w])
		z.r += n
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// more decodes until there is something to read.
func (z *Reader) more() error {
	for z.r == z.w {
		if z.err != nil {
			return z.err
		}
		z.slide()
		for z.err == nil && z.w < len(z.out)-slack {
			z.err = z.state(z)
		}
		z.sum()
	}
	return nil
}

// slide makes room: only the window stays.
func (z *Reader) slide() {
	n := z.w - WindowSize
	if n < WindowSize {
		return
	}
	z.sum()
	copy(z.out, z.out[n:z.w])
	z.w, z.r, z.crcFrom = WindowSize, WindowSize, WindowSize
	z.history = max(z.history-n, 0)
	z.outOff += int64(n)
}

// sum takes the bytes decoded since into the checksum.
func (z *Reader) sum() {
	if !z.o.Raw && !z.partial {
		z.crc = crc32.Update(z.crc, crc32.IEEETable, z.out[z.crcFrom:z.w])
	}
	z.crcFrom = z.w
}

// malformed is an error at the present position.
func (z *Reader) malformed(what string) error {
	return fmt.Errorf("%w: %s near byte %d", ErrFormat, what, z.inOff+int64(z.pos))
}

// unread gives whole bytes of the bit buffer back to the input.
func (z *Reader) unread() {
	z.pos -= int(z.nbits / 8)
	z.nbits %= 8
	z.bits &= 1<<z.nbits - 1
}

// load reads more input. It fails with io.ErrUnexpectedEOF at the end.
func (z *Reader) load() error {
	z.unread()
	copy(z.in, z.in[z.pos:z.end])
	z.inOff += int64(z.pos)
	z.end -= z.pos
	z.pos = 0
	for range 100 { // as bufio does: a reader may give nothing now and then
		n, err := z.src.Read(z.in[z.end:])
		z.end += n
		if n > 0 {
			return nil
		}
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// need brings at least n bits, n ≤ 56, into the bit buffer.
func (z *Reader) need(n uint) error {
	for z.nbits < n {
		if z.pos == z.end {
			if err := z.load(); err != nil {
				return err
			}
			continue
		}
		z.bits |= uint64(z.in[z.pos]) << z.nbits
		z.pos++
		z.nbits += 8
	}
	return nil
}

// drop takes n bits, which are there.
func (z *Reader) drop(n uint) {
	z.bits >>= n
	z.nbits -= n
}

// take returns the next n ≤ 32 bits.
func (z *Reader) take(n uint) (uint32, error) {
	if err := z.need(n); err != nil {
		return 0, err
	}
	v := uint32(z.bits & (1<<n - 1))
	z.drop(n)
	return v, nil
}

package inflate

import (
	"hash/crc32"
	"io"
)

// The flags of a gzip header (RFC 1952, section 2.3.1).
const (
	gzipHCRC    = 1 << 1
	gzipExtra   = 1 << 2
	gzipName    = 1 << 3
	gzipComment = 1 << 4
)

// A headerReader reads the bytes of a gzip header and sums them up.
type headerReader struct {
	z   *Reader
	crc uint32
	err error // the first one; afterwards all is 0
}

func (h *headerReader) byte() byte {
	if h.err != nil {
		return 0
	}
	v, err := h.z.take(8)
	h.err = err
	h.crc = crc32.Update(h.crc, crc32.IEEETable, []byte{byte(v)})
	return byte(v)
}

func (h *headerReader) skip(n int) {
	for ; n > 0 && h.err == nil; n-- {
		h.byte()
	}
}

func (h *headerReader) skipString() {
	for h.byte() != 0 && h.err == nil {
	}
}

// memberHeader reads a gzip header, or finds that no further member follows.
func (z *Reader) memberHeader() error {
	first := z.inOff+int64(z.pos)-int64(z.nbits/8) == 0
	if err := z.need(16); err != nil || z.bits&0xffff != 0x8b1f {
		return z.noMember(first, err)
	}
	h := &headerReader{z: z}
	h.skip(2)
	method, flags := h.byte(), h.byte()
	h.skip(6) // time, compression level, system
	if h.err == nil && method != 8 {
		return z.malformed("unknown compression method")
	}
	if flags&gzipExtra != 0 {
		n := int(h.byte())
		h.skip(n | int(h.byte())<<8)
	}
	if flags&gzipName != 0 {
		h.skipString()
	}
	if flags&gzipComment != 0 {
		h.skipString()
	}
	if flags&gzipHCRC != 0 {
		want := uint16(h.crc)
		if got := uint16(h.byte()) | uint16(h.byte())<<8; h.err == nil && got != want {
			return ErrChecksum
		}
	}
	if h.err != nil {
		return h.err
	}
	z.begin()
	return nil
}

// begin starts a member: nothing before it can be referred to.
func (z *Reader) begin() {
	z.sum()
	z.history, z.memberOut = z.w, z.outOff+int64(z.w)
	z.crc, z.partial = 0, false
	z.state = (*Reader).blockHeader
}

// noMember ends the stream: cleanly after a member, whatever follows. gzip(1)
// ignores padding and garbage there too.
func (z *Reader) noMember(first bool, err error) error {
	if err != nil && err != io.ErrUnexpectedEOF {
		return err
	}
	if first {
		if err == nil {
			err = z.malformed("no gzip header")
		}
		return err
	}
	z.state = (*Reader).skipTrailing
	return nil
}

func (z *Reader) skipTrailing() error {
	z.unread()
	z.trailing += int64(z.end - z.pos)
	z.pos = z.end
	err := z.load()
	if err == io.ErrUnexpectedEOF {
		return io.EOF
	}
	return err
}

// memberTrailer checks the checksum and the size, modulo 2^32.
func (z *Reader) memberTrailer() error {
	z.drop(z.nbits % 8)
	crc, err := z.take(32)
	if err != nil {
		return err
	}
	size, err := z.take(32)
	if err != nil {
		return err
	}
	z.sum()
	if !z.partial && (crc != z.crc || size != uint32(z.outOff+int64(z.w)-z.memberOut)) {
		return ErrChecksum
	}
	z.state = (*Reader).memberHeader
	return nil
}

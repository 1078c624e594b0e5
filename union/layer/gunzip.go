package layer

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/layerfs/layerfs/union/layer/inflate"
)

// gunzip decodes all members of a gzip stream.
func gunzip(in io.Reader, begin func(inflate.Checkpoint)) (io.Reader, error) {
	o := inflate.Options{OnCheckpoint: begin}
	if begin != nil {
		o.Span = sectionSize
	}
	return inflate.NewReader(in, o), nil
}

// A gunzipper decodes one gzip stream after the other in the same memory.
type gunzipper struct{ inflate.Reader }

func (g *gunzipper) reset(in io.Reader) { g.Reset(in, inflate.Options{}) }

// gzipExtra returns the extra field of a gzip header (RFC 1952, section 2.3).
func gzipExtra(b []byte) ([]byte, error) {
	const header, flags, extra = 10, 3, 1 << 2
	if !isGzip(b) || len(b) < header+2 || b[flags]&extra == 0 {
		return nil, errors.New("no extra field")
	}
	n := int(binary.LittleEndian.Uint16(b[header:]))
	if b = b[header+2:]; len(b) < n {
		return nil, io.ErrUnexpectedEOF
	}
	return b[:n], nil
}

package layer

import (
	"bufio"
	"bytes"
	"io"

	"github.com/klauspost/compress/gzip"
)

// gunzip decodes all members of a gzip stream.
func gunzip(in io.Reader) (io.Reader, error) {
	g := &gunzipper{}
	return g, g.reset(in)
}

// A gunzipper decodes the members of a gzip stream. What follows the last one
// (zeros to fill a tape's block, mostly) is ignored, as gzip(1) does.
type gunzipper struct {
	in bufio.Reader
	z  gzip.Reader
}

// reset starts again with another stream.
func (g *gunzipper) reset(in io.Reader) error {
	if g.in.Size() == 0 {
		g.in = *bufio.NewReaderSize(in, 64<<10)
	} else {
		g.in.Reset(in)
	}
	return unexpected(g.member())
}

func (g *gunzipper) member() error {
	if err := g.z.Reset(&g.in); err != nil {
		return err
	}
	g.z.Multistream(false)
	return nil
}

func (g *gunzipper) Read(p []byte) (int, error) {
	for {
		n, err := g.z.Read(p)
		if n > 0 && err == io.EOF {
			err = nil // it comes again
		}
		if n > 0 || err != io.EOF {
			return n, err
		}
		magic, err := g.in.Peek(2)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if string(magic) != "\x1f\x8b" {
			return 0, io.EOF
		}
		if err := g.member(); err != nil {
			return 0, unexpected(err)
		}
	}
}

// gzipExtra returns the extra field of a gzip header.
func gzipExtra(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return z.Extra, nil
}

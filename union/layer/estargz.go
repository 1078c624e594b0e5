package layer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// estargz is the tocFormat of eStargz: gzip members, and the TOC as the tar's last entry.
type estargz struct{ level int }

func (e *encoding) estargz(w io.Writer, tar io.Reader) error {
	return e.toc(w, tar, &estargz{gzipLevel(e.level)}, nil)
}

func (*estargz) chunkSize() int64 { return 4 << 20 } // the specification's default
func (*estargz) apart() bool      { return false }

func (f *estargz) compress(b []byte) ([]byte, error) {
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, f.level)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	return packed.Bytes(), err
}

// end leaves out the end of the tar, because the TOC is one entry more.
func (*estargz) end(z *tocWriter, in *tarStream, n int64) error {
	z.untake(n)
	z.take(make([]byte, padding(z.taken)))
	in.tap = nil
	z.cut()
	return in.drain()
}

func (f *estargz) finish(z *tocWriter) error {
	for _, c := range z.placed {
		z.toc[c.entry].Offset, z.toc[c.entry].ChunkDigest = c.off, c.sum
	}
	b, err := json.MarshalIndent(tocFile{1, z.toc}, "", "\t")
	if err != nil {
		return err
	}
	data := append(tarOf(tocName, b), make([]byte, 2*blockSize)...)
	packed, err := f.compress(data)
	if err != nil {
		return err
	}
	z.e.tar.Write(data)
	z.e.tarSize += int64(len(data))
	z.e.annotate(digest.FromBytes(b), z.out.n)
	_, err = z.out.Write(append(packed, footer(z.out.n)...))
	return err
}

// tarOf is a file as an entry of a tar.
func tarOf(name string, content []byte) []byte {
	b := make([]byte, blockSize, int64(len(content))+4*blockSize)
	copy(b, name)
	for at, s := range map[int]string{
		100: "0000444", 108: "0000000", 116: "0000000", 124: fmt.Sprintf("%011o", len(content)), 136: "00000000000",
		148: "        ", 156: "0", 257: "ustar\x0000",
	} {
		copy(b[at:], s)
	}
	var sum int
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	b = append(b, content...)
	return append(b, make([]byte, padding(int64(len(content))))...)
}

// footer is an empty gzip member of 51 bytes whose extra field says where the TOC begins.
func footer(toc int64) []byte {
	b := append([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, 'S', 'G', 22, 0}, fmt.Sprintf("%016x"+footerMagic, toc)...)
	return append(b, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
}

package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// An index is what the cache keeps of a layer, so that it opens without the
// network: the tree, and of lazily read layers where each chunk is in the blob.
//
// It is stored as unsigned varints, strings with their length in front, and
// differences where numbers rise, all of it as one zstd frame. The cache adds a checksum; decoding trusts
// nothing nevertheless.
type index struct {
	blob digest.Digest
	diff digest.Digest // of a tar; "" when nobody knows
	toc  digest.Digest // of the TOC that the tree was made of; "" for a tar
	soci digest.Digest // of the zTOC that tree and sections were made of; "" for our own
	size int64         // of the pack
	tree *tree
	// of a tar that is read by sections; none: it is read whole
	coding   *compression
	sections []section
	// of a TOC
	chunks  []chunk
	blobEnd int64 // where the last chunk ends at the latest
	codec   codec
	prefix  int64 // where the landmark behind the prioritized files begins; 0: there is none
}

// indexMagic ends with the version: what another version wrote is made anew.
const indexMagic = "layerfs index\x04"

// maxIndex bounds an index in memory: as many entries as a layer may have, and their names.
const maxIndex = 4 << 30

var errIndex = errors.New("malformed index")

type encoder struct{ b []byte }

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) string(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

// after writes v as its distance from *last, and sets *last to where v's run ends.
func (e *encoder) after(last *int64, v, n int64) {
	e.int(v - *last)
	*last = v + n
}

func (x *index) encode() []byte {
	b := []byte(indexMagic)
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return z.EncodeAll(x.encodeRaw(), b)
}

func (x *index) encodeRaw() []byte {
	e := &encoder{b: make([]byte, 0, len(x.tree.names)+32*len(x.tree.inodes)+40*len(x.chunks)+1<<10)}
	for _, d := range []digest.Digest{x.blob, x.diff, x.toc, x.soci} {
		e.string(string(d))
	}
	e.uint(uint64(x.size))
	e.tree(x.tree)
	e.uint(uint64(x.blobEnd))
	e.uint(uint64(x.codec))
	e.uint(uint64(x.prefix))
	e.uint(uint64(len(x.chunks)))
	var last int64
	for i := range x.chunks {
		c := &x.chunks[i]
		e.after(&last, c.off, 0)
		e.uint(uint64(c.inner))
		e.uint(uint64(c.n))
		e.b = append(e.b, c.sum[:]...)
	}
	e.sections(x)
	return e.b
}

func (e *encoder) sections(x *index) {
	e.uint(uint64(len(x.sections)))
	if len(x.sections) == 0 {
		return
	}
	e.string(x.coding.name)
	var in, out int64
	for i := range x.sections {
		s := &x.sections[i]
		e.after(&in, s.in, s.end-s.in)
		e.uint(uint64(s.end - s.in))
		e.after(&out, s.out, 0)
		e.uint(uint64(s.bits))
		e.string(string(s.window))
		e.b = append(e.b, s.sum[:]...)
	}
}

func (e *encoder) tree(t *tree) {
	e.string(t.names)
	e.inodes(t.inodes)
	for _, dirents := range [][]dirent{t.dirents, t.whiteouts} {
		e.uint(uint64(len(dirents)))
		var last int64
		for _, d := range dirents {
			e.after(&last, int64(d.name.at), int64(d.name.n))
			e.uint(uint64(d.name.n))
			e.uint(uint64(d.id))
		}
	}
	e.uint(uint64(len(t.extents)))
	var last int64
	for _, x := range t.extents {
		e.uint(uint64(x.off))
		e.uint(uint64(x.n))
		e.after(&last, x.at, x.n)
	}
	e.uint(uint64(len(t.xattrs)))
	for _, x := range t.xattrs {
		e.string(x.Name)
		e.string(string(x.Value))
	}
	e.uint(uint64(len(t.foreign)))
	for _, f := range t.foreign {
		e.uint(uint64(f.Dir))
		e.string(f.Name)
		e.string(f.Target)
	}
	e.uint(uint64(len(t.defects)))
	for _, d := range t.defects {
		e.string(d.Path)
		e.string(d.Reason)
	}
}

// inodes writes of spans only the length: they follow one another.
func (e *encoder) inodes(inodes []inode) {
	e.uint(uint64(len(inodes)))
	var last, sec int64
	for i := range inodes {
		n := &inodes[i]
		for _, v := range []uint64{uint64(n.mode), uint64(n.uid), uint64(n.gid), uint64(n.nlink), n.rdev, uint64(n.size), uint64(n.nsec), uint64(n.flags)} {
			e.uint(v)
		}
		e.after(&sec, n.sec, 0)
		e.uint(uint64(n.xattrs.n))
		e.uint(uint64(n.data.n))
		if n.mode&modeFormat == modeLink {
			e.after(&last, int64(n.link.at), int64(n.link.n))
			e.uint(uint64(n.link.n))
		}
	}
}

// decodeIndex reads what encode wrote. It never panics and never returns a tree
// whose use could, whatever b is.
func decodeIndex(b []byte) (*index, error) {
	packed, ok := bytes.CutPrefix(b, []byte(indexMagic))
	if !ok {
		return nil, fmt.Errorf("%w: of another version", errIndex)
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxIndex))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	raw, err := z.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errIndex, err)
	}
	return decodeRawIndex(raw)
}

func decodeRawIndex(b []byte) (*index, error) {
	d := &decoder{b: b}
	x := &index{}
	for _, to := range []*digest.Digest{&x.blob, &x.diff, &x.toc, &x.soci} {
		*to = digest.Digest(d.string())
	}
	x.size = d.length()
	x.tree = d.tree()
	x.blobEnd = d.length()
	x.codec = d.codec()
	x.prefix = d.length()
	d.chunks(x)
	d.sections(x)
	if d.bad || len(d.b) > 0 {
		return nil, errIndex
	}
	if err := x.check(); err != nil {
		return nil, err
	}
	return x, nil
}

func (d *decoder) sections(x *index) {
	n := d.count(5 + len(section{}.sum))
	if n == 0 {
		return
	}
	if x.coding = codingNamed(d.string()); x.coding == nil {
		d.fail()
		return
	}
	var in, out int64
	for range n {
		s := section{in: in + d.int()}
		s.end = s.in + d.length()
		in = s.end
		s.out = d.after(&out, 0)
		s.bits = uint8(min(d.uint(), 8))
		if w := d.string(); w != "" {
			s.window = []byte(w)
		}
		copy(s.sum[:], d.bytes(len(s.sum)))
		x.sections = append(x.sections, s)
	}
}

func (d *decoder) codec() codec {
	c := d.uint()
	if c >= uint64(codecs) {
		d.fail()
		return 0
	}
	return codec(c)
}

func (d *decoder) chunks(x *index) {
	var last int64
	for range d.count(35) {
		c := chunk{off: d.after(&last, 0), inner: d.length(), n: d.length()}
		copy(c.sum[:], d.bytes(len(c.sum)))
		x.chunks = append(x.chunks, c)
	}
}

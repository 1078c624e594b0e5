package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// chunkSize is the most that a chunk has: eStargz's default. Small reads in large files
// cost this much; more members would compress worse.
const chunkSize = 4 << 20

// An estargzWriter cuts a tar into gzip members: one begins at the content of each
// file and at every chunk of it, and what follows the content (padding, headers)
// belongs to the last. Members are compressed in parallel and written in order.
type estargzWriter struct {
	e     *encoding
	out   hashing // the blob; its n is where the next member begins
	taken int64   // bytes of the tar so far
	cur   *outMember
	toc   []tocOut

	queue   chan *outMember
	written chan error    // of writeMembers
	failed  chan struct{} // closed when it failed
	placed  []outChunk    // by writeMembers
}

// An outMember is one gzip member.
type outMember struct {
	data    []byte
	payload int // the first bytes of data are a chunk of a file …
	entry   int // … which toc[entry] describes
	packed  bytes.Buffer
	sum     string        // of the payload
	err     error         // of compressing
	done    chan struct{} // closed when packed, sum and err are there
}

// An outChunk is where a chunk came to stand.
type outChunk struct {
	entry int
	off   int64
	sum   string
}

// A tocOut is an entry of the TOC as it is written (eStargz specification).
type tocOut struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size,omitempty"`
	ModTime     string            `json:"modtime,omitempty"`
	LinkName    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	UID         int64             `json:"uid,omitempty"`
	GID         int64             `json:"gid,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	DevMajor    int64             `json:"devMajor,omitempty"`
	DevMinor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkDigest string            `json:"chunkDigest,omitempty"`
}

func (e *encoding) estargz(w io.Writer, tar io.Reader) error {
	z := &estargzWriter{
		e: e, out: hashing{w: w}, cur: &outMember{}, queue: make(chan *outMember, e.cores),
		written: make(chan error, 1), failed: make(chan struct{}),
	}
	go func() { z.written <- z.writeMembers() }()
	err := z.entries(tar)
	close(z.queue)
	if werr := <-z.written; werr != nil {
		err = werr
	}
	if err == nil {
		err = z.finish()
	}
	return err
}

// entries reads the tar. Its end is left out, because the TOC is one entry more.
func (z *estargzWriter) entries(tar io.Reader) error {
	in := tarStreamOf(tar)
	in.tap = z.take
	r := &tarReader{in: in}
	for {
		h, err := r.next()
		if err == io.EOF {
			z.untake(in.off - r.start)
			z.take(make([]byte, padding(z.taken)))
			in.tap = nil
			z.cut()
			return in.drain()
		}
		if err == nil && clean(h.name) == tocName {
			err = z.dropEntry(r)
		} else if err == nil {
			err = z.entry(r, h)
		}
		if err != nil {
			return err
		}
		select {
		case <-z.failed:
			return io.ErrClosedPipe // writeMembers says why
		default:
		}
	}
}

// take is called with every byte of the tar.
func (z *estargzWriter) take(b []byte) {
	z.cur.data = append(z.cur.data, b...)
	z.taken += int64(len(b))
}

// untake forgets the last n bytes, which no cut has come after.
func (z *estargzWriter) untake(n int64) {
	z.cur.data = z.cur.data[:len(z.cur.data)-int(n)]
	z.taken -= n
}

// cut ends the member.
func (z *estargzWriter) cut() {
	m := z.cur
	z.cur = &outMember{}
	if len(m.data) == 0 {
		return
	}
	m.done = make(chan struct{})
	go m.compress(gzipLevel(z.e.level))
	z.queue <- m
}

func (m *outMember) compress(level int) {
	defer close(m.done)
	if m.payload > 0 {
		m.sum = digest.FromBytes(m.data[:m.payload]).String()
	}
	w, err := gzip.NewWriterLevel(&m.packed, level)
	if err == nil {
		_, err = w.Write(m.data)
	}
	if err == nil {
		err = w.Close()
	}
	m.err = err
}

// writeMembers writes them as they come from the queue. After an error it takes the
// rest and does nothing with it, so that nobody waits for ever.
func (z *estargzWriter) writeMembers() (err error) {
	for m := range z.queue {
		<-m.done
		if err != nil {
			continue
		}
		if m.payload > 0 {
			z.placed = append(z.placed, outChunk{m.entry, z.out.n, m.sum})
		}
		z.e.tar.Write(m.data)
		z.e.tarSize += int64(len(m.data))
		if err = m.err; err == nil {
			_, err = z.out.Write(m.packed.Bytes())
		}
		if err != nil {
			close(z.failed)
		}
	}
	return err
}

// dropEntry leaves out the TOC that a tar out of an eStargz layer has.
func (z *estargzWriter) dropEntry(r *tarReader) error {
	z.untake(r.in.off - r.start)
	tap := r.in.tap
	r.in.tap = nil
	err := r.finish()
	r.in.tap = tap
	return err
}

func (z *estargzWriter) entry(r *tarReader, h *tarHeader) error {
	e, err := tocEntryOf(h)
	if err != nil {
		return err
	}
	z.toc = append(z.toc, e)
	if e.Type != "reg" || h.size == 0 {
		return nil
	}
	return z.content(r, h)
}

// content makes chunks of a file's content.
func (z *estargzWriter) content(r *tarReader, h *tarHeader) error {
	first := len(z.toc) - 1
	whole := sha256.New()
	for off := int64(0); off < h.size; off += chunkSize {
		z.cut()
		n := min(chunkSize, h.size-off)
		if off > 0 {
			z.toc = append(z.toc, tocOut{Name: h.name, Type: "chunk", ChunkOffset: off})
		}
		z.cur.entry, z.cur.payload = len(z.toc)-1, int(n)
		if off+n < h.size {
			z.toc[z.cur.entry].ChunkSize = n // the last one's is what is left
		}
		if err := r.pass(n); err != nil {
			return err
		}
		whole.Write(z.cur.data)
	}
	z.toc[first].Digest = digest.NewDigest(digest.SHA256, whole).String()
	return nil
}

var tocTypes = map[byte]string{
	tarReg: "reg", tarContiguous: "reg", tarHardlink: "hardlink", tarSymlink: "symlink", tarChar: "char", tarBlock: "block",
	tarDir: "dir", tarFIFO: "fifo",
}

// tocEntryOf describes a header. What JSON cannot hold as it is, is refused: the TOC
// and the tar must show the same.
func tocEntryOf(h *tarHeader) (tocOut, error) {
	e := tocOut{
		Name: h.name, Type: tocTypes[h.typ], LinkName: h.link, Mode: h.mode & 0o7777, UID: h.uid, GID: h.gid,
		ModTime: time.Unix(h.sec, int64(h.nsec)).UTC().Format(time.RFC3339Nano),
	}
	switch {
	case h.sparse || e.Type == "":
		return e, fmt.Errorf("%w: estargz: %q is of type %q", ErrUnsupported, h.name, h.typ)
	case !utf8.ValidString(h.name) || !utf8.ValidString(h.link):
		return e, fmt.Errorf("%w: estargz: %q -> %q is no UTF-8", ErrUnsupported, h.name, h.link)
	}
	if y := time.Unix(h.sec, 0).UTC().Year(); y < 0 || y > 9999 {
		return e, fmt.Errorf("%w: estargz: %q was modified in the year %d", ErrUnsupported, h.name, y)
	}
	switch e.Type {
	case "reg":
		e.Size = h.size
	case "char", "block":
		e.DevMajor, e.DevMinor = h.major, h.minor
	}
	for _, x := range h.xattrs {
		if !utf8.ValidString(x.Name) {
			return e, fmt.Errorf("%w: estargz: xattr %q of %q is no UTF-8", ErrUnsupported, x.Name, h.name)
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[x.Name] = x.Value
	}
	return e, nil
}

// finish writes the TOC, which is the tar's last entry, and the footer.
func (z *estargzWriter) finish() error {
	for _, c := range z.placed {
		z.toc[c.entry].Offset, z.toc[c.entry].ChunkDigest = c.off, c.sum
	}
	b, err := json.MarshalIndent(struct {
		Version int      `json:"version"`
		Entries []tocOut `json:"entries"`
	}{1, z.toc}, "", "\t")
	if err != nil {
		return err
	}
	m := &outMember{data: tocTar(b), done: make(chan struct{})}
	m.compress(gzipLevel(z.e.level))
	if m.err != nil {
		return m.err
	}
	z.e.tar.Write(m.data)
	z.e.tarSize += int64(len(m.data))
	z.e.annotate(digest.FromBytes(b))
	footer := footer(z.out.n)
	if _, err := z.out.Write(m.packed.Bytes()); err != nil {
		return err
	}
	_, err = z.out.Write(footer)
	return err
}

// tocTar is the end of the tar: the TOC as a file, and two blocks of zeros.
func tocTar(toc []byte) []byte {
	b := make([]byte, blockSize, int64(len(toc))+4*blockSize)
	copy(b, tocName)
	for at, s := range map[int]string{
		100: "0000444", 108: "0000000", 116: "0000000", 124: fmt.Sprintf("%011o", len(toc)), 136: "00000000000",
		148: "        ", 156: "0", 257: "ustar\x0000",
	} {
		copy(b[at:], s)
	}
	var sum int
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	b = append(b, toc...)
	return append(b, make([]byte, padding(int64(len(toc)))+2*blockSize)...)
}

// footer is an empty gzip member of 51 bytes whose extra field says where the TOC begins.
func footer(toc int64) []byte {
	b := append([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, 'S', 'G', 22, 0}, fmt.Sprintf("%016x"+footerMagic, toc)...)
	return append(b, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
}

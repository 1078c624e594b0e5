package layer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
)

// A tocFormat is what the formats with a TOC differ in.
type tocFormat interface {
	// chunkSize is the most that a chunk has. Small reads in large files cost this much;
	// more members would compress worse.
	chunkSize() int64
	// apart reports whether what follows a chunk is a member of its own.
	apart() bool
	// compress makes a member (a zstd frame). It is called by several goroutines.
	compress(b []byte) ([]byte, error)
	// end is called at the end of the archive, of which the last n bytes are the mark of
	// its end, and takes what follows.
	end(z *tocWriter, in *tarStream, n int64) error
	// finish writes the TOC, and what tells where it is.
	finish(z *tocWriter) error
}

// A tocWriter cuts a tar into members: one begins at the content of each file and at
// every chunk of it, and what follows the content (padding, headers) belongs to the last,
// or to another. Members are compressed in parallel and written in order.
type tocWriter struct {
	e      *encoding
	format tocFormat
	out    hashing // the blob; its n is where the next member begins
	taken  int64   // bytes of the tar so far
	cur    *outMember
	toc    []tocOut
	split  *tarSplit // nil: not wanted

	queue   chan *outMember
	written chan error    // of writeMembers
	failed  chan struct{} // closed when it failed
	placed  []outChunk    // by writeMembers
}

// An outMember is one gzip member or zstd frame.
type outMember struct {
	data    []byte
	payload int // the first bytes of data are a chunk of a file …
	entry   int // … which toc[entry] describes
	packed  []byte
	sum     string        // of the payload
	zeros   bool          // the payload has nothing else
	err     error         // of compressing
	done    chan struct{} // closed when packed, sum and err are there
}

// An outChunk is where a chunk came to stand.
type outChunk struct {
	entry    int
	off, end int64
	sum      string
	zeros    bool
}

// A tocOut is an entry of the TOC as it is written (eStargz specification; the last two are zstd:chunked's).
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
	ChunkType   string            `json:"chunkType,omitempty"`
	EndOffset   int64             `json:"endOffset,omitempty"`
}

// A tocFile is the TOC.
type tocFile struct {
	Version int      `json:"version"`
	Entries []tocOut `json:"entries"`
}

// toc writes a tar in a format with a TOC; split may be nil.
func (e *encoding) toc(w io.Writer, tar io.Reader, format tocFormat, split *tarSplit) error {
	z := &tocWriter{
		e: e, format: format, split: split, out: hashing{w: w}, cur: &outMember{}, queue: make(chan *outMember, e.cores),
		written: make(chan error, 1), failed: make(chan struct{}),
	}
	go func() { z.written <- z.writeMembers() }()
	err := z.entries(tar)
	close(z.queue)
	if werr := <-z.written; werr != nil {
		err = werr
	}
	if err == nil {
		err = format.finish(z)
	}
	return err
}

// entries reads the tar.
func (z *tocWriter) entries(tar io.Reader) error {
	in := tarStreamOf(tar)
	in.tap = z.take
	r := &tarReader{in: in}
	for {
		h, err := r.next()
		if err == io.EOF {
			return z.format.end(z, in, in.off-r.start)
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
func (z *tocWriter) take(b []byte) {
	z.split.take(b)
	z.cur.data = append(z.cur.data, b...)
	z.taken += int64(len(b))
}

// takeBehind takes what follows the archive, which may be long.
func (z *tocWriter) takeBehind(b []byte) {
	for len(b) > 0 {
		n := min(len(b), max(1, int(z.format.chunkSize())-len(z.cur.data)))
		z.take(b[:n])
		b = b[n:]
		if int64(len(z.cur.data)) >= z.format.chunkSize() {
			z.split.flush()
			z.cut()
		}
	}
}

// untake forgets the last n bytes, which no cut has come after.
func (z *tocWriter) untake(n int64) {
	z.cur.data = z.cur.data[:len(z.cur.data)-int(n)]
	z.taken -= n
}

// cut ends the member.
func (z *tocWriter) cut() {
	m := z.cur
	z.cur = &outMember{}
	if len(m.data) == 0 {
		return
	}
	m.done = make(chan struct{})
	go m.compress(z.format)
	z.queue <- m
}

func (m *outMember) compress(format tocFormat) {
	defer close(m.done)
	if payload := m.data[:m.payload]; len(payload) > 0 {
		m.sum = digest.FromBytes(payload).String()
		m.zeros = payload[0] == 0 && bytes.Equal(payload[1:], payload[:len(payload)-1])
	}
	m.packed, m.err = format.compress(m.data)
}

// writeMembers writes them as they come from the queue. After an error it takes the
// rest and does nothing with it, so that nobody waits for ever.
func (z *tocWriter) writeMembers() (err error) {
	for m := range z.queue {
		<-m.done
		if err != nil {
			continue
		}
		if m.payload > 0 {
			z.placed = append(z.placed, outChunk{m.entry, z.out.n, z.out.n + int64(len(m.packed)), m.sum, m.zeros})
		}
		z.e.tar.Write(m.data)
		z.e.tarSize += int64(len(m.data))
		if err = m.err; err == nil {
			_, err = z.out.Write(m.packed)
		}
		if err != nil {
			close(z.failed)
		}
	}
	return err
}

// dropEntry leaves out the TOC that a tar out of an eStargz layer has.
func (z *tocWriter) dropEntry(r *tarReader) error {
	z.untake(r.in.off - r.start)
	tap := r.in.tap
	r.in.tap = nil
	err := r.finish()
	r.in.tap = tap
	return err
}

func (z *tocWriter) entry(r *tarReader, h *tarHeader) error {
	e, err := tocEntryOf(h)
	if err != nil {
		return err
	}
	z.toc = append(z.toc, e)
	if e.Type == "reg" && h.size > 0 {
		z.split.body()
		err = z.content(r, h)
	}
	z.split.file(h)
	if z.format.apart() && int64(len(z.cur.data)) >= z.format.chunkSize() {
		z.cut() // many headers
	}
	return err
}

// content makes chunks of a file's content.
func (z *tocWriter) content(r *tarReader, h *tarHeader) error {
	first := len(z.toc) - 1
	whole := sha256.New()
	size := z.format.chunkSize()
	for off := int64(0); off < h.size; off += size {
		z.cut()
		n := min(size, h.size-off)
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
	if z.format.apart() {
		z.cut()
	}
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
		Name: h.name, Type: tocTypes[h.typ], LinkName: h.link, Mode: h.mode, UID: h.uid, GID: h.gid,
		ModTime: time.Unix(h.sec, int64(h.nsec)).UTC().Format(time.RFC3339Nano),
	}
	switch {
	case h.sparse || e.Type == "":
		return e, fmt.Errorf("%w: TOC: %q is of type %q", ErrUnsupported, h.name, h.typ)
	case !utf8.ValidString(h.name) || !utf8.ValidString(h.link):
		return e, fmt.Errorf("%w: TOC: %q -> %q is no UTF-8", ErrUnsupported, h.name, h.link)
	}
	if y := time.Unix(h.sec, 0).UTC().Year(); y < 0 || y > 9999 {
		return e, fmt.Errorf("%w: TOC: %q was modified in the year %d", ErrUnsupported, h.name, y)
	}
	switch e.Type {
	case "reg":
		e.Size = h.size
	case "char", "block":
		e.DevMajor, e.DevMinor = h.major, h.minor
	}
	for _, x := range h.xattrs {
		if !utf8.ValidString(x.Name) {
			return e, fmt.Errorf("%w: TOC: xattr %q of %q is no UTF-8", ErrUnsupported, x.Name, h.name)
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[x.Name] = x.Value
	}
	return e, nil
}

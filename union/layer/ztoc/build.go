package ztoc

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/layerfs/layerfs/union/layer/inflate"
)

// BuildOptions say how a zTOC is made.
type BuildOptions struct {
	Span int64  // distance of checkpoints, in bytes of tar; 0: DefaultSpan
	Tool string // who makes it; may be empty
}

// Build makes the zTOC of a gzip layer from its blob, which it reads once, to its end. That
// the blob is the right one is for the caller to see.
//
// Like SOCI it refuses what a zTOC cannot say: sparse files, global PAX headers, types
// of entries beyond the seven (ErrUnsupported). Other errors wrap ErrLayer or ErrLimit, or are
// those of r.
func Build(r io.Reader, o BuildOptions) (*ZTOC, error) {
	if o.Span <= 0 {
		o.Span = DefaultSpan
	}
	b := &builder{z: &ZTOC{BuildTool: o.Tool, Algorithm: Gzip, SpanSize: o.Span}}
	b.spans = spanHasher{src: r, hash: sha256.New()}
	// zlib's example zran.c, which SOCI's code comes from, makes a checkpoint at the first block
	// boundary that lies more than, not at least, a span behind the one before.
	b.inflate = inflate.NewReader(&b.spans, inflate.Options{Span: o.Span + 1, First: true, OnCheckpoint: b.checkpoint})
	if err := b.readTar(); err != nil {
		return nil, b.explain(err)
	}
	if _, err := io.Copy(io.Discard, b); err != nil {
		return nil, b.explain(err)
	}
	b.spans.cut(b.spans.read(), 0)
	b.z.ArchiveSize, b.z.UncompressedSize, b.z.SpanDigests = b.spans.read(), b.out, b.spans.sums
	return b.z, nil
}

// A builder is a Build under way: it is the tar that the tar reader reads.
type builder struct {
	z       *ZTOC
	spans   spanHasher
	inflate *inflate.Reader
	out     int64  // bytes of tar that came
	tail    []byte // the last of them, at least a window
	waiting int    // the first checkpoint without a window
	size    int64  // of the zTOC, about
	err     error  // why reading must end
}

// tailSize is how much of the tar is kept before all but a window is dropped.
const tailSize = 16 * windowSize

// checkpoint is called when the decoder passes one. What came before it has been decoded,
// but not read yet.
func (b *builder) checkpoint(c inflate.Checkpoint) {
	b.z.Checkpoints = append(b.z.Checkpoints, Checkpoint{In: c.In, Bits: c.Bits, Out: c.Out})
	b.spans.cut(c.In, c.Bits)
	b.grow(zinfoCheckpoint)
}

func (b *builder) grow(n int) {
	if b.size += int64(n); b.size > MaxSize && b.err == nil {
		b.err = fmt.Errorf("%w: it would have more than %d bytes", ErrLimit, MaxSize)
	}
}

// Read reads the tar. A window is a matter of the tar, not of the decoder: it reaches back over the
// beginning of a gzip member, as SOCI's does.
func (b *builder) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(b.tail) > tailSize-windowSize {
		b.tail = b.tail[:copy(b.tail, b.tail[len(b.tail)-windowSize:])]
	}
	n, err := b.inflate.Read(p[:min(len(p), windowSize)])
	b.tail = append(b.tail, p[:n]...)
	b.out += int64(n)
	for ; b.waiting < len(b.z.Checkpoints); b.waiting++ {
		c := &b.z.Checkpoints[b.waiting]
		if c.Out > b.out {
			break
		}
		c.Window = b.window(b.out - c.Out)
	}
	return n, err
}

// window returns the window that ends back bytes before the end of what came.
func (b *builder) window(back int64) []byte {
	w := make([]byte, windowSize)
	have := b.tail[:len(b.tail)-int(back)]
	have = have[max(0, len(have)-windowSize):]
	copy(w[windowSize-len(have):], have)
	return w
}

// explain gives an error its sentinel.
func (b *builder) explain(err error) error {
	switch {
	case b.spans.err != nil:
		return b.spans.err
	case errors.Is(err, ErrUnsupported), errors.Is(err, ErrLimit):
		return err
	}
	return fmt.Errorf("%w: %w", ErrLayer, err)
}

func (b *builder) readTar() error {
	for r := tar.NewReader(b); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if len(b.z.Files) == MaxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrLimit, MaxEntries)
		}
		e, err := newFile(h, b.out)
		if err != nil {
			return err
		}
		b.grow(e.weight())
		b.z.Files = append(b.z.Files, e)
	}
}

// newFile makes an entry of a header whose content begins at off.
func newFile(h *tar.Header, off int64) (File, error) {
	e := File{
		Name: h.Name, Linkname: h.Linkname, Type: h.Typeflag, Offset: off, Mode: h.Mode,
		UID: uint32(h.Uid), GID: uint32(h.Gid), Uname: h.Uname, Gname: h.Gname,
		ModTime: h.ModTime.UTC(), DevMajor: h.Devmajor, DevMinor: h.Devminor,
	}
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		e.PAX = append(e.PAX, Record{key, h.PAXRecords[key]})
	}
	switch {
	case typeName(e.Type) == "":
		return e, fmt.Errorf("%w: %.100q is an entry of type %q", ErrUnsupported, e.Name, e.Type)
	case isSparse(e.PAX):
		return e, fmt.Errorf("%w: sparse file %.100q", ErrUnsupported, e.Name)
	case outside(h.Uid) || outside(h.Gid):
		return e, fmt.Errorf("%w: %.100q has the owner %d:%d", ErrUnsupported, e.Name, h.Uid, h.Gid)
	}
	if e.Type == tar.TypeReg {
		e.Size = h.Size // others have none, whatever the header says
	}
	return e, nil
}

func outside(id int) bool { return id < 0 || int64(id) > math.MaxUint32 }

// weight is about what the entry adds to the zTOC.
func (e *File) weight() int {
	n := 128 + len(e.Name) + len(e.Linkname)
	for _, p := range e.PAX {
		n += 32 + len(p.Key) + len(p.Value)
	}
	return n
}

// A spanHasher reads a blob and hashes its spans. Where one ends is known only after the
// decoder has read beyond, and so the last bytes are held back.
type spanHasher struct {
	src  io.Reader
	held []byte
	at   int64 // offset of held in the blob
	hash hash.Hash
	open bool // a span has begun
	sums []digest.Digest
	err  error // of src
}

// lookahead is more than the decoder has read beyond where it stands (inflate: 128 KiB).
const lookahead = 256 << 10

func (h *spanHasher) read() int64 { return h.at + int64(len(h.held)) }

func (h *spanHasher) Read(p []byte) (int, error) {
	n, err := h.src.Read(p)
	if err != nil && err != io.EOF {
		h.err = err
	}
	h.held = append(h.held, p[:n]...)
	if len(h.held) > 4*lookahead {
		h.drop(len(h.held) - lookahead)
	}
	return n, err
}

// drop hashes the first n bytes held.
func (h *spanHasher) drop(n int) {
	h.hash.Write(h.held[:n])
	h.at += int64(n)
	h.held = h.held[:copy(h.held, h.held[n:])]
}

// cut ends a span at offset in of the blob, and begins one there, or at the byte before when
// that has bits of it. What comes before the first span, the gzip header, belongs to none.
func (h *spanHasher) cut(in int64, bits uint8) {
	shared := in - 1
	if bits == 0 {
		shared = in
	}
	h.drop(int(shared - h.at))
	rest := h.held[:in-shared]
	h.hash.Write(rest)
	if h.open {
		h.sums = append(h.sums, digest.NewDigest(digest.SHA256, h.hash))
	}
	h.open = true
	h.hash.Reset()
}

package layer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FormOf tells how the blob of a layer is made, in the words of
// Compression.Algorithm. It reads the first block, and the last one of a layer whose
// annotations speak of an eStargz TOC. A layer without such annotations is what its
// bytes begin with, whatever else is in it: nobody would read it lazily.
func FormOf(ctx context.Context, d ocispec.Descriptor, r Ranger) (string, error) {
	op := &opening{desc: d, o: Options{Limits: Limits{}.withDefaults()}, src: &source{r: r, size: d.Size}}
	form, err := op.form(ctx)
	if err != nil {
		return "", fmt.Errorf("look at layer %s: %w", d.Digest, err)
	}
	return form, nil
}

func (op *opening) form(ctx context.Context) (string, error) {
	if err := op.check(); err != nil {
		return "", err
	}
	head, err := op.src.read(ctx, 0, min(sniffLen, op.desc.Size))
	if err != nil {
		return "", err
	}
	c, err := sniff(head)
	switch {
	case err != nil:
		return "", err
	case c.name == "tar":
		return "none", nil
	case c.name == "zstd" && len(chunkedSources(op.desc.Annotations)) > 0:
		return "zstd:chunked", nil
	case c.name == "gzip" && op.desc.Annotations[tocDigestAnnotation] != "" && op.desc.Size > footerSize:
		tail, err := op.src.read(ctx, op.desc.Size-footerSize, footerSize)
		if err != nil {
			return "", err
		}
		if _, err := parseFooter(tail); err == nil {
			return "estargz", nil
		}
	}
	return c.name, nil
}

// Tar returns the tar of the layer that d describes, uncompressed, in one pass over
// the blob. In place of io.EOF stands an error that wraps ErrDigest when the blob is
// not d's, or the tar not the one with this diff ID ("": not compared): nothing
// that was read may be kept then. The caller closes it.
//
// The TOC of an eStargz layer is an entry of its tar; see WithoutTOC.
func Tar(ctx context.Context, d ocispec.Descriptor, r Ranger, diffID digest.Digest) (io.ReadCloser, error) {
	t, err := newUnpacking(ctx, d, r, diffID)
	if err != nil {
		return nil, fmt.Errorf("read layer %s: %w", d.Digest, err)
	}
	return t, nil
}

// An unpacking decompresses a blob and hashes both sides.
type unpacking struct {
	op    *opening
	body  io.ReadCloser
	in    *bufio.Reader // the blob, hashed
	sum   digest.Verifier
	name  string // of the compression
	out   io.Reader
	alg   digest.Algorithm
	diff  hash.Hash
	left  int64       // bytes that may still come out
	limit *LimitError // why there is no more
	err   error
}

func newUnpacking(ctx context.Context, d ocispec.Descriptor, r Ranger, diffID digest.Digest) (*unpacking, error) {
	op := &opening{desc: d, o: Options{DiffID: diffID, Limits: Limits{}.withDefaults()}, src: &source{r: r, size: d.Size}}
	if err := op.check(); err != nil {
		return nil, err
	}
	body, err := op.src.open(ctx, 0, d.Size)
	if err != nil {
		return nil, err
	}
	t := &unpacking{op: op, body: body, sum: d.Digest.Verifier(), alg: digest.SHA256}
	t.in = bufio.NewReaderSize(io.TeeReader(body, t.sum), bufferSize)
	if diffID != "" {
		t.alg = diffID.Algorithm()
	}
	t.diff = t.alg.Hash()
	if err := t.start(); err != nil {
		_ = t.Close()
		return nil, t.reason(err)
	}
	return t, nil
}

// start finds the decompressor.
func (t *unpacking) start() error {
	head, err := t.in.Peek(sniffLen)
	if err != nil && err != io.EOF {
		return err
	}
	c, err := sniff(head)
	if err != nil {
		return err
	}
	t.name = c.name
	t.left, t.limit = t.op.o.Limits.unpacked(t.op.desc.Size, c.ratio)
	t.out, err = c.open(t.in, nil)
	return err
}

func (t *unpacking) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.out.Read(p)
	t.diff.Write(p[:n])
	t.left -= int64(n)
	if err == nil && t.left < 0 {
		err = t.limit
	}
	if err != nil {
		if t.err = t.reason(err); t.err != io.EOF {
			t.err = fmt.Errorf("read layer %s: %w", t.op.desc.Digest, t.err)
		}
		return n, t.err
	}
	return n, nil
}

// reason reads the blob to its end, for a damaged one explains whatever came out of
// it. io.EOF stays only if everything is right.
func (t *unpacking) reason(err error) error {
	_, readErr := io.Copy(io.Discard, t.in)
	switch {
	case readErr != nil:
		return readErr
	case !t.sum.Verified():
		_ = doubt(t.body) // who opens it again may have it from another host
		return fmt.Errorf("%w: the blob is not %s", ErrDigest, t.op.desc.Digest)
	case errors.Is(err, ErrLimit), errors.Is(err, ErrUnsupported):
		return err
	case err != io.EOF:
		return fmt.Errorf("%w: %s: %w", ErrFormat, t.name, err)
	}
	if err := t.op.checkDiffID(digest.NewDigest(t.alg, t.diff)); err != nil {
		return err
	}
	return io.EOF
}

// Close ends the reading, wherever it is.
func (t *unpacking) Close() error {
	if z, ok := t.out.(io.Closer); ok {
		_ = z.Close() // gives back memory
	}
	return t.body.Close()
}

// WithoutTOC returns the tar that r has without what makers of lazily readable
// layers add to it: the eStargz TOC, and the landmarks that say what to prefetch.
// All other bytes stay as they are.
func WithoutTOC(r io.Reader) io.Reader {
	s := &tocStripper{}
	s.tar = &tarReader{in: tarStreamOf(r)}
	s.tar.in.tap = s.take
	return s
}

// A tocStripper passes on a tar entry by entry.
type tocStripper struct {
	tar  *tarReader
	buf  []byte // what step got …
	at   int    // … and how much of it was read
	tail bool   // the archive has ended; what follows is passed on
	err  error
}

func (s *tocStripper) take(b []byte) { s.buf = append(s.buf, b...) }

func (s *tocStripper) Read(p []byte) (int, error) {
	for s.at == len(s.buf) {
		if s.err != nil {
			return 0, s.err
		}
		s.buf, s.at = s.buf[:0], 0
		s.err = s.step()
	}
	n := copy(p, s.buf[s.at:])
	s.at += n
	return n, nil
}

// step reads a header, or some of what follows one.
func (s *tocStripper) step() error {
	in := s.tar.in
	switch {
	case s.tail:
		err := in.more()
		if err == nil {
			in.advance(len(in.buf))
		}
		return err
	case s.tar.body > 0:
		if err := in.more(); err != nil {
			return tarError(unexpected(err))
		}
		return s.tar.pass(min(s.tar.body, int64(len(in.buf))))
	}
	h, err := s.tar.next()
	if err == io.EOF {
		s.tail = true
		return nil
	}
	if err != nil || h.typ != tarReg || !landmark(clean(h.name)) {
		return err
	}
	s.buf = s.buf[:int64(len(s.buf))-(in.off-s.tar.start)]
	in.tap = nil
	err = s.tar.finish()
	in.tap = s.take
	return err
}

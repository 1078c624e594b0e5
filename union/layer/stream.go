package layer

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/cache"
)

const (
	bufferSize  = 256 << 10
	bufferCount = 4               // that carry the tar
	blobBuffers = bufferCount + 2 // that carry the blob: the survey holds up to two back
)

// A stream reads a whole blob once. Five goroutines hand buffers on:
//
//	fetch (blob's digest) → decode → store (diff ID, pack) → the tar parser, in run's caller
//	                               ↘ survey (the sections' digests) → fetch again
//
// The decoder is what all wait for; that it has a core for itself is the gain.
// When decoding or parsing fails the blob is still fetched to its end, because
// its digest tells a damaged blob from a malformed layer.
type stream struct {
	src      *source
	desc     ocispec.Descriptor
	out      *cache.Writer
	progress func(state string, done int64)

	blob digest.Verifier
	alg  digest.Algorithm
	diff hash.Hash
	size int64 // of the tar

	limits                   Limits
	parts                    bool // the pack may have gaps, if the coding allows it
	survey                   *survey
	coding                   *compression // once decode knows
	fetched, decoded, stored *line
	blobBufs, tarBufs        chan []byte
	spent                    chan []byte // what decode has read
	fetchErr, storeErr       error       // set before the lines close
}

// A line carries buffers from one goroutine to the next.
type line struct {
	ch  chan []byte
	err error // why it ended, nil for EOF; valid when ch is closed
}

func newLine() *line { return &line{ch: make(chan []byte, bufferCount)} }

func (l *line) end(err error) {
	l.err = err
	close(l.ch)
}

// reader returns a function that yields the buffers of l and gives back to free
// the one before.
func (l *line) reader(free chan []byte) func() ([]byte, error) {
	var last []byte
	return func() ([]byte, error) {
		if last != nil {
			free <- last
		}
		var ok bool
		if last, ok = <-l.ch; ok {
			return last, nil
		}
		if l.err != nil {
			return nil, l.err
		}
		return nil, io.EOF
	}
}

// take returns a free buffer, or nil when ctx ends.
func take(ctx context.Context, free chan []byte) []byte {
	select {
	case b := <-free:
		return b[:bufferSize]
	case <-ctx.Done():
		return nil
	}
}

func send(ctx context.Context, to *line, b []byte) bool {
	select {
	case to.ch <- b:
		return true
	case <-ctx.Done():
		return false
	}
}

func newStream(src *source, d ocispec.Descriptor, diffID digest.Digest, out *cache.Writer) (*stream, error) {
	v, err := newSurvey()
	if err != nil {
		return nil, err
	}
	alg := digest.SHA256
	if diffID != "" {
		alg = diffID.Algorithm()
	}
	s := &stream{
		src: src, desc: d, out: out, blob: d.Digest.Verifier(), alg: alg, diff: alg.Hash(),
		fetched: newLine(), decoded: newLine(), stored: newLine(),
		blobBufs: make(chan []byte, blobBuffers), tarBufs: make(chan []byte, bufferCount),
		spent: make(chan []byte, blobBuffers), survey: v,
	}
	for range bufferCount {
		s.tarBufs <- make([]byte, bufferSize)
	}
	for range blobBuffers {
		s.blobBufs <- make([]byte, bufferSize)
	}
	return s, nil
}

// run returns the tree when the blob is the one that the descriptor names. The
// pack is written, not committed.
func (s *stream) run(ctx context.Context) (*tree, error) {
	ctx, cancel := context.WithCancel(ctx) // ends all
	defer cancel()
	decoding, stop := context.WithCancel(ctx) // ends all but the fetching
	defer stop()
	var g sync.WaitGroup
	g.Go(func() { s.fetch(ctx) })
	g.Go(func() { s.decode(decoding) })
	g.Go(func() { s.survey.follow(s.spent, s.blobBufs) })
	g.Go(func() { s.store(decoding, cancel) })
	t, err := readTar(&tarStream{next: s.stored.reader(s.tarBufs)}, len(tocSources(s.desc.Annotations)) > 0, s.limits)
	stop()
	g.Wait()
	if err := s.verdict(err); err != nil {
		return nil, err
	}
	return t, nil
}

// verdict picks the error that explains the others.
func (s *stream) verdict(err error) error {
	switch {
	case s.storeErr != nil:
		return s.storeErr
	case s.fetchErr != nil:
		return s.fetchErr
	case !s.blob.Verified():
		return fmt.Errorf("%w: the blob is not %s", ErrDigest, s.desc.Digest)
	}
	return err
}

// fetch reads the blob and hashes it.
func (s *stream) fetch(ctx context.Context) {
	s.fetchErr = s.fetchAll(ctx)
	s.fetched.end(s.fetchErr)
}

func (s *stream) fetchAll(ctx context.Context) error {
	if s.desc.Size == 0 {
		return nil
	}
	body, err := s.src.openWhole(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	for done := int64(0); done < s.desc.Size; {
		b := take(ctx, s.blobBufs)
		if b == nil {
			return ctx.Err()
		}
		b = b[:min(bufferSize, s.desc.Size-done)]
		n, err := io.ReadFull(body, b)
		if err != nil {
			return unexpected(err)
		}
		done += int64(n)
		if _, err := s.blob.Write(b); err != nil {
			return err
		}
		s.progress("fetching", done)
		if !send(ctx, s.fetched, b) {
			return ctx.Err()
		}
	}
	return nil
}

// decode decompresses, and takes what is left of the blob so that fetch gets to its end.
func (s *stream) decode(ctx context.Context) {
	next := s.fetched.reader(s.spent)
	defer close(s.spent)
	s.decoded.end(s.decodeAll(ctx, &tarStream{next: next}))
	for {
		if _, err := next(); err != nil {
			return
		}
	}
}

func (s *stream) decodeAll(ctx context.Context, in *tarStream) error {
	if err := in.more(); err != nil && err != io.EOF {
		return err
	}
	c, err := sniff(in.buf[:min(len(in.buf), sniffLen)])
	if err != nil {
		return err
	}
	s.coding = c
	s.out.MayLose(s.parts && c.parts)
	r, err := c.open(in, s.survey.begin)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrFormat, c.name, err)
	}
	if z, ok := r.(io.Closer); ok {
		defer z.Close()
	}
	most, why := s.limits.unpacked(s.desc.Size, c.ratio)
	if err := s.pump(ctx, r, most, why); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

// pump hands on what comes out of r. More than most bytes are the error why.
func (s *stream) pump(ctx context.Context, r io.Reader, most int64, why error) error {
	for total := int64(0); ; {
		b := take(ctx, s.tarBufs)
		if b == nil {
			return ctx.Err()
		}
		n, err := fillBuffer(r, b)
		total += int64(n)
		if total > most {
			return why
		}
		if n > 0 && !send(ctx, s.decoded, b[:n]) {
			return ctx.Err()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
	}
}

// fillBuffer reads until b is full. Unlike io.ReadFull's, its error is r's own: an
// io.ErrUnexpectedEOF is a stream cut short.
func fillBuffer(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = r.Read(b[n:])
		n += k
	}
	return n, err
}

// store hashes the tar and writes the pack.
func (s *stream) store(ctx context.Context, cancel context.CancelFunc) {
	var err error
	for b := range s.decoded.ch {
		if err != nil {
			continue
		}
		s.diff.Write(b)
		if err = s.keep(b); err != nil {
			s.storeErr = err
			cancel()
		} else if !send(ctx, s.stored, b) {
			err = ctx.Err()
		}
	}
	s.stored.end(errors.Join(err, s.decoded.err))
}

// keep writes b into the pack, where units end with the sections.
func (s *stream) keep(b []byte) error {
	for len(b) > 0 {
		cut := s.survey.nextCut(s.size)
		n := min(int64(len(b)), cut-s.size)
		if _, err := s.out.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
		if s.size += n; s.size == cut {
			s.out.Cut()
		}
	}
	return nil
}

func (s *stream) diffID() digest.Digest { return digest.NewDigest(s.alg, s.diff) }

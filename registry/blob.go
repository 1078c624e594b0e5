package registry

import (
	"context"
	"io"
	"strings"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Blob is one blob of an image: immutable bytes under a digest. What is read
// is not compared with the digest, for a range cannot be; whoever reads must.
// It is safe for concurrent use.
type Blob struct {
	ref   string
	desc  ocispec.Descriptor
	count counter
	r     ranger
}

// counter counts what a blob has cost.
type counter struct{ requests, bytes atomic.Int64 }

// Descriptor returns what the blob was asked for by.
func (b *Blob) Descriptor() ocispec.Descriptor { return b.desc }

// Stats returns the requests made so far, redirects and repetitions included,
// and the bytes received. Local files count reads as requests.
func (b *Blob) Stats() (requests, bytes int64) {
	return b.count.requests.Load(), b.count.bytes.Load()
}

// ReadRange returns a stream of the n bytes that start at off. It gives
// exactly n bytes or an error: a connection that breaks is continued where it
// broke, and a registry that knows no ranges is read once from the start, into
// a temporary file. ctx governs the stream until it is closed. The caller
// closes it. If he finds that the bytes are wrong, he may tell so: the stream has a method Doubt() bool.
// Errors, those of the stream included, are *Error, except that a
// cancelled ctx gives its cause.
func (b *Blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > b.desc.Size-n {
		return nil, b.wrap(faultf(ErrIntegrity, "range %d+%d lies outside of its %d bytes", off, n, b.desc.Size))
	}
	if n == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	rc, err := b.r.readRange(ctx, off, n)
	if err != nil {
		return nil, b.wrap(err)
	}
	return &blobReader{b, rc}, nil
}

// wrap names the blob in an error that is not the caller's own.
func (b *Blob) wrap(err error) error {
	if err == context.Canceled || err == context.DeadlineExceeded {
		return err
	}
	return wrapError("read "+b.desc.Digest.String()+" of", b.ref, err)
}

type blobReader struct {
	b  *Blob
	rc io.ReadCloser
}

func (r *blobReader) Read(p []byte) (int, error) {
	n, err := r.rc.Read(p)
	if err != nil && err != io.EOF {
		err = r.b.wrap(err)
	}
	return n, err
}

func (r *blobReader) Close() error { return r.rc.Close() }

// Doubt says that the bytes of the stream, held against a digest, were wrong. It tells whether they can be had
// from another host: reading them again asks that one. It may be called after Close.
func (r *blobReader) Doubt() (other bool) { return doubt(r.rc) }

// A doubter is a stream that can be told that its bytes were wrong; see blobReader.Doubt.
type doubter interface{ Doubt() (other bool) }

func doubt(rc io.ReadCloser) (other bool) {
	d, ok := rc.(doubter)
	return ok && d.Doubt()
}

// A section is a ranger over a part of a file.
type section struct {
	at    io.ReaderAt
	off   int64 // of the blob in the file
	count *counter
	end   func()
}

func (s *section) readRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.count.requests.Add(1)
	r := io.NewSectionReader(s.at, s.off+off, n)
	return &sectionReader{ctx.Err, r, n, s.count}, nil
}

func (s *section) close() {
	if s.end != nil {
		s.end()
	}
}

// A sectionReader ends with an error where the file is shorter than promised.
type sectionReader struct {
	left  func() error // why the caller has left
	r     io.Reader
	n     int64
	count *counter
}

func (r *sectionReader) Read(p []byte) (int, error) {
	if err := r.left(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	r.n -= int64(n)
	r.count.bytes.Add(int64(n))
	if err == io.EOF && r.n > 0 {
		err = faultf(ErrIntegrity, "the file is %d bytes short", r.n)
	}
	return n, err
}

func (r *sectionReader) Close() error { return nil }

// A resumer reads a range through streams that may break, each of which goes on
// where the one before ended.
type resumer struct {
	open  func(off, n int64) (io.ReadCloser, error)
	pause func(try int, err error) error // nil: try again

	cur       io.ReadCloser
	off, left int64
	try       int
	since     int64 // bytes since the last failure
}

// enough is what a stream must have brought for its successor to get all tries again.
const enough = 32 << 10

// start opens the first stream.
func (r *resumer) start() error {
	for r.cur == nil {
		rc, err := r.open(r.off, r.left)
		if err != nil {
			if err := r.failed(err); err != nil {
				return err
			}
			continue
		}
		r.cur = rc
	}
	return nil
}

func (r *resumer) failed(err error) error {
	if r.since >= enough {
		r.try = 0
	}
	r.since = 0
	r.try++
	return r.pause(r.try-1, err)
}

func (r *resumer) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	for {
		if err := r.start(); err != nil {
			return 0, err
		}
		n, err := r.cur.Read(p[:min(int64(len(p)), r.left)])
		r.off, r.left, r.since = r.off+int64(n), r.left-int64(n), r.since+int64(n)
		if err == nil || r.left == 0 {
			return n, nil
		}
		_ = r.Close()
		if err == io.EOF {
			err = errShort()
		}
		if err := r.failed(err); err != nil || n > 0 {
			return n, err
		}
	}
}

// errShort is a body that ends before its time.
func errShort() error { return faultf(ErrUnreachable, "the connection was closed early") }

func (r *resumer) Close() error {
	if r.cur == nil {
		return nil
	}
	err := r.cur.Close()
	r.cur = nil
	return err
}

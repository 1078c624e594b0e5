package registry

import (
	"context"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A blobSource is a blob of an image on its way to a sink. Every byte is hashed
// once, however often a part of the blob is sent, and the last one is not let
// through when the blob is not what its digest says.
type blobSource struct {
	base   *Image
	d      ocispec.Descriptor
	report func(Progress)

	mu     sync.Mutex // a request that was given up may still read when the next one does
	sum    digest.Verifier
	hashed int64 // bytes in sum
	err    error // why the blob cannot be read
}

func newBlobSource(base *Image, d ocispec.Descriptor, report func(Progress)) *blobSource {
	return &blobSource{base: base, d: d, report: report, sum: d.Digest.Verifier()}
}

// part is n bytes from off, to be sent.
func (src *blobSource) part(off, n int64) requestBody {
	return requestBody{size: n, open: func(ctx context.Context) (io.ReadCloser, error) {
		rc, err := src.base.Blob(src.d).ReadRange(ctx, off, n)
		if err != nil {
			return nil, src.failed(ctx.Err(), err)
		}
		return &blobPart{ReadCloser: rc, src: src, off: off, left: ctx.Err}, nil
	}}
}

// failed keeps an error of reading, unless it only says that the request is over.
func (src *blobSource) failed(over, err error) error {
	src.mu.Lock()
	defer src.mu.Unlock()
	if over == nil && src.err == nil {
		src.err = &permanent{err} // reading has had its tries
	}
	return err
}

// failure returns why the blob cannot be read, nil if it can.
func (src *blobSource) failure() error {
	src.mu.Lock()
	defer src.mu.Unlock()
	return src.err
}

// passed takes note of bytes that were read at off, from rc.
func (src *blobSource) passed(b []byte, off int64, rc io.ReadCloser) error {
	src.mu.Lock()
	defer src.mu.Unlock()
	end := off + int64(len(b))
	if off > src.hashed || end <= src.hashed {
		return nil
	}
	_, _ = src.sum.Write(b[src.hashed-off:]) // a hash takes everything
	src.hashed = end
	if end == src.d.Size && !src.sum.Verified() {
		src.err = &permanent{ifOther(rc, faultf(ErrIntegrity, "blob %s of the source has other bytes than its digest says", src.d.Digest))}
		return src.err
	}
	return nil
}

// A blobPart reads a part of a blob.
type blobPart struct {
	io.ReadCloser
	src  *blobSource
	off  int64
	left func() error // why the request is over
}

func (p *blobPart) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		return n, p.src.failed(p.left(), err)
	}
	if n > 0 {
		if err := p.src.passed(b[:n], p.off, p.ReadCloser); err != nil {
			return 0, err
		}
		p.off += int64(n)
		p.src.report(Progress{Blob: p.src.d.Digest, State: "uploading", Done: p.off, Total: p.src.d.Size})
	}
	return n, err
}

// copyBlob streams a blob of base to w, and fails when it is not what its digest says.
func copyBlob(ctx context.Context, w io.Writer, base *Image, d ocispec.Descriptor, progress func(Progress)) error {
	src := newBlobSource(base, d, progress)
	r, err := src.part(0, d.Size).open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if d.Size == 0 && !src.sum.Verified() {
		return faultf(ErrIntegrity, "blob %s is not empty", d.Digest)
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 256<<10)); err != nil {
		return err
	}
	progress(Progress{Blob: d.Digest, State: "done", Done: d.Size, Total: d.Size})
	return nil
}

package registry

import (
	"context"
	"errors"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A blobUpload sends a blob that can be read again, in one request with its length,
// which every registry takes. After a cut the rest goes in pieces, from where the
// registry is.
type blobUpload struct {
	*upload // its url is nil when there is none
	d       ocispec.Descriptor
	part    func(off, n int64) requestBody
	failure func() error // why the blob cannot be read
	cut     bool
}

// sendBlob uploads a blob of base; up may be nil.
func (s *remoteSink) sendBlob(ctx context.Context, up *upload, base *Image, d ocispec.Descriptor, progress func(Progress)) error {
	if up == nil {
		up = &upload{s: s}
	}
	src := newBlobSource(base, d, progress)
	err := (&blobUpload{upload: up, d: d, part: src.part, failure: src.failure}).run(ctx)
	if err == nil {
		progress(Progress{Blob: d.Digest, State: "done", Done: d.Size, Total: d.Size})
	}
	return err
}

// put uploads a blob that is in memory.
func (s *remoteSink) put(ctx context.Context, d ocispec.Descriptor, b []byte) error {
	part := func(off, n int64) requestBody { return bytesBody(b[off:][:n]) }
	up := &blobUpload{upload: &upload{s: s}, d: d, part: part, failure: func() error { return nil }}
	return up.run(ctx)
}

func (b *blobUpload) run(ctx context.Context) error {
	err := b.s.cl.backoff.retry(ctx, b.s.cl.log, func() error {
		err := b.try(ctx)
		b.cut = true
		return err
	})
	if err != nil {
		b.drop(ctx)
	}
	return err
}

func (b *blobUpload) try(ctx context.Context) error {
	if b.cut {
		if have, err := b.s.exists(ctx, b.d.Digest); have && err == nil {
			return nil
		}
	}
	pieces := b.cut && !b.s.unchunked.Load()
	err := b.place(ctx, pieces)
	switch {
	case err != nil:
		return err
	case pieces:
		if err = b.fill(ctx, b.d.Size, b.part); err == nil {
			err = b.finish(ctx, b.d.Digest)
		}
	default:
		err = b.close(ctx, b.d.Digest, b.part(0, b.d.Size))
	}
	return b.judge(ctx, err, pieces)
}

// judge says what an error means for the next try.
func (b *blobUpload) judge(ctx context.Context, err error, pieces bool) error {
	switch failed := b.failure(); {
	case failed != nil:
		return failed
	case errors.Is(err, errLost):
		b.drop(ctx)
	case !pieces && tooLarge(err) && b.s.shrink():
		return faultf(ErrUnreachable, "%s", oneLine(err.Error()))
	case pieces && chunkRefused(err):
		b.s.noChunks(err)
		return faultf(ErrUnreachable, "%s", oneLine(err.Error()))
	}
	return err
}

// place finds out where to go on, or begins anew.
func (b *blobUpload) place(ctx context.Context, pieces bool) error {
	if b.cut && b.url != nil {
		err := errLost
		if pieces {
			err = b.sync(ctx)
		}
		if err != nil && !errors.Is(err, errLost) {
			return err
		}
		if err != nil || b.off > b.d.Size {
			b.drop(ctx)
		}
	}
	if b.url != nil {
		return nil
	}
	fresh, err := b.s.begin(ctx)
	if err == nil {
		*b.upload = *fresh
	}
	return err
}

// drop gives up the upload, not the blob.
func (b *blobUpload) drop(ctx context.Context) {
	if b.url != nil {
		b.cancel(ctx)
		b.url, b.off = nil, 0
	}
}

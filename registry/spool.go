package registry

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
)

// A spool is the one download of a blob whose server knows no ranges, in a
// temporary file without a name. Readers wait for the part they need.
type spool struct {
	f      *os.File
	cancel context.CancelFunc

	mu   sync.Mutex
	have int64         // bytes in f; protected by mu
	err  error         // why there will be no more; protected by mu
	more chan struct{} // closed when have or err changes; protected by mu
}

// spooled returns the spool if there is one, and whether ranges are known not to work.
func (b *remoteBlob) spooled() (*spool, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.spool, b.noRanges
}

// startSpool makes first, the whole blob from its start, the source of a spool.
// From now on the download belongs to the blob and not to ctx.
func (b *remoteBlob) startSpool(ctx context.Context, first *body) (*spool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spool != nil { // another reader was faster
		_ = first.Close()
		return b.spool, nil
	}
	s, err := b.newSpoolLocked(first)
	if err != nil {
		_ = first.Close()
		return nil, err
	}
	b.spool, b.noRanges = s, true
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	b.src.cl.log.Warn("no ranges: the blob is fetched whole", "blob", b.desc.Digest, "size", b.desc.Size)
	context.AfterFunc(own, first.w.stop)
	go b.fill(own, s, first)
	return s, nil
}

func (b *remoteBlob) newSpoolLocked(first *body) (*spool, error) {
	if b.closed {
		return nil, os.ErrClosed
	}
	if first.ranged(b.desc.Size) {
		return nil, faultf(ErrUnreachable, "%s: a range came unasked", first.resp.Request.URL.Host)
	}
	if n := first.resp.ContentLength; n >= 0 && n != b.desc.Size {
		return nil, sizeMismatch(n, b.desc.Size)
	}
	if !first.w.detach() {
		return nil, first.w.cause()
	}
	f, err := os.CreateTemp(b.src.o.TempDir, "layerfs-blob-")
	if err != nil {
		return nil, &permanent{err}
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, &permanent{err}
	}
	return &spool{f: f, more: make(chan struct{})}, nil
}

// fill writes the blob to the spool, and begins again where a download broke.
// It verifies the digest on the way, which costs little here.
func (b *remoteBlob) fill(ctx context.Context, s *spool, first *body) {
	defer s.cancel()
	w := b.src.waiter()
	r := &resumer{
		open: func(off, n int64) (io.ReadCloser, error) {
			if first != nil {
				rc := first
				first = nil
				return rc, nil
			}
			return b.reopen(ctx, off)
		},
		pause: func(try int, err error) error { return w.pause(ctx, try, err) },
		left:  b.desc.Size,
	}
	v := b.desc.Digest.Verifier()
	_, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(v, s)}, r, make([]byte, 256<<10))
	_ = r.Close()
	if err == nil && !v.Verified() {
		err = faultf(ErrIntegrity, "digest mismatch: the registry sent other bytes than %s", b.desc.Digest)
	}
	if err != nil {
		b.mu.Lock()
		if b.spool == s { // the next read begins anew; the file goes with its last reader
			b.spool = nil
		}
		b.mu.Unlock()
		s.fail(err)
	}
}

// reopen gets the blob from its start again and skips what is there.
func (b *remoteBlob) reopen(ctx context.Context, off int64) (io.ReadCloser, error) {
	body, err := b.request(ctx, "")
	if err != nil {
		return nil, err
	}
	if err := body.checkWhole(b.desc.Size); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, body, off); err != nil {
		_ = body.Close()
		if errors.Is(err, io.EOF) {
			err = errShort()
		}
		return nil, err
	}
	return body, nil
}

// Write appends to the spool. Only fill calls it.
func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	at := s.have
	s.mu.Unlock()
	n, err := s.f.WriteAt(p, at)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have += int64(n)
	s.wakeLocked()
	return n, err
}

func (s *spool) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.wakeLocked()
}

func (s *spool) wakeLocked() {
	close(s.more)
	s.more = make(chan struct{})
}

// state returns how many bytes are there, and what to wait for when they are too few.
func (s *spool) state() (have int64, more <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have, s.more, s.err
}

// wait returns how many bytes there are beyond off, at least one.
func (s *spool) wait(ctx context.Context, off int64) (int64, error) {
	for {
		have, more, err := s.state()
		if have > off {
			return have - off, nil
		}
		if err != nil {
			return 0, &permanent{err}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (s *spool) reader(ctx context.Context, off, n int64) io.ReadCloser {
	return &spoolReader{s, func(off int64) (int64, error) { return s.wait(ctx, off) }, off, off + n}
}

type spoolReader struct {
	s        *spool
	wait     func(off int64) (int64, error)
	off, end int64
}

func (r *spoolReader) Read(p []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	have, err := r.wait(r.off)
	if err != nil {
		return 0, err
	}
	n, err := r.s.f.ReadAt(p[:min(int64(len(p)), have, r.end-r.off)], r.off)
	r.off += int64(n)
	return n, err
}

func (r *spoolReader) Close() error { return nil }

// close ends the download. Readers that still wait get an error.
func (b *remoteBlob) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.spool != nil {
		b.spool.cancel()
		_ = b.spool.f.Close()
		b.spool = nil
	}
}

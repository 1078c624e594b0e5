package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// chunkSize is how much of a new blob goes into one request, and stays in memory
// until the registry has confirmed it. Object stores behind registries want
// 5 MiB at least; more would only save round trips.
const chunkSize = 5 << 20

// chunkBuffers: one is filled while the other is sent.
const chunkBuffers = 2

// chunks are the pieces of a blob that write makes, in a goroutine of its own.
type chunks struct {
	stop    func() // ends write
	full    chan []byte
	free    chan []byte
	cur     []byte // of write's goroutine, as is filling
	filling bool   // cur is a buffer

	kept     [][]byte // handed out and not released; all of the blob so far, unless released
	at       int      // what next returns, in kept
	released bool

	done chan struct{} // closed when write has returned; then
	d    ocispec.Descriptor
	err  error
}

var errStopped = errors.New("nobody wants the rest")

func newChunks(ctx context.Context, write blobWriter) *chunks {
	ctx, cancel := context.WithCancel(ctx)
	c := &chunks{full: make(chan []byte), free: make(chan []byte, chunkBuffers), done: make(chan struct{})}
	c.stop = func() {
		cancel()
		<-c.done
	}
	for range chunkBuffers {
		c.free <- nil // grows as it is needed
	}
	go func() {
		defer close(c.done)
		w := &chunkWriter{c, ctx.Done()}
		c.d, c.err = write(ctx, w)
		if c.err == nil && len(c.cur) > 0 {
			c.err = w.flush()
		}
	}()
	return c
}

// A chunkWriter is what write writes to.
type chunkWriter struct {
	c       *chunks
	stopped <-chan struct{}
}

func (w *chunkWriter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		if err := w.buffer(); err != nil {
			return n, err
		}
		k := min(chunkSize-len(w.c.cur), len(b)-n)
		w.c.cur = append(grown(w.c.cur, k), b[n:n+k]...)
		n += k
		if len(w.c.cur) == chunkSize {
			if err := w.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// smallChunk is what a buffer may hold before it gets its whole size at once: to grow on by
// halves would leave twice the size behind for the garbage collector.
const smallChunk = 256 << 10

func grown(b []byte, n int) []byte {
	if len(b)+n <= smallChunk || cap(b) == chunkSize {
		return b
	}
	return append(make([]byte, 0, chunkSize), b...)
}

// buffer waits for a free buffer, if there is none to write to.
func (w *chunkWriter) buffer() error {
	if w.c.filling {
		return nil
	}
	select {
	case w.c.cur = <-w.c.free:
		w.c.filling = true
		return nil
	case <-w.stopped:
		return errStopped
	}
}

func (w *chunkWriter) flush() error {
	select {
	case w.c.full <- w.c.cur:
		w.c.cur, w.c.filling = nil, false
		return nil
	case <-w.stopped:
		return errStopped
	}
}

// next returns the next chunk; io.EOF after the last. Each is chunkSize long, but for the last.
func (c *chunks) next() ([]byte, error) {
	if c.at == len(c.kept) {
		select {
		case b := <-c.full:
			c.kept = append(c.kept, b)
		case <-c.done:
			if c.err != nil {
				return nil, &permanent{c.err} // what it reads has had its tries
			}
			return nil, io.EOF
		}
	}
	c.at++
	return c.kept[c.at-1], nil
}

// release gives back what next has returned.
func (c *chunks) release() {
	for _, b := range c.kept[:c.at] {
		c.free <- b[:0]
	}
	c.kept, c.at, c.released = c.kept[c.at:], 0, true
}

// rewind makes next begin again with the first chunk, if that is still there.
func (c *chunks) rewind() bool {
	if c.released {
		return false
	}
	c.at = 0
	return true
}

// sendNew uploads what write writes. What fits into a chunk is sent when all of it
// is there. A longer blob goes chunk by chunk; until the registry has taken the
// second one, nothing is released: some take one request of any length and no other.
func (s *remoteSink) sendNew(ctx context.Context, write blobWriter) (ocispec.Descriptor, error) {
	c := newChunks(ctx, write)
	defer c.stop()
	first, err := c.next()
	if err == nil && len(first) == chunkSize {
		return s.sendChunks(ctx, c)
	}
	if err == nil {
		_, err = c.next() // waits for the end of write
	}
	if err != io.EOF {
		return ocispec.Descriptor{}, err
	}
	return c.d, s.put(ctx, c.d, first)
}

func (s *remoteSink) sendChunks(ctx context.Context, c *chunks) (ocispec.Descriptor, error) {
	c.rewind()
	up, err := s.sendAll(ctx, c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err = up.finish(ctx, c.d.Digest); err != nil {
		up.cancel(ctx)
	}
	return c.d, err
}

// sendAll sends the chunks, from the first one again where that helps and it is still there.
func (s *remoteSink) sendAll(ctx context.Context, c *chunks) (*upload, error) {
	for try := 0; ; try++ {
		whole := s.unchunked.Load()
		up, err := s.sendOnce(ctx, c, whole)
		switch {
		case err == nil:
			return up, nil
		case !whole && chunkRefused(err) && c.rewind():
			s.noChunks(err)
		case errors.Is(err, errLost) && c.rewind():
			if err := s.cl.backoff.pause(ctx, s.cl.log, try, err); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
}

func (s *remoteSink) noChunks(err error) {
	s.unchunked.Store(true)
	s.cl.log.Debug("the registry takes no chunks", "registry", s.cl.host, "error", err)
}

func (s *remoteSink) sendOnce(ctx context.Context, c *chunks, whole bool) (*upload, error) {
	up, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	if whole || up.least > chunkSize {
		err = up.stream(ctx, c)
	} else {
		err = up.chunked(ctx, c)
	}
	if err != nil {
		up.cancel(ctx)
		return nil, err
	}
	return up, nil
}

func (up *upload) chunked(ctx context.Context, c *chunks) error {
	for n := 1; ; n++ {
		b, err := c.next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			start := up.off
			err = up.fill(ctx, start+int64(len(b)), func(off, n int64) requestBody { return bytesBody(b[off-start:][:n]) })
		}
		if err != nil {
			return err
		}
		if n > 1 {
			c.release()
		}
	}
}

// chunkRefused tells whether a registry dislikes a request that is a part of a blob.
func chunkRefused(err error) bool {
	var f *fault
	if !errors.As(err, &f) {
		return false
	}
	switch f.status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusLengthRequired,
		http.StatusRequestEntityTooLarge, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented:
		return true
	}
	return false
}

// stream sends all chunks in one PATCH of unknown length, as docker does.
func (up *upload) stream(ctx context.Context, c *chunks) error {
	r := &chunkReader{c: c}
	body := requestBody{size: -1, once: true, open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(r), nil }}
	resp, err := up.s.send(ctx, http.MethodPatch, up.url, http.Header{}, body, patched...)
	switch made := r.end(); {
	case made != nil && made != io.EOF:
		return made
	case err != nil:
		return err
	case made == nil:
		return faultf(ErrUnreachable, "%s: the upload was answered before its end", up.s.cl.host)
	}
	up.moved(resp)
	return nil
}

// A chunkReader reads chunks one after the other and keeps the first two.
type chunkReader struct {
	mu   sync.Mutex // the transport may still read when the answer is there
	c    *chunks
	cur  []byte
	n    int   // chunks so far
	err  error // of write; io.EOF after the last chunk
	over bool
}

func (r *chunkReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return 0, errStopped
	}
	for len(r.cur) == 0 && r.err == nil {
		if r.n >= chunkBuffers {
			r.c.release()
		}
		r.cur, r.err = r.c.next()
		r.n++
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// end keeps the transport from reading on, and returns how far write got.
func (r *chunkReader) end() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	return r.err
}

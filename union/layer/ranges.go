package layer

import (
	"context"
	"io"
)

const (
	// rangeSize is what a request for part of a whole blob asks for.
	rangeSize = 16 << 20
	// parallelRanges are under way at once: some registries give a connection 25 MB/s and
	// no more. What arrives early waits in the kernel, not here.
	parallelRanges = 3
	// minParallel is the smallest blob that is worth more than one connection.
	minParallel = 4 * rangeSize
)

// openWhole streams all of the blob, a large one in several ranges at once. The caller
// closes the stream.
func (s *source) openWhole(ctx context.Context) (io.ReadCloser, error) {
	if s.size < minParallel {
		return s.open(ctx, 0, s.size)
	}
	first, err := s.open(ctx, 0, rangeSize)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &wholeBody{src: s, ctx: ctx, cancel: cancel, body: first, next: rangeSize}
	for len(w.ahead) < parallelRanges-1 {
		w.openNext()
	}
	return w, nil
}

// A wholeBody is the ranges of a blob one after the other. It is for one goroutine.
type wholeBody struct {
	src    *source
	ctx    context.Context // of the requests
	cancel context.CancelFunc
	body   io.ReadCloser     // nil before the first of ahead has come
	ahead  []chan openedBody // requests under way
	next   int64             // where the next request begins
}

type openedBody struct {
	body io.ReadCloser
	err  error
}

func (w *wholeBody) openNext() {
	off := w.next
	n := min(rangeSize, w.src.size-off)
	if n <= 0 {
		return
	}
	w.next += n
	c := make(chan openedBody, 1)
	w.ahead = append(w.ahead, c)
	go func() {
		body, err := w.src.open(w.ctx, off, n)
		c <- openedBody{body, err}
	}()
}

func (w *wholeBody) Read(p []byte) (int, error) {
	for {
		if w.body != nil {
			n, err := w.body.Read(p)
			if n > 0 || err != io.EOF {
				return n, err
			}
			if err := w.body.Close(); err != nil {
				return 0, err
			}
			w.body = nil
		}
		if len(w.ahead) == 0 {
			return 0, io.EOF
		}
		o := <-w.ahead[0]
		w.ahead = w.ahead[1:]
		if o.err != nil {
			return 0, o.err
		}
		w.body = o.body
		w.openNext()
	}
}

// Close ends the requests that are under way.
func (w *wholeBody) Close() error {
	w.cancel()
	for _, c := range w.ahead {
		if o := <-c; o.body != nil {
			_ = o.body.Close() // nobody has read it
		}
	}
	w.ahead = nil
	if w.body == nil {
		return nil
	}
	return w.body.Close()
}

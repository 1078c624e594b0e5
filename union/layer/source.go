package layer

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
)

// A source is the blob of a layer: a Ranger that counts.
type source struct {
	r        Ranger
	size     int64
	fetched  atomic.Int64
	requests atomic.Int64
	checked  func(Check) // nil: nobody wants to know

	mu    sync.Mutex
	tried bool      // the layer is being opened; protected by mu
	first io.Reader // stream of the try, nil: none; protected by mu
}

// maxDoubts bounds how often wrong bytes are read again. Nobody has more mirrors; it is for hosts that are
// believed again, by other readers, while this one doubts them.
const maxDoubts = 8

// doubt tells a stream that its bytes were wrong, and returns whether to read them again.
func doubt(body io.Reader) (again bool) {
	d, ok := body.(interface{ Doubt() (other bool) })
	return ok && d.Doubt()
}

func (s *source) check(c Check) {
	if s.checked != nil {
		s.checked(c)
	}
}

func (s *source) open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s.requests.Add(1)
	body, err := s.r.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	c := &countedBody{body: body, n: &s.fetched}
	s.opened(c)
	return c, nil
}

// try begins a try to open the layer, and settle ends the last one.
func (s *source) try() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried, s.first = true, nil
}

func (s *source) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried, s.first = false, nil
}

func (s *source) opened(body io.Reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tried && s.first == nil {
		s.first = body
	}
}

// doubt is of the first stream of the try: who gave it was the one to ask, and gave most.
func (s *source) doubt() (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return doubt(s.first)
}

// read returns n bytes at off.
func (s *source) read(ctx context.Context, off, n int64) ([]byte, error) {
	body, err := s.open(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(body, b); err != nil {
		return nil, err
	}
	return b, nil
}

type countedBody struct {
	body io.ReadCloser
	n    *atomic.Int64
	err  error // that ended it
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.body.Read(p)
	c.n.Add(int64(n))
	if err != nil {
		c.err = err
	}
	return n, err
}

func (c *countedBody) Close() error { return c.body.Close() }

// Doubt does not hold wrong bytes against a host that did not give all of them.
func (c *countedBody) Doubt() (other bool) {
	return (c.err == nil || c.err == io.EOF) && doubt(c.body)
}

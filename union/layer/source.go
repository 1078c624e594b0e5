package layer

import (
	"context"
	"io"
	"sync/atomic"
)

// A source is the blob of a layer: a Ranger that counts.
type source struct {
	r        Ranger
	size     int64
	fetched  atomic.Int64
	requests atomic.Int64
	checked  func(Check) // nil: nobody wants to know
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
	return &countedBody{body: body, n: &s.fetched}, nil
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
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.body.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c *countedBody) Close() error { return c.body.Close() }

package registry

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
)

// A cutter breaks every request with a body after so many bytes of it, as a link
// that never lasts.
type cutter struct {
	after int64
	cuts  atomic.Int64
}

func (c *cutter) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil && req.ContentLength > c.after || req.ContentLength < 0 {
		req = req.Clone(req.Context())
		req.Body = &cutBody{req.Body, c.after, c}
		req.GetBody = nil
	}
	return http.DefaultTransport.RoundTrip(req)
}

type cutBody struct {
	io.ReadCloser
	left int64
	c    *cutter
}

var errCut = errors.New("cut")

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		b.c.cuts.Add(1)
		return 0, errCut
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func TestDistributionCut(t *testing.T) {
	host := distribution(t)
	old, fresh := noise(5_000_000), noise(20_000_001)
	base := mustOpen(t, "oci:"+writeLayout(t, map[string]string{"v1": string(old)})+":v1", anonymous(t))
	c := &cutter{after: 1 << 20}
	o := pushOptions(t, fresh)
	o.Transport = c
	im := mustPush(t, base, host+"/app:1", o)
	wantPushed(t, im, base, old, fresh)
	t.Log(c.cuts.Load())
}

//go:build integration

package integration

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// A proxy stands in front of a registry and counts what crosses it.
type proxy struct {
	addr           string
	requests       atomic.Int64
	received, sent atomic.Int64 // bytes of bodies, as the client sees it
}

func countingProxy(t *testing.T, addr string) *proxy {
	t.Helper()
	p := &proxy{}
	back := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	back.ModifyResponse = func(r *http.Response) error {
		r.Body = countingBody{r.Body, &p.received}
		return nil
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		if r.Body != nil {
			r.Body = countingBody{r.Body, &p.sent}
		}
		back.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	p.addr = strings.TrimPrefix(server.URL, "http://")
	return p
}

func (p *proxy) reset() {
	p.requests.Store(0)
	p.received.Store(0)
	p.sent.Store(0)
}

type countingBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

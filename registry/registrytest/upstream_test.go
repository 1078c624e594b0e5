package registrytest

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// An upstream's answers come through as they are, and count.
func TestUpstream(t *testing.T) {
	far := start(t, Options{})
	content := someBytes(10_000)
	d := far.PutBlob("r", content)
	to, err := url.Parse(far.URL())
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{Upstream: to})
	resp, got := do(t, s, "GET", blobPath("r", d), nil, "Range", "bytes=100-199")
	wantStatus(t, resp, http.StatusPartialContent)
	if !bytes.Equal(got, content[100:200]) {
		t.Errorf("%d bytes", len(got))
	}
	if c := s.Total("GET", "/blobs/"); c != (Count{1, 0, 100, 1}) {
		t.Errorf("counted %+v", c)
	}
	resp, _ = do(t, s, "POST", "/v2/r/blobs/uploads/", nil)
	wantStatus(t, resp, http.StatusAccepted)
	at := resp.Header.Get("Location")
	if strings.HasPrefix(at, far.URL()) {
		t.Errorf("an upload leads around the proxy, to %s", at)
	}
	resp, _ = do(t, s, "PUT", strings.TrimPrefix(at, s.URL())+"?digest="+digest.FromString("up").String(), []byte("up"))
	wantStatus(t, resp, http.StatusCreated)
	s.Use(On(Blobs, Status(503, 1)))
	resp, _ = do(t, s, "GET", blobPath("r", d), nil)
	wantStatus(t, resp, http.StatusServiceUnavailable)
	s.Heal()
	far.Close()
	resp, _ = do(t, s, "GET", blobPath("r", d), nil)
	wantStatus(t, resp, http.StatusBadGateway)
}

// A connection costs a round trip before its first request.
func TestThrottleConnections(t *testing.T) {
	s := start(t, Options{})
	const rtt = 100 * time.Millisecond
	s.Throttle(0, rtt)
	took := func() time.Duration {
		begin := time.Now()
		do(t, s, "GET", "/v2/", nil)
		return time.Since(begin)
	}
	if d := took(); d < 2*rtt {
		t.Errorf("the first request took %v", d)
	}
	best := min(took(), took(), took(), took()) // the machine may be busy
	if best < rtt || best >= 2*rtt {
		t.Errorf("the next requests took %v and more", best)
	}
	if c := s.Total("", ""); c.Requests != 5 || c.Connections != 1 {
		t.Errorf("counted %+v", c)
	}
}

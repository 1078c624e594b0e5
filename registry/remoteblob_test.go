package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// remoteBlobOf opens a fresh image whose only layer is b.
func remoteBlobOf(t *testing.T, s *registrytest.Server, b []byte) *Blob {
	t.Helper()
	s.PushImage("py:1", image(b))
	im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
	hasten(im)
	s.Reset()
	return im.Blob(im.Manifest.Layers[0])
}

// wrongRange answers ranges as a server should not.
func wrongRange(status int, contentRange string, body int) registrytest.Fault {
	return registrytest.On(registrytest.Blobs, registrytest.Times(1, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			w.WriteHeader(status)
			_, _ = w.Write(make([]byte, body))
		})
	}))
}

// wholeAs206 calls the whole blob a range.
func wholeAs206(next http.Handler) http.Handler {
	return registrytest.On(registrytest.Ranged, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { r.Header.Set("Range", "bytes=0-"); next.ServeHTTP(w, r) })
	})(next)
}

// Whatever a registry does that can be mended, the bytes are right.
func TestReadRangeFaults(t *testing.T) {
	blob := noise(300_000)
	ranged := func(code int) registrytest.Fault { // refuses the header, not the blob
		return registrytest.On(registrytest.Ranged, registrytest.Status(code, -1))
	}
	tests := map[string][]registrytest.Fault{
		"none":             nil,
		"no ranges":        {registrytest.NoRange},
		"416":              {ranged(416)},
		"lying 416":        {registrytest.RefuseRanges},
		"200 for a 206":    {registrytest.Unnamed206},
		"unnamed ranges":   {registrytest.NoContentRange},
		"206 for a 200":    {wholeAs206},
		"400":              {ranged(400)},
		"501":              {ranged(501)},
		"short bodies":     {registrytest.ShortBody(40_000)},
		"short, no ranges": {registrytest.NoRange, registrytest.Times(2, registrytest.ShortBody(40_000))},
		"503 twice":        {registrytest.On(registrytest.Blobs, registrytest.Status(503, 2))},
		"429":              {registrytest.On(registrytest.Blobs, registrytest.Status(429, 1, "Retry-After", "1"))},
		"another range":    {wrongRange(206, "bytes 7-8/300000", 2)},
		"no Content-Range": {wrongRange(206, "", 2)},
		"endless range":    {wrongRange(206, "bytes 0-299999/*", 9)},
	}
	for name, faults := range tests {
		t.Run(name, func(t *testing.T) {
			s := start(t, registrytest.Options{})
			b := remoteBlobOf(t, s, blob)
			s.Use(faults...)
			wantRange(t, b, blob, 100_000, 150_000)
			wantRange(t, b, blob, 299_999, 1)
			wantRange(t, b, blob, 0, 300_000)
			wantRange(t, b, blob, 0, 1)
			if s.Total("HEAD", "").Requests != 0 {
				t.Error("a HEAD was sent")
			}
		})
	}
}

// What cannot be mended is told, with its kind.
func TestReadRangeErrors(t *testing.T) {
	blob := noise(100_000)
	tests := []struct {
		name  string
		fault registrytest.Fault
		is    error
		text  string
	}{
		{"gone", registrytest.Status(404, -1), ErrNotFound, "404 not found"},
		{"forbidden", registrytest.Status(403, -1), ErrUnauthorized, "403 forbidden: injected 403"},
		{"down", registrytest.Status(503, -1), ErrUnreachable, "503 service unavailable"},
		{"other size", wrongRange(206, "bytes 10-19/77", 10), ErrIntegrity, "77 bytes instead of 100000"},
		{"cut", registrytest.ShortBody(0), ErrUnreachable, "closed early"},
	}
	for _, tt := range tests {
		s := start(t, registrytest.Options{})
		b := remoteBlobOf(t, s, blob)
		s.Use(registrytest.On(registrytest.Blobs, tt.fault))
		_, err := readRange(t.Context(), b, 10, 10)
		var e *Error
		if !errors.Is(err, tt.is) || !errors.As(err, &e) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if n := s.Total("GET", "/blobs/").Requests; n > 5 {
			t.Errorf("%s: %d tries", tt.name, n)
		}
		s.Heal()
		wantRange(t, b, blob, 10, 10)
	}
	s := start(t, registrytest.Options{})
	b := remoteBlobOf(t, s, blob)
	for _, r := range [][2]int64{{-1, 2}, {0, -1}, {99_999, 2}, {1 << 62, 1 << 62}} {
		if _, err := b.ReadRange(t.Context(), r[0], r[1]); !errors.Is(err, ErrIntegrity) {
			t.Errorf("range %v: %v", r, err)
		}
	}
}

// A registry without ranges is asked for the blob once, however many read.
func TestSpoolIsShared(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(2_000_000)
	b := remoteBlobOf(t, s, blob)
	s.Use(registrytest.NoRange)
	wantRange(t, b, blob, 1_000_000, 10) // the spool is there from here on
	var wg sync.WaitGroup
	for i := range int64(20) {
		wg.Go(func() { wantRange(t, b, blob, 1_999_900-i*90_000, 100) })
	}
	wg.Wait()
	if n := s.Total("GET", "/blobs/").Requests; n != 1 {
		t.Errorf("%d requests", n)
	}
	if _, n := b.Stats(); n != 2_000_000 {
		t.Errorf("%d bytes", n)
	}
	dir := b.r.(*remoteBlob).src.o.TempDir
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("temporary files have names: %v %v", list, err)
	}
}

// The first reader may leave: the download is not his alone.
func TestSpoolOutlivesReader(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(1_000_000)
	b := remoteBlobOf(t, s, blob)
	s.Use(registrytest.NoRange)
	ctx, cancel := context.WithCancel(t.Context())
	rc, err := b.ReadRange(ctx, 500_000, 100)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_, _ = io.Copy(io.Discard, rc)
	_ = rc.Close()
	wantRange(t, b, blob, 900_000, 100)
	if n := s.Total("GET", "/blobs/").Requests; n != 1 {
		t.Errorf("%d requests", n)
	}
}

// A spool that turns out to hold other bytes is thrown away.
func TestSpoolCorrupt(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	b := remoteBlobOf(t, s, blob)
	s.Use(registrytest.NoRange, registrytest.Corrupt(b.Descriptor().Digest, 50))
	_, _ = readRange(t.Context(), b, 10, 10) // may come before the mismatch is known
	deadline := time.Now().Add(5 * time.Second)
	for {
		if sp, _ := b.r.(*remoteBlob).spooled(); sp == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the spool is still there")
		}
		time.Sleep(time.Millisecond)
	}
	s.Heal()
	wantRange(t, b, blob, 45, 10)
}

func TestRedirects(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	b := remoteBlobOf(t, s, blob)
	var expired atomic.Bool
	var stale int
	expire := registrytest.On(func(r *http.Request) bool {
		return registrytest.Blobs(r) && r.URL.RawQuery != "" && expired.CompareAndSwap(true, false)
	}, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "Request has expired", stale) })
	})
	s.Use(expire, s.RedirectBlobs, registrytest.Basic("user", "secret"))
	b.r.(*remoteBlob).src.cl.creds.file = authFile(t, s.Host(), "user", "secret")
	wantRange(t, b, blob, 10, 1000)
	wantRange(t, b, blob, 2000, 1000)
	if n, _ := b.Stats(); n != 3 {
		t.Errorf("%d requests for two ranges behind a redirect, want 3", n)
	}
	for _, stale = range []int{400, 401, 403, 404, 410} {
		before, _ := b.Stats()
		expired.Store(true)
		wantRange(t, b, blob, 10, 1000)
		if n, _ := b.Stats(); n != before+3 {
			t.Errorf("%d: %d requests to renew an address, want 3", stale, n-before)
		}
	}
}

// Credentials stay with the registry they are for.
func TestNoAuthorizationElsewhere(t *testing.T) {
	seen := make(chan string, 1)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("Authorization") + r.Header.Get("Cookie")
		if !strings.Contains(r.Header.Get("Referer"), "/v2/py/blobs/sha256:") {
			t.Errorf("Referer %q", r.Header.Get("Referer"))
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(noise(1000)))
	}))
	defer other.Close()
	s := start(t, registrytest.Options{})
	b := remoteBlobOf(t, s, noise(1000))
	s.Use(registrytest.On(registrytest.Blobs, func(http.Handler) http.Handler { return http.RedirectHandler(other.URL, http.StatusTemporaryRedirect) }), registrytest.Basic("user", "secret"))
	b.r.(*remoteBlob).src.cl.creds.file = authFile(t, s.Host(), "user", "secret")
	for range 2 { // the second time from the remembered address
		wantRange(t, b, noise(1000), 5, 5)
		if h := <-seen; h != "" {
			t.Errorf("the other host saw %q", h)
		}
	}
}

func TestRedirectToPlainHTTP(t *testing.T) {
	s := start(t, registrytest.Options{})
	b := remoteBlobOf(t, s, noise(1000))
	s.Use(registrytest.On(registrytest.Blobs, func(http.Handler) http.Handler {
		return http.RedirectHandler("http://cdn.example.com/x", http.StatusTemporaryRedirect)
	}))
	_, err := readRange(t.Context(), b, 5, 5)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "http without encryption") {
		t.Errorf("redirect to http: %v", err)
	}
}

func TestForeignURLs(t *testing.T) {
	blob := noise(1000)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	defer other.Close()
	s := start(t, registrytest.Options{})
	own := remoteBlobOf(t, s, []byte("another"))
	im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
	d := ocispec.Descriptor{MediaType: dockerForeignLayer, Digest: verifiable(blob), Size: 1000, URLs: []string{"ftp://x/y", "http://192.0.2.1/plain", other.URL + "/layer"}}
	wantRange(t, im.Blob(d), blob, 100, 100)
	wantRange(t, im.Blob(d), blob, 0, 1000)
	d.Digest, d.URLs = verifiable([]byte("none")), []string{"http://192.0.2.1/plain"}
	if _, err := readRange(t.Context(), im.Blob(d), 0, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("a foreign layer behind plain http: %v", err)
	}
	wantRange(t, own, []byte("another"), 0, 7)
}

func TestReadRangeCancel(t *testing.T) {
	s := start(t, registrytest.Options{})
	b := remoteBlobOf(t, s, noise(1000))
	s.Use(registrytest.On(registrytest.Blobs, registrytest.Hang))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := readRange(ctx, b, 0, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a hanging registry: %v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("left after %s", d)
	}
}

func TestWatchStalls(t *testing.T) {
	ctx, w := newWatch(t.Context(), 20*time.Millisecond)
	defer w.stop()
	<-ctx.Done()
	if err := w.explain(ctx.Err()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no answer") || !temporary(err) {
		t.Errorf("stalled: %v", err)
	}
	ctx, w2 := newWatch(t.Context(), 20*time.Millisecond)
	defer w2.stop()
	w2.idle()
	time.Sleep(60 * time.Millisecond)
	if ctx.Err() != nil {
		t.Error("the clock ran while nobody waited")
	}
}

func TestParseContentRange(t *testing.T) {
	tests := map[string]string{
		"bytes 0-9/10":                  "0 9 10 true",
		"bytes 5-5/*":                   "5 5 -1 true",
		"bytes */10":                    "false",
		"":                              "false",
		"bytes 0-9":                     "false",
		"items 0-9/10":                  "false",
		"bytes -1-9/10":                 "false",
		"bytes 0-9/-1":                  "false",
		"bytes 0-99999999999999999999/": "false",
	}
	for in, want := range tests {
		a, z, n, ok := parseContentRange(in)
		got := fmt.Sprint(a, z, n, ok)
		if !ok {
			got = "false"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func BenchmarkReadWhole(b *testing.B) {
	s := registrytest.New(registrytest.Options{})
	defer s.Close()
	const size = 64 << 20
	s.PushImage("py:1", image(noise(size)))
	im, err := Open(b.Context(), s.Host()+"/py:1", Options{Platform: "linux/amd64"})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	buf := make([]byte, 512<<10)
	for b.Loop() {
		rc, err := im.Blob(im.Manifest.Layers[0]).ReadRange(b.Context(), 0, size)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, rc, buf); n != size || err != nil {
			b.Fatal(n, err)
		}
		_ = rc.Close()
	}
	_ = im.Close()
}

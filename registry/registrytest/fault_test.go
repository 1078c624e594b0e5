package registrytest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// withBlob is a registry with one blob of 10,000 bytes, in repository r.
func withBlob(t *testing.T) (s *Server, content []byte, path string, d ocispec.Descriptor) {
	s = start(t, Options{})
	content = someBytes(10_000)
	d = s.PutBlob("r", content)
	return s, content, blobPath("r", d), d
}

func TestNoRange(t *testing.T) {
	s, content, path, _ := withBlob(t)
	s.Use(NoRange)
	resp, got := do(t, s, "GET", path, nil, "Range", "bytes=5-6")
	wantStatus(t, resp, 200)
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes", len(got))
	}
}

// What a server may do wrong with a range, and does with no other request.
func TestRangeFaults(t *testing.T) {
	tests := []struct {
		name         string
		fault        Fault
		status       int
		contentRange string
		size, length int // of what comes, and of what is announced
	}{
		{"416", RefuseRanges, 416, "", 5, 10_000},
		{"200", Unnamed206, 200, "bytes 5-6/10000", 2, 2},
		{"206", NoContentRange, 206, "", 2, 2},
		{"501", On(Ranged, Status(501, -1)), 501, "", -1, -1},
	}
	for _, tt := range tests {
		s, content, path, _ := withBlob(t)
		s.Use(tt.fault)
		resp, got, err := try(s, "GET", s.URL()+path, nil, "Range", "bytes=5-6")
		if tt.size < tt.length != errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if resp.StatusCode != tt.status || resp.Header.Get("Content-Range") != tt.contentRange {
			t.Errorf("%s: %d, Content-Range %q", tt.name, resp.StatusCode, resp.Header.Get("Content-Range"))
		}
		if tt.size >= 0 && (len(got) != tt.size || resp.ContentLength != int64(tt.length)) {
			t.Errorf("%s: %d of %d bytes", tt.name, len(got), resp.ContentLength)
		}
		resp, got = do(t, s, "GET", path, nil)
		if wantStatus(t, resp, 200); !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes of a whole blob", tt.name, len(got))
		}
	}
}

func TestStatus(t *testing.T) {
	s, _, path, _ := withBlob(t)
	s.Use(On(Blobs, Status(429, 2, "Retry-After", "7")))
	resp, _ := do(t, s, "GET", "/v2/", nil)
	wantStatus(t, resp, 200) // does not match, does not count
	for range 2 {
		resp, _ = do(t, s, "GET", path, nil)
		wantStatus(t, resp, 429)
		if got := resp.Header.Get("Retry-After"); got != "7" {
			t.Errorf("Retry-After %q", got)
		}
	}
	resp, _ = do(t, s, "GET", path, nil)
	wantStatus(t, resp, 200)
	s.Use(On(Uploads, Status(503, -1)))
	for range 3 {
		resp, _ = do(t, s, "POST", "/v2/r/blobs/uploads/", nil)
		wantStatus(t, resp, 503)
	}
	s.Use(Times(1, On(Manifests, Status(500, -1))))
	resp, _ = do(t, s, "HEAD", "/v2/r/manifests/x", nil)
	wantStatus(t, resp, 500)
	resp, _ = do(t, s, "HEAD", "/v2/r/manifests/x", nil)
	wantStatus(t, resp, 404)
	s.Heal()
	resp, _ = do(t, s, "POST", "/v2/r/blobs/uploads/", nil)
	wantStatus(t, resp, 202)
}

func TestShortBody(t *testing.T) {
	s, content, path, _ := withBlob(t)
	s.Use(Times(2, ShortBody(1234)))
	for _, header := range []string{"", "bytes=1000-8999"} {
		resp, got, err := try(s, "GET", s.URL()+path, nil, "Range", header)
		if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) != 1234 || resp.ContentLength < 8000 {
			t.Errorf("%q: %d of %d bytes, %v", header, len(got), resp.ContentLength, err)
		}
	}
	if _, got := do(t, s, "GET", path, nil); !bytes.Equal(got, content) {
		t.Error("the third is no better")
	}
}

func TestCorrupt(t *testing.T) {
	s, content, path, d := withBlob(t)
	other := s.PutBlob("r", content[1:])
	s.Use(Corrupt(d.Digest, 5000))
	wrong := bytes.Clone(content)
	wrong[5000] ^= 0xff
	for _, tt := range []struct {
		header string
		want   []byte
	}{{"", wrong}, {"bytes=5000-5000", wrong[5000:5001]}, {"bytes=4000-5999", wrong[4000:6000]}, {"bytes=0-4999", content[:5000]}, {"bytes=5001-", content[5001:]}} {
		if _, got := do(t, s, "GET", path, nil, "Range", tt.header); !bytes.Equal(got, tt.want) {
			t.Errorf("%q: not the byte at 5000, or not it alone", tt.header)
		}
	}
	if _, got := do(t, s, "GET", blobPath("r", other), nil); !bytes.Equal(got, content[1:]) {
		t.Error("another blob is corrupt, too")
	}
	s.Heal()
	if _, got := do(t, s, "GET", path, nil); !bytes.Equal(got, content) {
		t.Error("the stored blob is corrupt")
	}
}

func TestOutage(t *testing.T) {
	s, _, path, _ := withBlob(t)
	var on atomic.Bool
	s.Use(Outage(&on))
	do(t, s, "GET", path, nil)
	on.Store(true)
	if resp, _, err := try(s, "GET", s.URL()+path, nil); err == nil {
		t.Errorf("in an outage: %s", resp.Status)
	}
	on.Store(false)
	do(t, s, "GET", path, nil)
}

func TestHang(t *testing.T) {
	s, _, path, _ := withBlob(t)
	s.Use(Times(1, Hang))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", s.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := s.Client().Do(req); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", resp, err)
	}
	do(t, s, "GET", path, nil)
}

func TestRedirectBlobs(t *testing.T) {
	s, content, path, _ := withBlob(t)
	s.Use(s.RedirectBlobs, Basic("u", "p"))
	resp, _ := do(t, s, "GET", path, nil, "Authorization", basic("u", "p"))
	wantStatus(t, resp, 307)
	to := resp.Header.Get("Location")
	resp, got, err := try(s, "GET", to, nil, "Range", "bytes=1-2")
	if err != nil || resp.StatusCode != 206 || !bytes.Equal(got, content[1:3]) {
		t.Errorf("storage: %v, %v", resp, err)
	}
	resp, _, err = try(s, "GET", to, nil, "Authorization", basic("u", "p"))
	if err != nil || resp.StatusCode != 400 {
		t.Errorf("storage with credentials: %v, %v", resp, err)
	}
	u, err := url.Parse(to)
	if err != nil || u.Host == s.Host() {
		t.Errorf("redirected to %s, %v", to, err)
	}
	if log := s.Log(); len(log) != 3 || log[1].Host != u.Host || log[1].Out != 2 {
		t.Errorf("log: %+v", log)
	}
}

func TestSignedBlobs(t *testing.T) {
	s, content, path, _ := withBlob(t)
	s.Use(s.SignedBlobs(200 * time.Millisecond))
	resp, _ := do(t, s, "GET", path, nil)
	wantStatus(t, resp, 307)
	to := resp.Header.Get("Location")
	for _, tt := range []struct {
		wait    time.Duration
		referer string
		status  int
	}{{0, s.URL() + path, 200}, {0, "", 401}, {300 * time.Millisecond, s.URL() + path, 403}} {
		time.Sleep(tt.wait)
		resp, got, err := try(s, "GET", to, nil, "Referer", tt.referer)
		if err != nil || resp.StatusCode != tt.status || tt.status == 200 && !bytes.Equal(got, content) {
			t.Errorf("Referer %q after %v: %s, %d bytes, %v", tt.referer, tt.wait, resp.Status, len(got), err)
		}
	}
}

func basic(user, password string) string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, password)
	return r.Header.Get("Authorization")
}

func TestBasic(t *testing.T) {
	s, _, path, _ := withBlob(t)
	s.Use(Basic("u", "p"))
	for header, status := range map[string]int{"": 401, basic("u", "x"): 401, basic("x", "p"): 401, "Bearer p": 401, basic("u", "p"): 200} {
		resp, _ := do(t, s, "GET", path, nil, "Authorization", header)
		wantStatus(t, resp, status)
		if c := resp.Header.Get("WWW-Authenticate"); (status == 401) != strings.HasPrefix(c, "Basic realm=") {
			t.Errorf("%q: challenge %q", header, c)
		}
	}
}

// token asks as a client does: with what the challenge says.
func tokenFor(t *testing.T, s *Server, challenge *http.Response, user, password string) (string, int) {
	t.Helper()
	fields := map[string]string{}
	for _, m := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(challenge.Header.Get("WWW-Authenticate"), -1) {
		fields[m[1]] = m[2]
	}
	q := url.Values{"service": {fields["service"]}, "scope": {fields["scope"]}}
	var header []string
	if user != "" {
		header = []string{"Authorization", basic(user, password)}
	}
	resp, body, err := try(s, "GET", fields["realm"]+"?"+q.Encode(), nil, header...)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`"token":"([^"]+)"`).FindSubmatch(body)
	if m == nil {
		return "", resp.StatusCode
	}
	return "Bearer " + string(m[1]), resp.StatusCode
}

func TestBearer(t *testing.T) {
	s, _, path, d := withBlob(t)
	auth := Bearer("u", "p")
	s.Use(auth.Wrap)
	challenge, _ := do(t, s, "GET", path, nil)
	wantStatus(t, challenge, 401)
	for _, who := range [][2]string{{"", ""}, {"u", "x"}, {"x", "p"}} {
		if token, status := tokenFor(t, s, challenge, who[0], who[1]); token != "" || status != 401 {
			t.Errorf("%v: %q, %d", who, token, status)
		}
	}
	pull, _ := tokenFor(t, s, challenge, "u", "p")
	resp, _ := do(t, s, "GET", path, nil, "Authorization", pull)
	wantStatus(t, resp, 200)
	resp, _ = do(t, s, "GET", "/v2/other/tags/list", nil, "Authorization", pull)
	wantStatus(t, resp, 401) // another repository

	mount := "/v2/to/blobs/uploads/?from=r&mount=" + d.Digest.String()
	challenge, _ = do(t, s, "POST", mount, nil, "Authorization", pull)
	wantStatus(t, challenge, 401)
	if c := challenge.Header.Get("WWW-Authenticate"); !strings.Contains(c, `scope="repository:to:pull,push repository:r:pull",error="insufficient_scope"`) {
		t.Errorf("challenge of a mount: %s", c)
	}
	push, _ := tokenFor(t, s, challenge, "u", "p")
	resp, _ = do(t, s, "POST", mount, nil, "Authorization", push)
	wantStatus(t, resp, 201)
	challenge, _ = do(t, s, "DELETE", path, nil, "Authorization", push)
	wantStatus(t, challenge, 401)
	remove, _ := tokenFor(t, s, challenge, "u", "p")
	resp, _ = do(t, s, "DELETE", path, nil, "Authorization", remove)
	wantStatus(t, resp, 202)

	auth.ExpireTokens()
	challenge, _ = do(t, s, "GET", "/v2/", nil, "Authorization", pull)
	wantStatus(t, challenge, 401)
	auth.Lifetime = time.Millisecond
	short, _ := tokenFor(t, s, challenge, "u", "p")
	time.Sleep(5 * time.Millisecond)
	resp, _ = do(t, s, "GET", "/v2/", nil, "Authorization", short)
	wantStatus(t, resp, 401)
}

func TestBearerPublic(t *testing.T) {
	s, _, path, _ := withBlob(t)
	auth := &TokenAuth{User: "u", Password: "p", Public: true}
	s.Use(auth.Wrap)
	challenge, _ := do(t, s, "GET", path, nil)
	token, _ := tokenFor(t, s, challenge, "", "")
	resp, _ := do(t, s, "GET", path, nil, "Authorization", token)
	wantStatus(t, resp, 200)
	challenge, _ = do(t, s, "POST", "/v2/r/blobs/uploads/", nil)
	token, _ = tokenFor(t, s, challenge, "", "")
	resp, _ = do(t, s, "POST", "/v2/r/blobs/uploads/", nil, "Authorization", token)
	wantStatus(t, resp, 401)
}

// FuzzParsePath: whatever the path, no panic, and names that can be put together
// again.
func FuzzParsePath(f *testing.F) {
	for _, p := range []string{"/v2/a/blobs/sha256:00", "/v2/a/b/blobs/uploads/", "/v2/a/blobs/uploads", "/v2/a/manifests/x", "/v2/a/tags/list", "/v2/", "/v2//blobs/x", "/v2/blobs/uploads/1"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		got, ok := parsePath(p)
		if !ok {
			return
		}
		if got.repo == "" || !strings.HasPrefix(p, "/v2/"+got.repo+"/") || !strings.HasSuffix(p, got.ref) {
			t.Errorf("%q: %+v", p, got)
		}
	})
}

func TestCutUploads(t *testing.T) {
	s := start(t, Options{})
	s.Use(CutUploads(1000))
	content := someBytes(2500)
	resp, _ := do(t, s, "POST", "/v2/r/blobs/uploads/", nil)
	loc := resp.Header.Get("Location")
	for off := 0; off < len(content); off += 1000 {
		req, err := http.NewRequest(http.MethodPatch, s.URL()+loc, bytes.NewReader(content[off:]))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.Client().Do(req)
		if last := len(content)-off <= 1000; (err == nil) != last {
			t.Fatalf("from %d: %v", off, err)
		}
		if err == nil {
			_ = resp.Body.Close()
		}
	}
	if resp, _ = do(t, s, "GET", loc, nil); resp.Header.Get("Range") != "0-2499" || s.OpenUploads() != 1 {
		t.Errorf("range %q, %d uploads", resp.Header.Get("Range"), s.OpenUploads())
	}
	if resp, _ = do(t, s, "DELETE", loc, nil); resp.StatusCode != http.StatusNoContent || s.OpenUploads() != 0 {
		t.Errorf("status %d, %d uploads", resp.StatusCode, s.OpenUploads())
	}
}

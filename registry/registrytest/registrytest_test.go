package registrytest

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func start(t *testing.T, o Options) *Server {
	s := New(o)
	t.Cleanup(s.Close)
	return s
}

// do sends a request to the server; header is names and values in turn. It
// follows no redirects.
func do(t *testing.T, s *Server, method, path string, body []byte, header ...string) (*http.Response, []byte) {
	t.Helper()
	resp, b, err := try(s, method, s.URL()+path, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, b
}

func try(s *Server, method, url string, body []byte, header ...string) (*http.Response, []byte, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := *s.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func wantStatus(t *testing.T, resp *http.Response, status int) {
	t.Helper()
	if resp.StatusCode != status {
		t.Errorf("%s %s: %s, want %d", resp.Request.Method, resp.Request.URL.Path, resp.Status, status)
	}
}

func blobPath(repo string, d ocispec.Descriptor) string {
	return "/v2/" + repo + "/blobs/" + d.Digest.String()
}

func someBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// both runs a test with blobs in memory and in a directory.
func both(t *testing.T, f func(t *testing.T, s *Server)) {
	t.Run("memory", func(t *testing.T) { f(t, start(t, Options{})) })
	t.Run("directory", func(t *testing.T) { f(t, start(t, Options{Dir: t.TempDir()})) })
}

func TestRanges(t *testing.T) {
	both(t, func(t *testing.T, s *Server) {
		b := someBytes(10_000)
		d := s.PutBlob("a/b", b)
		for _, tt := range []struct {
			header string
			status int
			want   []byte
			said   string
		}{
			{"", 200, b, ""},
			{"bytes=0-0", 206, b[:1], "bytes 0-0/10000"},
			{"bytes=100-199", 206, b[100:200], "bytes 100-199/10000"},
			{"bytes=9990-20000", 206, b[9990:], "bytes 9990-9999/10000"},
			{"bytes=9000-", 206, b[9000:], "bytes 9000-9999/10000"},
			{"bytes=-10", 206, b[9990:], "bytes 9990-9999/10000"},
			{"bytes=10000-10001", 416, nil, "bytes */10000"},
		} {
			resp, got := do(t, s, "GET", blobPath("a/b", d), nil, "Range", tt.header)
			wantStatus(t, resp, tt.status)
			if tt.status != 416 && (!bytes.Equal(got, tt.want) || resp.ContentLength != int64(len(tt.want))) {
				t.Errorf("%q: %d bytes, wrong or not %d", tt.header, len(got), len(tt.want))
			}
			if said := resp.Header.Get("Content-Range"); said != tt.said {
				t.Errorf("%q: Content-Range %q, want %q", tt.header, said, tt.said)
			}
		}
		resp, _ := do(t, s, "HEAD", blobPath("a/b", d), nil)
		if resp.ContentLength != 10_000 || resp.Header.Get("Docker-Content-Digest") != d.Digest.String() {
			t.Errorf("HEAD: %d bytes, %v", resp.ContentLength, resp.Header)
		}
		resp, _ = do(t, s, "GET", blobPath("other", d), nil)
		wantStatus(t, resp, 404)
	})
}

// TestUploads is each way to bring a blob in.
func TestUploads(t *testing.T) {
	both(t, func(t *testing.T, s *Server) {
		b := someBytes(5000)
		for i, upload := range []func(begin, digest string) *http.Response{
			func(begin, dg string) *http.Response { // POST, PUT
				resp, _ := do(t, s, "PUT", begin+"?digest="+dg, b)
				return resp
			},
			func(begin, dg string) *http.Response { // POST, PATCH, PUT
				resp, _ := do(t, s, "PATCH", begin, b)
				wantStatus(t, resp, 202)
				resp, _ = do(t, s, "PUT", begin+"?digest="+dg, nil)
				return resp
			},
			func(begin, dg string) *http.Response { // POST, PATCH in chunks, GET, PUT with the last one
				do(t, s, "PATCH", begin, b[:1000], "Content-Range", "0-999")
				resp, _ := do(t, s, "PATCH", begin, b[2000:3000], "Content-Range", "2000-2999")
				wantStatus(t, resp, 416)
				resp, _ = do(t, s, "PATCH", begin, b[1000:3000], "Content-Range", "1000-2999")
				wantStatus(t, resp, 202)
				resp, _ = do(t, s, "GET", begin, nil)
				if got := resp.Header.Get("Range"); resp.StatusCode != 204 || got != "0-2999" {
					t.Errorf("state: %s, %q", resp.Status, got)
				}
				resp, _ = do(t, s, "PUT", begin+"?digest="+dg, b[3000:])
				return resp
			},
			func(_, dg string) *http.Response { // POST with all
				resp, _ := do(t, s, "POST", "/v2/r3/blobs/uploads/?digest="+dg, b)
				return resp
			},
		} {
			for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
				repo := fmt.Sprintf("r%d", i)
				resp, _ := do(t, s, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
				wantStatus(t, resp, 202)
				dg := algorithm.FromBytes(b).String()
				wantStatus(t, upload(resp.Header.Get("Location"), dg), 201)
				if _, got := do(t, s, "GET", "/v2/"+repo+"/blobs/"+dg, nil); !bytes.Equal(got, b) {
					t.Errorf("way %d: another blob came out", i)
				}
			}
		}
	})
}

func TestUploadRefuses(t *testing.T) {
	dir := t.TempDir()
	s := start(t, Options{Dir: dir})
	resp, _ := do(t, s, "POST", "/v2/r/blobs/uploads/", nil)
	location := resp.Header.Get("Location")
	resp, _ = do(t, s, "PATCH", strings.Replace(location, "/r/", "/other/", 1), []byte("x"))
	wantStatus(t, resp, 404)
	resp, _ = do(t, s, "PUT", location+"?digest="+digest.FromString("other").String(), []byte("this"))
	wantStatus(t, resp, 400)
	resp, _ = do(t, s, "PUT", location+"?digest="+digest.FromString("this").String(), []byte("this"))
	wantStatus(t, resp, 404) // the upload ended with the error
	resp, _ = do(t, s, "POST", "/v2/r/blobs/uploads/", nil)
	location = resp.Header.Get("Location")
	resp, _ = do(t, s, "DELETE", location, nil)
	wantStatus(t, resp, 204)
	if left, err := os.ReadDir(filepath.Join(dir, "uploads")); err != nil || len(left) > 0 {
		t.Errorf("uploads left behind: %v, %v", left, err)
	}
}

func TestMount(t *testing.T) {
	s := start(t, Options{})
	d := s.PutBlob("from/here", []byte("blob"))
	mount := func(from string) *http.Response {
		resp, _ := do(t, s, "POST", "/v2/to/blobs/uploads/?mount="+d.Digest.String()+"&from="+from, nil)
		return resp
	}
	wantStatus(t, mount("nowhere"), 202)
	s.Use(NoMount)
	wantStatus(t, mount("from/here"), 202)
	resp, _ := do(t, s, "HEAD", blobPath("to", d), nil)
	wantStatus(t, resp, 404)
	s.Heal()
	wantStatus(t, mount("from/here"), 201)
	if _, got := do(t, s, "GET", blobPath("to", d), nil); string(got) != "blob" {
		t.Errorf("mounted %q", got)
	}
	resp, _ = do(t, s, "DELETE", blobPath("to", d), nil)
	wantStatus(t, resp, 202)
	resp, _ = do(t, s, "GET", blobPath("from/here", d), nil)
	wantStatus(t, resp, 200)
}

func TestManifests(t *testing.T) {
	s := start(t, Options{})
	layer := s.PutBlob("r", []byte("layer"))
	config := s.PutBlob("r", []byte("{}"))
	m := mustJSON(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}})
	dg := digest.FromBytes(m).String()
	put := func(repo, ref string, b []byte) *http.Response {
		resp, _ := do(t, s, "PUT", "/v2/"+repo+"/manifests/"+ref, b, "Content-Type", ocispec.MediaTypeImageManifest)
		return resp
	}
	wantStatus(t, put("other", "v1", m), 400) // its blobs are not there
	wantStatus(t, put("r", digest.FromString("x").String(), m), 400)
	wantStatus(t, put("r", "v1", []byte("no JSON")), 400)
	wantStatus(t, put("r", "v1", bytes.Repeat([]byte(" "), maxManifest+1)), 413)
	index := mustJSON(ocispec.Index{Manifests: []ocispec.Descriptor{{Digest: digest.Digest(dg)}}})
	wantStatus(t, put("r", "index", index), 400)
	wantStatus(t, put("r", "v1", m), 201)
	wantStatus(t, put("r", "index", index), 201)
	for _, ref := range []string{"v1", dg} {
		resp, got := do(t, s, "GET", "/v2/r/manifests/"+ref, nil)
		if !bytes.Equal(got, m) || resp.Header.Get("Content-Type") != ocispec.MediaTypeImageManifest || resp.Header.Get("Docker-Content-Digest") != dg {
			t.Errorf("%s: %q, %v", ref, got, resp.Header)
		}
		resp, _ = do(t, s, "HEAD", "/v2/r/manifests/"+ref, nil)
		if resp.ContentLength != int64(len(m)) {
			t.Errorf("HEAD %s: %d bytes, want %d", ref, resp.ContentLength, len(m))
		}
	}
	_, tags := do(t, s, "GET", "/v2/r/tags/list", nil)
	if string(bytes.TrimSpace(tags)) != `{"name":"r","tags":["index","v1"]}` {
		t.Errorf("tags: %s", tags)
	}
	resp, _ := do(t, s, "DELETE", "/v2/r/manifests/"+dg, nil)
	wantStatus(t, resp, 202)
	resp, body := do(t, s, "GET", "/v2/r/manifests/v1", nil)
	var refused struct{ Errors []struct{ Code string } }
	if err := json.Unmarshal(body, &refused); err != nil || resp.StatusCode != 404 || refused.Errors[0].Code != "MANIFEST_UNKNOWN" {
		t.Errorf("after DELETE: %s %s", resp.Status, body)
	}
}

func TestPushImage(t *testing.T) {
	s := start(t, Options{})
	d := s.PushImage("a/b:v1", Image{
		Layers: []Layer{{Blob: []byte("tar"), Desc: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Annotations: map[string]string{"k": "v"}}}},
		Config: ocispec.Image{Config: ocispec.ImageConfig{User: "u"}},
	})
	s.PushIndex("a/b", d)
	var index ocispec.Index
	get(t, s, "/v2/a/b/manifests/latest", &index)
	var m ocispec.Manifest
	get(t, s, "/v2/a/b/manifests/"+index.Manifests[0].Digest.String(), &m)
	if l := m.Layers[0]; l.MediaType != ocispec.MediaTypeImageLayer || l.Annotations["k"] != "v" || l.Digest != digest.FromString("tar") {
		t.Errorf("layer %+v", l)
	}
	var config ocispec.Image
	get(t, s, blobPath("a/b", m.Config), &config)
	if config.Config.User != "u" || config.OS != "linux" || config.RootFS.DiffIDs[0] != digest.FromString("tar") || len(config.History) != 1 {
		t.Errorf("config %+v", config)
	}
	docker := s.PushImage("a/b:docker", Image{RawConfig: []byte(`{"x":1}`), MediaType: "application/vnd.docker.distribution.manifest.v2+json"})
	get(t, s, "/v2/a/b/manifests/docker", &m)
	if docker.MediaType != m.MediaType || m.Config.MediaType != "application/vnd.docker.container.image.v1+json" || m.Config.Digest != digest.FromString(`{"x":1}`) {
		t.Errorf("docker manifest %+v", m)
	}
}

func get(t *testing.T, s *Server, path string, v any) {
	t.Helper()
	resp, b := do(t, s, "GET", path, nil)
	wantStatus(t, resp, 200)
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func TestCounters(t *testing.T) {
	s := start(t, Options{})
	d := s.PutBlob("r", someBytes(1000))
	if n := len(s.Log()); n != 0 {
		t.Errorf("PutBlob is in the log: %d lines", n)
	}
	do(t, s, "GET", blobPath("r", d), nil, "Range", "bytes=0-99", "User-Agent", "me")
	do(t, s, "GET", blobPath("r", d), nil)
	do(t, s, "POST", "/v2/r/blobs/uploads/?digest="+digest.FromString("four").String(), []byte("four"), "Authorization", "Basic x")
	if got := s.Total("GET", "/blobs/"); got != (Count{2, 0, 1100, 1}) {
		t.Errorf("GET: %+v", got)
	}
	if got := s.Total("", "/uploads/"); got != (Count{1, 4, 0, 1}) {
		t.Errorf("uploads: %+v", got)
	}
	log := s.Log()
	if r := log[0]; r.Status != 206 || r.Range != "bytes=0-99" || r.UserAgent != "me" || r.Host != s.Host() || r.Out != 100 {
		t.Errorf("first line: %+v", r)
	}
	if r := log[2]; r.Authorization != "Basic" || !strings.HasPrefix(r.Query, "digest=") || r.Status != 201 {
		t.Errorf("third line: %+v", r)
	}
	s.Reset()
	if got := s.Total("", ""); got != (Count{}) {
		t.Errorf("after Reset: %+v", got)
	}
}

func TestTLS(t *testing.T) {
	s := start(t, Options{TLS: true})
	resp, _ := do(t, s, "GET", "/v2/", nil)
	wantStatus(t, resp, 200)
	if resp, err := http.Get(s.URL() + "/v2/"); err == nil {
		t.Errorf("a stranger trusts the certificate: %s", resp.Status)
	}
	if !strings.HasPrefix(s.URL(), "https://127.0.0.1:") || "https://"+s.Host() != s.URL() {
		t.Errorf("URL %s, host %s", s.URL(), s.Host())
	}
}

func TestThrottle(t *testing.T) {
	s := start(t, Options{})
	d := s.PutBlob("r", someBytes(40_000))
	s.Throttle(400_000, 30*time.Millisecond)
	begin := time.Now()
	var wg sync.WaitGroup
	for range 2 { // 80 kB over one link: 200 ms, and 30 ms before
		wg.Go(func() {
			if _, b, err := try(s, "GET", s.URL()+blobPath("r", d), nil); err != nil || len(b) != 40_000 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(begin); took < 220*time.Millisecond {
		t.Errorf("80 kB at 400 kB/s took %v", took)
	}
	begin = time.Now()
	do(t, s, "POST", "/v2/r/blobs/uploads/?digest="+digest.FromBytes(make([]byte, 40_000)).String(), make([]byte, 40_000))
	if took := time.Since(begin); took < 120*time.Millisecond {
		t.Errorf("40 kB up at 400 kB/s took %v", took)
	}
	s.Throttle(0, 0)
	begin = time.Now()
	do(t, s, "GET", blobPath("r", d), nil)
	if took := time.Since(begin); took > 80*time.Millisecond {
		t.Errorf("without a limit it took %v", took)
	}
}

func TestClose(t *testing.T) {
	s := New(Options{})
	s.Use(s.RedirectBlobs)
	s.Close()
	if _, _, err := try(s, "GET", s.URL()+"/v2/", nil); err == nil {
		t.Error("a closed registry answers")
	}
}

func TestReferrers(t *testing.T) {
	s := start(t, Options{})
	im := s.PushImage("py:1", Image{})
	subject := fmt.Sprintf(`"subject":{"digest":"%s","size":%d}`, im.Digest, im.Size)
	for i := range 3 {
		b := []byte(fmt.Sprintf(`{"schemaVersion":2,"artifactType":"a/b","annotations":{"n":"%d"},%s}`, i, subject))
		resp, _ := do(t, s, "PUT", "/v2/py/manifests/"+digest.FromBytes(b).String(), b, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
		wantStatus(t, resp, 201)
		if got := resp.Header.Get("OCI-Subject"); got != im.Digest.String() {
			t.Errorf("subject %q", got)
		}
	}
	next, seen := "/v2/py/referrers/"+im.Digest.String()+"?artifactType=a%2Fb", 0
	for next != "" {
		resp, b := do(t, s, "GET", next, nil)
		wantStatus(t, resp, 200)
		seen += bytes.Count(b, []byte(`"artifactType":"a/b"`))
		next, _, _ = strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	}
	if seen != 3 {
		t.Errorf("%d referrers", seen)
	}
	if _, b := do(t, s, "GET", "/v2/py/referrers/"+im.Digest.String()+"?artifactType=other", nil); !bytes.Contains(b, []byte(`"manifests":[]`)) {
		t.Errorf("of another type: %s", b)
	}
	if _, b := do(t, s, "GET", "/v2/none/referrers/"+im.Digest.String(), nil); !bytes.Contains(b, []byte(`"manifests":[]`)) {
		t.Errorf("of another repository: %s", b)
	}
	s.Use(NoReferrers)
	resp, _ := do(t, s, "GET", "/v2/py/referrers/"+im.Digest.String(), nil)
	wantStatus(t, resp, 404)
	b := []byte(`{"schemaVersion":2,` + subject + `}`)
	if resp, _ := do(t, s, "PUT", "/v2/py/manifests/x", b); resp.StatusCode != 201 || resp.Header.Get("OCI-Subject") != "" {
		t.Errorf("without referrers: %s, %q", resp.Status, resp.Header.Get("OCI-Subject"))
	}
}

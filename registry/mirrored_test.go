package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
)

// A ring is a registry with mirrors, and what the hosts were sent as credentials.
type ring struct {
	t       *testing.T
	origin  *registrytest.Server
	mirrors []*registrytest.Server
	blob    []byte
	dir     string // of hosts.toml files
	said    safeBuffer

	mu   sync.Mutex
	sent map[string][]string // Authorization headers by host; protected by mu
}

// newRing has an image at the registry and at n mirrors.
func newRing(t *testing.T, n int) *ring {
	r := &ring{t: t, blob: noise(600_000), dir: t.TempDir(), sent: map[string][]string{}}
	r.origin = start(t, registrytest.Options{})
	r.origin.PushImage("team/app:1", image(r.blob))
	for range n {
		m := start(t, registrytest.Options{})
		m.PushImage("team/app:1", image(r.blob))
		r.mirrors = append(r.mirrors, m)
	}
	r.configure("")
	return r
}

// configure writes hosts.toml; each mirror's table has more.
func (r *ring) configure(more string) {
	text := ""
	for _, m := range r.mirrors {
		text += fmt.Sprintf("[host.%q]\n%s\n", m.URL(), more)
	}
	r.toml(text)
}

func (r *ring) toml(text string) {
	writeFile(r.t, filepath.Join(r.dir, r.origin.Host(), "hosts.toml"), text, 0o600)
}

func (r *ring) options() Options {
	o := anonymous(r.t)
	o.HostsDir, o.Logger = r.dir, slog.New(slog.NewTextHandler(&r.said, nil))
	o.Wrap = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if auth := req.Header.Get("Authorization"); auth != "" {
				r.mu.Lock()
				r.sent[req.URL.Host] = append(r.sent[req.URL.Host], auth)
				r.mu.Unlock()
			}
			return next.RoundTrip(req)
		})
	}
	return o
}

func (r *ring) ref() string { return r.origin.Host() + "/team/app:1" }

func (r *ring) open() (*Image, *Blob) {
	r.t.Helper()
	im := mustOpen(r.t, r.ref(), r.options())
	hastenMirrors(im)
	return im, im.Blob(im.Manifest.Layers[0])
}

func hastenMirrors(im *Image) {
	m := im.src.(*recorded).inner.(*mirrored)
	m.backoff = backoff{tries: 5, min: time.Millisecond, max: 5 * time.Millisecond, longest: 10 * time.Millisecond}
}

// wantAsked compares how often each host was asked for something, -1 being any number but none.
func (r *ring) wantAsked(part string, origin int, mirrors ...int) {
	r.t.Helper()
	for i, want := range append(mirrors, origin) {
		s := append(r.mirrors, r.origin)[i]
		if got := s.Total("GET", part).Requests; got != want && (want >= 0 || got == 0) {
			r.t.Errorf("host %d was asked %d times for %s, want %d", i, got, part, want)
		}
	}
}

// TestMirrorFirst: a mirror serves everything, and is told whose mirror it is.
func TestMirrorFirst(t *testing.T) {
	r := newRing(t, 2)
	im, b := r.open()
	wantRange(t, b, r.blob, 0, int64(len(r.blob)))
	wantRange(t, b, r.blob, 1000, 1000)
	r.wantAsked("", 0, -1, 0)
	for _, q := range r.mirrors[0].Log() {
		if strings.Contains(q.Path, "team/app") && q.Query != "ns="+strings.ReplaceAll(r.origin.Host(), ":", "%3A") {
			t.Errorf("%s?%s", q.Path, q.Query)
		}
	}
	if im.AnsweredBy() != r.mirrors[0].Host() {
		t.Errorf("answered by %q", im.AnsweredBy())
	}
	if want := r.origin.Host() + "/team/app@"; !strings.HasPrefix(im.Name, want) {
		t.Errorf("the image is called %s", im.Name)
	}
}

// TestOriginAway: what mirrors have can be had without the registry.
func TestOriginAway(t *testing.T) {
	r := newRing(t, 1)
	r.origin.Use(registrytest.Status(503, -1))
	_, b := r.open()
	wantRange(t, b, r.blob, 5, 100_000)
}

// TestMirrorFails: whatever a mirror does, the registry is asked; and the mirror is left alone for a while.
func TestMirrorFails(t *testing.T) {
	tests := map[string]struct {
		fault registrytest.Fault
		asked int // for the layer
	}{
		"away":                {registrytest.Status(503, -1), 0},
		"refuses":             {registrytest.Status(403, -1), 0},
		"asks for a password": {registrytest.Basic("u", "p"), 0},
		"lacks all":           {registrytest.Status(404, -1), 1},
		"cuts":                {registrytest.Outage(yes()), 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, 1)
			r.mirrors[0].Use(tt.fault)
			_, b := r.open()
			for i := range int64(20) {
				wantRange(t, b, r.blob, i*1000, 1000)
			}
			r.wantAsked("/blobs/"+b.desc.Digest.String(), 20, tt.asked)
		})
	}
}

// TestMirrorGone: nobody listens there.
func TestMirrorGone(t *testing.T) {
	r := newRing(t, 1)
	r.mirrors[0].Close()
	_, b := r.open()
	wantRange(t, b, r.blob, 0, 100_000)
	if text := r.said.String(); strings.Count(text, "a host fails") != 1 {
		t.Errorf("the log:\n%s", text)
	}
}

// TestMirrorComesBack: after its rest a mirror is asked again, by one reader.
func TestMirrorComesBack(t *testing.T) {
	r := newRing(t, 1)
	r.mirrors[0].Use(registrytest.Status(503, -1))
	im, b := r.open()
	wantRange(t, b, r.blob, 0, 1000)
	m := im.src.(*recorded).inner.(*mirrored).hosts[0]
	wake := func() {
		m.mu.Lock()
		m.until = time.Now()
		m.mu.Unlock()
		r.mirrors[0].Reset()
		readAtOnce(t, b, r.blob, 16)
	}
	wake()
	if n := len(r.mirrors[0].Log()); n != 1 {
		t.Errorf("a mirror that is still away was asked %d times", n)
	}
	if m.fails != 2 {
		t.Errorf("%d failures are remembered", m.fails)
	}
	r.mirrors[0].Heal()
	wake()
	r.origin.Reset()
	readAtOnce(t, b, r.blob, 16)
	r.wantAsked("/blobs/", 0, -1)
}

// TestMirrorLacks: a mirror without the manifest, or without one blob, is passed over for that.
func TestMirrorLacks(t *testing.T) {
	r := newRing(t, 1)
	r.mirrors[0].Use(registrytest.On(registrytest.Manifests, registrytest.Status(404, -1)))
	_, b := r.open()
	wantRange(t, b, r.blob, 0, 1000)
	r.wantAsked("/blobs/"+b.desc.Digest.String(), 0, -1)

	r = newRing(t, 1)
	r.mirrors[0].Use(registrytest.On(ofDigest(registrytest.Blobs, r), registrytest.Status(404, -1)))
	_, b = r.open()
	for i := range int64(5) {
		wantRange(t, b, r.blob, i, 1000)
	}
	r.wantAsked("/blobs/"+b.desc.Digest.String(), 5, 1)
	r.wantAsked("/manifests/", 0, -1)
}

// ofDigest matches requests for the layer.
func ofDigest(match func(*http.Request) bool, r *ring) func(*http.Request) bool {
	d := verifiable(r.blob).String()
	return func(q *http.Request) bool { return match(q) && strings.Contains(q.URL.Path, d) }
}

// TestMirrorCutInBody: a read goes on at the next host with a range for the rest.
func TestMirrorCutInBody(t *testing.T) {
	r := newRing(t, 2)
	r.mirrors[0].Use(registrytest.On(ofDigest(registrytest.Blobs, r), registrytest.ShortBody(200_000)))
	r.mirrors[1].Use(registrytest.On(ofDigest(registrytest.Blobs, r), registrytest.ShortBody(100_000)))
	_, b := r.open()
	wantRange(t, b, r.blob, 0, int64(len(r.blob)))
	r.wantAsked("/blobs/"+b.desc.Digest.String(), 1, 1, 1)
	for i, want := range []string{"bytes=200000-599999", "bytes=300000-599999"} {
		s := []*registrytest.Server{r.mirrors[1], r.origin}[i]
		log := s.Log()
		if got := log[len(log)-1].Range; got != want {
			t.Errorf("host %d was asked for %q, want %q", i+1, got, want)
		}
	}
}

// TestWrongManifest: a manifest that has not its digest is had from the next host, by tag and by digest, and so is a config.
func TestWrongManifest(t *testing.T) {
	r := newRing(t, 1)
	plain := mustOpen(t, r.ref(), r.options())
	for _, d := range []digest.Digest{plain.Desc.Digest, plain.Manifest.Config.Digest} {
		r.mirrors[0].Heal()
		r.mirrors[0].Use(registrytest.Corrupt(d, 10))
		for _, ref := range []string{r.ref(), r.origin.Host() + "/team/app@" + plain.Desc.Digest.String()} {
			im := mustOpen(t, ref, r.options())
			if !bytes.Equal(im.RawConfig, plain.RawConfig) || !bytes.Equal(im.RawManifest, plain.RawManifest) {
				t.Errorf("%s: other bytes", ref)
			}
		}
		r.origin.Use(registrytest.Corrupt(d, 12))
		if _, err := Open(t.Context(), r.ref(), r.options()); !errors.Is(err, ErrIntegrity) {
			t.Errorf("wrong everywhere: %v", err)
		}
		r.origin.Heal()
	}
}

// TestDoubt: who is told that his bytes were wrong is not asked for them again, until all were wrong.
func TestDoubt(t *testing.T) {
	r := newRing(t, 1)
	_, b := r.open()
	read := func() io.ReadCloser {
		t.Helper()
		rc, err := b.ReadRange(t.Context(), 100, 100)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(rc); err != nil {
			t.Fatal(err)
		}
		_ = rc.Close()
		return rc
	}
	path := "/blobs/" + b.desc.Digest.String()
	if !doubt(read()) {
		t.Fatal("nobody else")
	}
	r.wantAsked(path, 0, 1)
	second := read()
	r.wantAsked(path, 1, 1)
	if text := r.said.String(); !strings.Contains(text, "wrong bytes") || !strings.Contains(text, r.mirrors[0].Host()) {
		t.Errorf("the log:\n%s", text)
	}
	if doubt(second) {
		t.Error("all were wrong, and there is another")
	}
	read()
	r.wantAsked(path, 1, 2)

	alone := remoteBlobOf(t, r.origin, r.blob)
	rc, err := alone.ReadRange(t.Context(), 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Close()
	if doubt(rc) {
		t.Error("a registry without mirrors has another host")
	}
}

// TestCopyFromWrongMirror: a whole blob that is wrong on a mirror is copied from the registry.
func TestCopyFromWrongMirror(t *testing.T) {
	for _, dest := range []string{"oci:DIR/x:1", "docker-archive:DIR/x.tar:x:1", "registry"} {
		r := newRing(t, 1)
		r.mirrors[0].Use(registrytest.Corrupt(verifiable(r.blob), 12345))
		to := strings.ReplaceAll(dest, "DIR", t.TempDir())
		if dest == "registry" {
			to = start(t, registrytest.Options{}).Host() + "/x:1"
		}
		mustCopy(t, r.ref(), to, CopyOptions{Options: r.options()})
		im := mustOpen(t, to, anonymous(t))
		wantRange(t, im.Blob(im.Manifest.Layers[0]), r.blob, 0, int64(len(r.blob)))
	}
}

// TestMirrorCredentials: each host gets what is filed under its own name, by the way that it asks for; the registry's go to no mirror.
func TestMirrorCredentials(t *testing.T) {
	r := newRing(t, 2)
	token := registrytest.Bearer("mirror", "mirrorpass")
	r.mirrors[0].Use(token.Wrap)
	r.mirrors[1].Use(registrytest.Basic("nobody", "knows"))
	r.origin.Use(registrytest.Basic("origin", "originpass"))
	o := r.options()
	o.AuthFile = writeFile(t, filepath.Join(t.TempDir(), "auth.json"), fmt.Sprintf(`{"auths":{%q:{"auth":"bWlycm9yOm1pcnJvcnBhc3M="},%q:{"auth":"b3JpZ2luOm9yaWdpbnBhc3M="}}}`,
		r.mirrors[0].Host(), r.origin.Host()), 0o600)
	im := mustOpen(t, r.ref(), o)
	b := im.Blob(im.Manifest.Layers[0])
	wantRange(t, b, r.blob, 0, 1000)
	r.wantAsked("", 0, -1, 0)

	r.mirrors[0].Use(registrytest.Status(503, -1))
	im = mustOpen(t, r.ref(), o)
	wantRange(t, im.Blob(im.Manifest.Layers[0]), r.blob, 0, 1000)
	r.wantAsked("/blobs/", -1, -1, 0)

	r.mu.Lock()
	defer r.mu.Unlock()
	const mirrorAuth, originAuth = "Basic bWlycm9yOm1pcnJvcnBhc3M=", "Basic b3JpZ2luOm9yaWdpbnBhc3M="
	if len(r.sent[r.mirrors[0].Host()]) == 0 || len(r.sent[r.origin.Host()]) == 0 || len(r.sent[r.mirrors[1].Host()]) != 0 {
		t.Errorf("credentials were sent: %v", r.sent)
	}
	for host, list := range r.sent {
		for _, auth := range list {
			if auth == originAuth && host != r.origin.Host() || host == r.origin.Host() && auth != originAuth || auth == mirrorAuth && host != r.mirrors[0].Host() {
				t.Errorf("%s was sent to %s", auth, host)
			}
		}
	}
}

// TestMirrorHeaders: what the configuration adds goes to its host and not to the storage that it redirects to.
func TestMirrorHeaders(t *testing.T) {
	r := newRing(t, 1)
	r.configure(fmt.Sprintf("[host.%q.header]\nX-Team = 'a'", r.mirrors[0].URL()))
	r.mirrors[0].Use(r.mirrors[0].SignedBlobs(time.Minute))
	seen := map[string][]string{}
	o := r.options()
	o.Wrap = func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			r.mu.Lock()
			seen[req.URL.Host] = append(seen[req.URL.Host], req.Header.Get("X-Team"))
			r.mu.Unlock()
			return next.RoundTrip(req)
		})
	}
	im := mustOpen(t, r.ref(), o)
	wantRange(t, im.Blob(im.Manifest.Layers[0]), r.blob, 0, 1000)
	if len(seen) != 2 {
		t.Errorf("hosts: %v", seen)
	}
	for host, values := range seen {
		for _, v := range values {
			if (v == "a") != (host == r.mirrors[0].Host()) {
				t.Errorf("%s got %q", host, v)
			}
		}
	}
}

// TestMirrorAbilities: a mirror that may only be pulled from is not asked what a tag means, and nothing is pushed to it.
func TestMirrorAbilities(t *testing.T) {
	r := newRing(t, 1)
	r.configure("capabilities = ['pull']")
	_, b := r.open()
	wantRange(t, b, r.blob, 0, 1000)
	r.wantAsked("/manifests/1", 1, 0)
	r.wantAsked("/blobs/", 0, -1)
	mustCopy(t, r.ref(), r.origin.Host()+"/team/new:1", CopyOptions{Options: r.options()})
	if n := r.mirrors[0].Total("PUT", "").Requests + r.mirrors[0].Total("POST", "").Requests; n != 0 {
		t.Errorf("%d pushes to a mirror", n)
	}
	r.configure("capabilities = ['pull', 'resolve', 'push']")
	r.mirrors[0].Reset()
	mustCopy(t, r.ref(), r.origin.Host()+"/team/newer:1", CopyOptions{Options: r.options()})
	if r.mirrors[0].Total("PUT", "/manifests/").Requests != 1 || r.origin.Total("PUT", "newer").Requests != 0 {
		t.Error("the host for pushes was not pushed to")
	}
}

// TestRegistriesConf: mirrors of podman's file, one of them for digests, and what is blocked.
func TestRegistriesConf(t *testing.T) {
	r := newRing(t, 2)
	r.mirrors[0].PushImage("cache/team/app:1", image(r.blob))
	conf := func(text string) {
		t.Setenv("CONTAINERS_REGISTRIES_CONF", writeFile(t, filepath.Join(t.TempDir(), "registries.conf"), text, 0o600))
	}
	conf(fmt.Sprintf("[[registry]]\nlocation=%q\n[[registry.mirror]]\nlocation=%q\npull-from-mirror='digest-only'\n[[registry.mirror]]\nlocation=%q\npull-from-mirror='tag-only'",
		r.origin.Host(), r.mirrors[0].Host()+"/cache", r.mirrors[1].Host()))
	o := r.options()
	o.HostsDir = ""
	im := mustOpen(t, r.ref(), o)
	wantRange(t, im.Blob(im.Manifest.Layers[0]), r.blob, 0, 1000)
	r.wantAsked("/manifests/1", 0, 0, 1)
	r.wantAsked("/v2/cache/team/app/blobs/", 0, -1, 0)
	for _, s := range r.mirrors {
		s.Reset()
	}
	mustOpen(t, r.origin.Host()+"/team/app@"+im.Desc.Digest.String(), o)
	r.wantAsked("/manifests/", 0, 1, 0)

	conf(fmt.Sprintf("[[registry]]\nprefix='%s/team'\nblocked=true", r.origin.Host()))
	if _, err := Open(t.Context(), r.ref(), o); err == nil || !strings.Contains(err.Error(), "blocked in ") {
		t.Errorf("blocked: %v", err)
	}
	conf("[[registry]]")
	if _, err := Open(t.Context(), r.ref(), o); err == nil || !strings.Contains(err.Error(), "registries.conf: malformed") {
		t.Errorf("malformed: %v", err)
	}
}

// TestAllHostsAway: readers wait while no host answers, and no longer than one does not.
func TestAllHostsAway(t *testing.T) {
	r := newRing(t, 1)
	o := r.options()
	o.Wait = time.Minute
	im := mustOpen(t, r.ref(), o)
	hastenMirrors(im)
	b := im.Blob(im.Manifest.Layers[0])
	wantRange(t, b, r.blob, 0, 1000)
	r.mirrors[0].Use(registrytest.Status(503, -1))
	wantRange(t, b, r.blob, 0, 1000)
	if !im.AwaySince().IsZero() {
		t.Error("one host is away, and all are said to be")
	}
	r.origin.Use(registrytest.Status(503, -1))
	done := make(chan error, 1)
	go func() {
		_, err := readRange(t.Context(), b, 0, 1000)
		done <- err
	}()
	for begun := time.Now(); im.AwaySince().IsZero(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > 30*time.Second {
			t.Fatal("nobody knows that all are away")
		}
	}
	r.mirrors[0].Heal()
	if err := <-done; err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	r.mirrors[0].Use(registrytest.Status(503, -1))
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := readRange(ctx, b, 0, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves: %v", err)
	}
}

// yes is always true.
func yes() *atomic.Bool {
	b := new(atomic.Bool)
	b.Store(true)
	return b
}

package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// refuse answers requests of uploads that match with a status.
func refuse(code int, match func(*http.Request) bool) registrytest.Fault {
	return registrytest.On(func(r *http.Request) bool { return registrytest.Uploads(r) && match(r) }, registrytest.Status(code, -1))
}

func withBody(r *http.Request) bool { return r.ContentLength != 0 }

// secondPart is a request that goes on with an upload.
func secondPart(r *http.Request) bool {
	return r.Method == http.MethodPatch && r.Header.Get("Content-Range") != "" && !strings.HasPrefix(r.Header.Get("Content-Range"), "0-")
}

func isGet(r *http.Request) bool { return r.Method == http.MethodGet }

// expiring makes all tokens worthless in the middle of uploads, now and then.
func expiring(a *registrytest.TokenAuth) registrytest.Fault {
	const often = 300 * time.Millisecond // a client must get a request through with a new one
	return func(next http.Handler) http.Handler {
		var last atomic.Int64
		return a.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			now, then := time.Now().UnixNano(), last.Load()
			if registrytest.Uploads(r) && withBody(r) && now-then > int64(often) && last.CompareAndSwap(then, now) {
				a.ExpireTokens()
			}
			next.ServeHTTP(w, r)
		}))
	}
}

// TestUploadFaults: a registry and a link that do what they can, and a push of a layer
// of several chunks, written once, and of a base from elsewhere, that ends right.
func TestUploadFaults(t *testing.T) {
	const mib = 1 << 20
	for name, faults := range map[string][]registrytest.Fault{
		"cut at every megabyte":        {registrytest.CutUploads(mib)},
		"cut, and the upload is lost":  {registrytest.CutUploads(mib), refuse(404, isGet)},
		"cut, and it cannot tell":      {registrytest.CutUploads(2 * mib), refuse(405, isGet)},
		"one cut":                      {registrytest.On(registrytest.Uploads, registrytest.Times(3, registrytest.CutUploads(100_000)))},
		"429":                          {registrytest.On(withBody, registrytest.Status(429, 2, "Retry-After", "1"))},
		"503":                          {registrytest.On(withBody, registrytest.Status(503, 3))},
		"tokens expire":                {expiring(registrytest.Bearer("user", "secret"))},
		"tokens expire, cut":           {registrytest.CutUploads(3 * mib), expiring(registrytest.Bearer("user", "secret"))},
		"no second chunk":              {refuse(416, secondPart)},
		"no second chunk, 405":         {refuse(405, secondPart)},
		"no body without a length":     {refuse(411, func(r *http.Request) bool { return r.ContentLength < 0 })},
		"no body of more than 1 MB":    {refuse(413, func(r *http.Request) bool { return r.ContentLength > 1_000_000 || r.ContentLength < 0 })},
		"answers without a place":      {noHeaders("Range")},
		"no second chunk, lost answer": {refuse(416, secondPart), registrytest.On(func(r *http.Request) bool { return r.Method == http.MethodPut && registrytest.Uploads(r) }, lostAnswer())},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old, fresh := noise(9_000_001), noise(20_000_001)
			from, to := start(t, registrytest.Options{}), start(t, registrytest.Options{})
			from.PushImage("base:1", image(old))
			to.Use(faults...)
			o := pushOptions(t, fresh)
			o.AuthFile = authFile(t, to.Host(), "user", "secret")
			base := mustOpen(t, from.Host()+"/base:1", o.Options)
			wantPushed(t, mustPush(t, base, to.Host()+"/app:1", o), base, old, fresh)
			if n := to.OpenUploads(); n != 0 {
				t.Errorf("%d uploads were left open", n)
			}
		})
	}
}

// noHeaders takes a header out of every answer.
func noHeaders(name string) registrytest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&headerless{w, name}, r)
		})
	}
}

type headerless struct {
	http.ResponseWriter
	name string
}

func (h *headerless) WriteHeader(code int) {
	if h.Header().Get("Docker-Upload-UUID") != "" {
		h.Header().Del(h.name)
	}
	h.ResponseWriter.WriteHeader(code)
}

// TestUploadLostLate: an upload that is lost when its first chunks are gone is written
// anew, if it can be; if not, the push fails and leaves nothing.
func TestUploadLostLate(t *testing.T) {
	for _, repeatable := range []bool{true, false} {
		s := start(t, registrytest.Options{})
		base := mustOpen(t, "oci:"+writeLayout(t, map[string]string{"v1": "layer"})+":v1", anonymous(t))
		var n atomic.Int64
		s.Use(registrytest.On(secondPart, registrytest.On(func(*http.Request) bool { return n.Add(1) == 3 }, registrytest.CutUploads(1<<20))), refuse(404, isGet))
		fresh := noise(4*chunkSize + 1)
		o := pushOptions(t, fresh)
		o.Layer.Repeatable = repeatable
		if repeatable {
			wantPushed(t, mustPush(t, base, s.Host()+"/app:1", o), base, []byte("layer"), fresh)
		} else if _, _, err := Push(t.Context(), base, s.Host()+"/app:1", o); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "lost") {
			t.Errorf("%v", err)
		} else if _, err := Open(t.Context(), s.Host()+"/app:1", anonymous(t)); !errors.Is(err, ErrNotFound) {
			t.Errorf("the tag after it: %v", err)
		}
		if n := s.OpenUploads(); n != 0 {
			t.Errorf("%d uploads were left open", n)
		}
	}
}

// TestPushKilled: a push that is cancelled between two chunks leaves the tag where it
// was, and no upload.
func TestPushKilled(t *testing.T) {
	s := start(t, registrytest.Options{})
	before := s.PushImage("app:1", image([]byte("old")))
	base := mustOpen(t, s.Host()+"/app:1", anonymous(t))
	ctx, cancel := context.WithCancel(t.Context())
	o := pushOptions(t, nil)
	o.Layer = &NewLayer{Write: func(ctx context.Context, w io.Writer) (ocispec.Descriptor, digest.Digest, error) {
		_, err := w.Write(noise(2*chunkSize + 5))
		cancel()
		<-ctx.Done()
		return ocispec.Descriptor{}, "", errors.Join(err, ctx.Err())
	}}
	if _, _, err := Push(ctx, base, s.Host()+"/app:1", o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if im := mustOpen(t, s.Host()+"/app:1", anonymous(t)); im.Desc.Digest != before.Digest {
		t.Error("the tag has moved")
	}
	if n := s.OpenUploads(); n != 0 {
		t.Errorf("%d uploads were left open", n)
	}
}

// A cutter breaks every request with a body after so many bytes of it, as a link
// that never lasts.
type cutter struct{ after int64 }

func (c *cutter) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.ContentLength > c.after || req.ContentLength < 0 {
		req = req.Clone(req.Context())
		req.Body = &cutBody{req.Body, c.after}
		req.GetBody = nil
	}
	return http.DefaultTransport.RoundTrip(req)
}

type cutBody struct {
	io.ReadCloser
	left int64
}

var errCut = errors.New("cut")

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errCut
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// TestDistributionCut: the registry that most people run gives up an upload that was cut.
func TestDistributionCut(t *testing.T) {
	host := distribution(t)
	old, fresh := noise(5_000_000), noise(20_000_001)
	base := mustOpen(t, "oci:"+writeLayout(t, map[string]string{"v1": string(old)})+":v1", anonymous(t))
	o := pushOptions(t, fresh)
	o.Transport = &cutter{after: 1 << 20}
	wantPushed(t, mustPush(t, base, host+"/app:1", o), base, old, fresh)
}

package registry

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A remote is the source of images in a registry.
type remote struct {
	ref   Ref
	o     Options
	cl    *client
	scope string
}

func newRemote(r Ref, o Options) (source, error) {
	rec := records{o.Records, o.logger()}
	if o.Offline {
		return &recorded{ref: r, rec: rec}, nil
	}
	cl, err := newClient(r, o)
	if err != nil {
		return nil, err
	}
	rm := &remote{ref: r, o: o, cl: cl, scope: pullScope(r.Repo)}
	return &recorded{ref: r, rec: rec, inner: rm, stale: o.Stale}, nil
}

// Scopes of the distribution token authentication specification.
func pullScope(repo string) string { return "repository:" + repo + ":pull" }
func pushScope(repo string) string { return "repository:" + repo + ":pull,push" }

func (s *remote) close() error {
	s.cl.close()
	return nil
}

// resolve asks for the manifest behind the tag or digest of the reference.
func (s *remote) resolve(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	name := s.ref.Tag
	if s.ref.Digest != "" {
		name = s.ref.Digest.String()
	}
	var d ocispec.Descriptor
	var raw []byte
	err := s.cl.backoff.retry(ctx, s.cl.log, func() error {
		body, err := s.getManifest(ctx, name)
		if err != nil {
			return err
		}
		defer func() { _ = body.Close() }()
		if raw, err = readAll(body, maxManifest); err != nil {
			return err
		}
		d, err = describe(body.resp.Header, raw, s.ref.Digest)
		return err
	})
	return d, raw, err
}

// describe checks a manifest against the digest it was asked for by, or else
// the one that the registry names, and returns its descriptor.
func describe(h http.Header, raw []byte, want digest.Digest) (ocispec.Descriptor, error) {
	if want == "" {
		want = digest.Digest(h.Get("Docker-Content-Digest"))
	}
	if want.Validate() != nil {
		want = digest.FromBytes(raw)
	}
	d := ocispec.Descriptor{MediaType: h.Get("Content-Type"), Digest: want, Size: int64(len(raw))}
	return d, verify(want, raw)
}

// manifest opens a manifest that an index names.
func (s *remote) manifest(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	var rc io.ReadCloser
	err := s.cl.backoff.retry(ctx, s.cl.log, func() error {
		body, err := s.getManifest(ctx, d.Digest.String())
		rc = body
		return err
	})
	return rc, err
}

// getManifest requests one manifest.
func (s *remote) getManifest(ctx context.Context, name string) (*body, error) {
	path, h := s.ref.Repo+"/manifests/"+name, http.Header{"Accept": {acceptManifests}}
	if b, err := s.meet(ctx, path, h); b != nil || err != nil {
		return b, err
	}
	b, _, err := s.open(ctx, s.cl.endpoint(path, nil), h, new(counter))
	return b, err
}

// meet is connect with a request that is wanted anyhow in place of the question. It
// returns nil when the registry was known, or gave no answer that is of use beyond that.
func (s *remote) meet(ctx context.Context, path string, h http.Header) (*body, error) {
	cfg, err := s.cl.creds.get()
	if err != nil {
		return nil, err
	}
	if cfg != (authn.AuthConfig{}) {
		// Some registries show strangers a 404 where they would ask friends for a name.
		return nil, s.cl.connect(ctx)
	}
	own, w := newWatch(ctx, headerTimeout)
	first := &firstRequest{inner: s.cl.http, ctx: own, path: "/v2/" + path, header: h, answers: map[string]*http.Response{}}
	err = s.cl.connectVia(ctx, first)
	scheme := ""
	if err == nil {
		scheme = s.cl.endpoint("", nil).Scheme
	}
	resp := first.answer(scheme)
	if err != nil || resp == nil {
		w.stop()
		return nil, err
	}
	w.limit = stallTimeout
	w.idle()
	return newBody(resp, w, new(counter)), nil
}

// open requests u and returns its content, watched, and where it was found.
func (s *remote) open(ctx context.Context, u *url.URL, h http.Header, count *counter) (*body, *url.URL, error) {
	own, w := newWatch(ctx, headerTimeout)
	resp, loc, err := s.get(own, u, h, count)
	if err != nil {
		err = s.cl.explain(w.explain(err))
		w.stop()
		return nil, nil, err
	}
	w.limit = stallTimeout
	w.idle()
	return newBody(resp, w, count), loc, nil
}

// get requests u, redirects included, and accepts a 200 or, where a range was
// asked for, a 206.
func (s *remote) get(ctx context.Context, u *url.URL, h http.Header, count *counter) (*http.Response, *url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header = h.Clone()
	req.Header.Set("Accept-Encoding", "identity")
	resp, loc, err := s.cl.get(req, count, s.scope)
	if err == nil && resp.StatusCode != http.StatusOK && (resp.StatusCode != http.StatusPartialContent || h.Get("Range") == "") {
		err = s.cl.statusError(resp)
	}
	return resp, loc, err
}

func (s *remote) blob(d ocispec.Descriptor, c *counter) ranger {
	return &remoteBlob{src: s, desc: d, count: c, lookup: make(chan struct{}, 1)}
}

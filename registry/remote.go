package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/layerfs/layerfs/registry/hosts"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A remote is the source of images in a registry, or on a mirror of it.
type remote struct {
	ref   Ref // with the repository's name there
	o     Options
	cl    *client
	scope string
}

// newRemote returns the source of an image in a registry, wherever its configuration has it.
func newRemote(r Ref, o Options) (source, error) {
	rec := records{o.Records, o.logger()}
	if o.Offline {
		return &recorded{ref: r, rec: rec}, nil
	}
	list, err := findHosts(r, o, hosts.Resolve|hosts.Pull)
	if err != nil {
		return nil, err
	}
	var inner source
	if len(list) == 1 {
		inner, err = newRemoteAt(list[0], r, o)
	} else {
		inner, err = newMirrored(list, r, o)
	}
	if err != nil {
		return nil, err
	}
	return &recorded{ref: r, rec: rec, inner: inner, stale: o.Stale}, nil
}

// findHosts returns the hosts that can do any of what is asked for, in their order.
func findHosts(r Ref, o Options, can hosts.Abilities) ([]hosts.Host, error) {
	list, err := hosts.Find(hosts.Name{Host: r.Host, Repo: r.Repo, Tagged: r.Digest == ""}, hosts.Options{Dir: o.HostsDir, Log: o.Logger})
	if errors.Is(err, hosts.ErrBlocked) {
		return nil, faultf(nil, "the registry %s is %w", r.Host, err)
	}
	if err != nil {
		return nil, faultf(nil, "find the hosts of %s: %w", r.Host, err)
	}
	list = slices.DeleteFunc(list, func(h hosts.Host) bool { return h.Can&can == 0 })
	if len(list) == 0 {
		return nil, faultf(nil, "no host of %s may be asked for that", r.Host).withHint("look at the capabilities in its hosts.toml")
	}
	return list, nil
}

func newRemoteAt(at hosts.Host, r Ref, o Options) (*remote, error) {
	cl, err := newClient(at, o)
	if err != nil {
		return nil, err
	}
	r.Repo = at.Repo
	return &remote{ref: r, o: o, cl: cl, scope: pullScope(scopeRepo(at))}, nil
}

// scopeRepo is what a host calls a repository where it gives tokens for it: what is behind /v2/ in the
// address belongs to the name (proxies that keep each registry below a name of its own).
func scopeRepo(at hosts.Host) string {
	if below, ok := strings.CutPrefix(at.Root, "/v2/"); ok {
		return below + "/" + at.Repo
	}
	return at.Repo
}

// Scopes of the distribution token authentication specification.
func pullScope(repo string) string { return "repository:" + repo + ":pull" }
func pushScope(repo string) string { return "repository:" + repo + ":pull,push" }

func (s *remote) close() error {
	s.cl.close()
	return nil
}

// resolve asks for the manifest behind the tag or digest of the reference.
func (s *remote) resolve(ctx context.Context) (d ocispec.Descriptor, raw []byte, err error) {
	err = s.cl.backoff.retry(ctx, s.cl.log, func() error {
		d, raw, err = s.resolveOnce(ctx)
		return err
	})
	return d, raw, err
}

func (s *remote) resolveOnce(ctx context.Context) (d ocispec.Descriptor, raw []byte, err error) {
	name := s.ref.Tag
	if s.ref.Digest != "" {
		name = s.ref.Digest.String()
	}
	body, err := s.getManifest(ctx, name)
	if err != nil {
		return d, nil, err
	}
	defer func() { _ = body.Close() }()
	if raw, err = readAll(body, maxManifest); err != nil {
		return d, nil, err
	}
	d, err = describe(body.resp.Header, raw, s.ref.Digest)
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
	own, w := newWatch(ctx, s.cl.patient)
	first := &firstRequest{inner: s.cl.http, ctx: own, path: s.cl.at.Root + "/" + path, header: h, answers: map[string]*http.Response{}}
	if s.cl.at.NS != "" {
		first.query = url.Values{"ns": {s.cl.at.NS}}.Encode()
	}
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
	own, w := newWatch(ctx, s.cl.patient)
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

func (s *remote) blob(d ocispec.Descriptor, c *counter) ranger { return s.remoteBlob(d, c) }

func (s *remote) remoteBlob(d ocispec.Descriptor, c *counter) *remoteBlob {
	return &remoteBlob{src: s, desc: d, count: c, lookup: make(chan struct{}, 1)}
}

func (s *remote) waiter() *waiter { return &waiter{o: s.cl.outage, b: s.cl.backoff} }

package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"

	"github.com/layerfs/layerfs/registry/hosts"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A remoteSink writes to a repository of a registry (distribution-spec,
// "Pushing Blobs" and "Pushing Manifests").
type remoteSink struct {
	ref   Ref
	cl    *client
	scope string

	unchunked atomic.Bool  // the registry takes a blob in one request only
	wary      atomic.Bool  // a request was cut, perhaps because of a refusal that nobody read: ask before the body is sent
	piece     atomic.Int64 // how much of a blob goes into a request that is not all of it
}

func newRemoteSink(ctx context.Context, r Ref, o Options) (sink, error) {
	if o.Offline {
		return nil, faultf(ErrOffline, "a registry cannot be written to while offline")
	}
	list, err := findHosts(r, o, hosts.Push)
	if err != nil {
		return nil, err
	}
	cl, err := newClient(list[0], o)
	if err != nil {
		return nil, err
	}
	r.Repo = list[0].Repo
	s := &remoteSink{ref: r, cl: cl, scope: pushScope(scopeRepo(list[0]))}
	s.piece.Store(chunkSize)
	return s, cl.connect(ctx)
}

func (s *remoteSink) close() { s.cl.close() }

// parallel keeps below the number of connections that CDNs allow a client.
func (s *remoteSink) parallel() int { return 4 }

// call sends a request whose body can be had twice, and expects one of the statuses.
func (s *remoteSink) call(ctx context.Context, method string, u *url.URL, contentType string, body []byte, scopes []string, want ...int) (*http.Response, error) {
	own, w := newWatch(ctx, commitTimeout)
	defer w.stop()
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(own, method, u.String(), r)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := s.cl.do(req, scopes...)
	return s.expect(resp, w.explain(err), want...)
}

// expect closes the response; its headers are what is wanted of it.
func (s *remoteSink) expect(resp *http.Response, err error, want ...int) (*http.Response, error) {
	if err != nil {
		return nil, s.cl.explain(err)
	}
	for _, status := range want {
		if resp.StatusCode == status {
			discard(resp)
			return resp, nil
		}
	}
	return resp, s.cl.statusError(resp)
}

// exists asks for a blob. A registry that redirects the question has it too;
// one that refuses to answer gets an upload it may not need.
func (s *remoteSink) exists(ctx context.Context, d digest.Digest) (bool, error) {
	_, err := s.call(ctx, http.MethodHead, s.cl.endpoint(s.ref.Repo+"/blobs/"+d.String(), nil), "", nil, []string{s.scope},
		http.StatusOK, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect)
	var f *fault
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, ErrUnauthorized), !errors.As(err, &f), f.status == 0, temporaryStatus(f.status):
		return false, err
	}
	return false, nil
}

// mount asks the registry to take a blob from another of its repositories. It
// returns an upload when the registry would rather have the bytes, and none when
// it said no: the bytes are the way then too.
func (s *remoteSink) mount(ctx context.Context, d digest.Digest, from string) (up *upload, mounted bool) {
	q := url.Values{"mount": {d.String()}, "from": {from}}
	up, mounted, err := s.post(ctx, q, []string{s.scope, pullScope(from)})
	if err != nil {
		s.cl.log.Debug("mount refused", "blob", d, "from", from, "error", err)
	}
	return up, mounted
}

// copy looks for the blob, mounts it, or streams it through, in this order.
func (s *remoteSink) copy(ctx context.Context, base *Image, d ocispec.Descriptor, progress func(Progress)) error {
	state := func(text string) { progress(Progress{Blob: d.Digest, State: text, Total: d.Size}) }
	if IsForeign(d.MediaType) {
		state("skipped")
		return nil
	}
	tryMount := base.ref.Transport == transportDocker && base.ref.Host == s.ref.Host
	return s.cl.backoff.retry(ctx, s.cl.log, func() error {
		have, err := s.exists(ctx, d.Digest)
		if err != nil {
			return err
		}
		if have {
			state("exists")
			return nil
		}
		var up *upload
		if tryMount {
			tryMount = false
			mounted := false
			if up, mounted = s.mount(ctx, d.Digest, base.ref.Repo); mounted {
				state("mounted")
				return nil
			}
		}
		return s.sendBlob(ctx, up, base, d, progress)
	})
}

// create uploads a blob whose digest is known when its last byte is.
func (s *remoteSink) create(ctx context.Context, repeatable bool, write blobWriter) (ocispec.Descriptor, error) {
	if !repeatable {
		return s.sendNew(ctx, write)
	}
	var d ocispec.Descriptor
	err := s.cl.backoff.retry(ctx, s.cl.log, func() (err error) {
		d, err = s.sendNew(ctx, write)
		return err
	})
	return d, err
}

// commit puts the manifest under the tag.
func (s *remoteSink) commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	_, err := s.putManifest(ctx, s.ref.Tag, d, raw)
	return err
}

// manifest puts a manifest under its digest.
func (s *remoteSink) manifest(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	_, err := s.putManifest(ctx, d.Digest.String(), d, raw)
	return err
}

// putManifest puts a manifest under a tag or its digest. listed tells that the registry has
// it among the referrers of its subject (distribution-spec, "Pushing Manifests with Subject").
func (s *remoteSink) putManifest(ctx context.Context, name string, d ocispec.Descriptor, raw []byte) (listed bool, err error) {
	u := s.cl.endpoint(s.ref.Repo+"/manifests/"+name, nil)
	err = s.cl.backoff.retry(ctx, s.cl.log, func() error {
		resp, err := s.call(ctx, http.MethodPut, u, d.MediaType, raw, []string{s.scope}, http.StatusCreated, http.StatusOK, http.StatusAccepted)
		if err != nil {
			return err
		}
		if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != d.Digest.String() {
			return faultf(ErrIntegrity, "%s stored the manifest as %s instead of %s", s.cl.host, oneLine(got), d.Digest)
		}
		listed = resp.Header.Get("OCI-Subject") != ""
		return nil
	})
	return listed, err
}

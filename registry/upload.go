package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A remoteSink writes to a repository of a registry (distribution-spec,
// "Pushing Blobs" and "Pushing Manifests").
type remoteSink struct {
	ref   Ref
	cl    *client
	scope string
}

func newRemoteSink(ctx context.Context, r Ref, o Options) (sink, error) {
	if o.Offline {
		return nil, faultf(ErrOffline, "a registry cannot be written to while offline")
	}
	cl, err := newClient(r, o)
	if err != nil {
		return nil, err
	}
	s := &remoteSink{r, cl, pushScope(r.Repo)}
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

// begin opens an upload and returns where to send it.
func (s *remoteSink) begin(ctx context.Context) (*url.URL, error) {
	resp, err := s.call(ctx, http.MethodPost, s.cl.endpoint(s.ref.Repo+"/blobs/uploads/", nil), "", nil, []string{s.scope},
		http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return nil, err
	}
	return uploadLocation(resp)
}

func uploadLocation(resp *http.Response) (*url.URL, error) {
	loc := resp.Header.Get("Location")
	u, err := resp.Request.URL.Parse(loc)
	if loc == "" || err != nil {
		return nil, faultf(ErrUnreachable, "%s: an upload without a valid address", resp.Request.URL.Host)
	}
	return u, nil
}

// mount asks the registry to take a blob from another of its repositories. It
// returns the address of an upload when the registry would rather have the
// bytes, and none when it said no: the bytes are the way then too.
func (s *remoteSink) mount(ctx context.Context, d digest.Digest, from string) (upload *url.URL, mounted bool) {
	q := url.Values{"mount": {d.String()}, "from": {from}}
	u := s.cl.endpoint(s.ref.Repo+"/blobs/uploads/", q)
	resp, err := s.call(ctx, http.MethodPost, u, "", nil, []string{s.scope, pullScope(from)}, http.StatusCreated, http.StatusAccepted)
	if err == nil && resp.StatusCode == http.StatusCreated {
		return nil, true
	}
	if err == nil {
		upload, err = uploadLocation(resp)
	}
	if err != nil {
		s.cl.log.Debug("mount refused", "blob", d, "from", from, "error", err)
	}
	return upload, false
}

// copy looks for the blob, mounts it, or streams it through, in this order.
func (s *remoteSink) copy(ctx context.Context, base *Image, d ocispec.Descriptor, progress func(Progress)) error {
	state := func(text string) { progress(Progress{Blob: d.Digest, State: text, Total: d.Size}) }
	if isForeign(d.MediaType) {
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
		var upload *url.URL
		if tryMount {
			tryMount = false
			mounted := false
			if upload, mounted = s.mount(ctx, d.Digest, base.ref.Repo); mounted {
				state("mounted")
				return nil
			}
		}
		return s.stream(ctx, upload, func(ctx context.Context, w io.Writer) (ocispec.Descriptor, error) {
			return d, copyBlob(ctx, w, base, d, progress)
		})
	})
}

// create uploads a blob whose digest is known when its last byte is.
func (s *remoteSink) create(ctx context.Context, repeatable bool, write blobWriter) (ocispec.Descriptor, error) {
	var d ocispec.Descriptor
	once := func() error {
		return s.stream(ctx, nil, func(ctx context.Context, w io.Writer) (ocispec.Descriptor, error) {
			got, err := write(ctx, w)
			d = got
			return got, err
		})
	}
	var err error
	if repeatable {
		err = s.cl.backoff.retry(ctx, s.cl.log, once)
	} else {
		err = once()
	}
	return d, err
}

// stream sends what write writes in one PATCH of unknown length, as docker does
// (not every registry takes several), and closes the upload with the digest.
func (s *remoteSink) stream(ctx context.Context, upload *url.URL, write blobWriter) error {
	if upload == nil {
		err := s.cl.backoff.retry(ctx, s.cl.log, func() (err error) {
			upload, err = s.begin(ctx)
			return err
		})
		if err != nil {
			return err
		}
	}
	d, next, err := s.patch(ctx, upload, write)
	if err != nil {
		s.cancel(ctx, upload)
		return err
	}
	return s.finish(ctx, next, d.Digest, nil)
}

// patch runs write beside the request that carries its bytes. Of two errors it
// returns the one that was first: write's own, or the registry's, which makes
// write fail with a closed pipe.
func (s *remoteSink) patch(ctx context.Context, upload *url.URL, write blobWriter) (ocispec.Descriptor, *url.URL, error) {
	own, w := newWatch(ctx, commitTimeout)
	defer w.stop()
	pr, pw := io.Pipe()
	var d ocispec.Descriptor
	var writeErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		d, writeErr = write(own, pw)
		_ = pw.CloseWithError(writeErr) // nil closes with EOF; it never fails
	}()
	req, err := http.NewRequestWithContext(own, http.MethodPatch, upload.String(), &sentBody{pr, w})
	var resp *http.Response
	if err == nil {
		req.Header.Set("Content-Type", octetStream)
		resp, err = s.cl.do(req, s.scope)
	}
	resp, err = s.expect(resp, w.explain(err), http.StatusAccepted, http.StatusNoContent, http.StatusCreated, http.StatusOK)
	_ = pr.CloseWithError(errSent) // lets a write go on that nobody reads any more
	<-done
	switch {
	case writeErr != nil && !errors.Is(writeErr, errSent) && !errors.Is(writeErr, io.ErrClosedPipe):
		return d, nil, &permanent{writeErr} // reading the base has had its tries
	case err != nil:
		return d, nil, err
	case writeErr != nil:
		return d, nil, faultf(ErrUnreachable, "%s: the upload was answered before its end", s.cl.host)
	}
	next, err := uploadLocation(resp)
	if err != nil {
		next = upload
	}
	return d, next, nil
}

var errSent = errors.New("the request is over")

// A sentBody is a request's body. The clock runs while the connection takes
// bytes, not while we make them.
type sentBody struct {
	r *io.PipeReader
	w *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.w.idle()
	n, err := b.r.Read(p)
	if err == nil {
		b.w.timer.Reset(stallTimeout)
	} else {
		b.w.progress()
	}
	return n, err
}

func (b *sentBody) Close() error { return b.r.CloseWithError(errSent) }

// finish closes an upload. An answer that got lost is looked up.
func (s *remoteSink) finish(ctx context.Context, upload *url.URL, d digest.Digest, body []byte) error {
	u := *upload
	q := u.Query()
	q.Set("digest", d.String())
	u.RawQuery = q.Encode()
	contentType := ""
	if body != nil {
		contentType = octetStream
	}
	again := false
	return s.cl.backoff.retry(ctx, s.cl.log, func() error {
		if again {
			if have, err := s.exists(ctx, d); have && err == nil {
				return nil
			}
		}
		again = true
		_, err := s.call(ctx, http.MethodPut, &u, contentType, body, []string{s.scope}, http.StatusCreated, http.StatusOK, http.StatusNoContent, http.StatusAccepted)
		return err
	})
}

// cancel tells the registry that an upload will not be closed. Registries clean
// up by themselves too.
func (s *remoteSink) cancel(ctx context.Context, upload *url.URL) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), stallTimeout)
	defer stop()
	_, err := s.call(ctx, http.MethodDelete, upload, "", nil, []string{s.scope}, http.StatusNoContent, http.StatusAccepted, http.StatusOK)
	if err != nil {
		s.cl.log.Debug("cancel upload", "error", err)
	}
}

// put uploads a small blob by POST and PUT.
func (s *remoteSink) put(ctx context.Context, d ocispec.Descriptor, b []byte) error {
	return s.cl.backoff.retry(ctx, s.cl.log, func() error {
		upload, err := s.begin(ctx)
		if err != nil {
			return err
		}
		return s.finish(ctx, upload, d.Digest, b)
	})
}

// commit puts the manifest under the tag.
func (s *remoteSink) commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	u := s.cl.endpoint(s.ref.Repo+"/manifests/"+s.ref.Tag, nil)
	return s.cl.backoff.retry(ctx, s.cl.log, func() error {
		resp, err := s.call(ctx, http.MethodPut, u, d.MediaType, raw, []string{s.scope}, http.StatusCreated, http.StatusOK, http.StatusAccepted)
		if err != nil {
			return err
		}
		if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != d.Digest.String() {
			return faultf(ErrIntegrity, "%s stored the manifest as %s instead of %s", s.cl.host, oneLine(got), d.Digest)
		}
		return nil
	})
}

package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// An upload is a blob on its way into a repository (distribution-spec, "Pushing
// Blobs"). After a cut the registry is asked how far it got.
type upload struct {
	s     *remoteSink
	url   *url.URL // where the next request goes; every answer names it anew
	off   int64    // bytes that the registry has
	least int64    // the smallest chunk that it takes, but for the last
}

// errLost says that a registry knows nothing of an upload any more, or not what it
// has of it: only a new one helps.
var errLost = errors.New("upload lost")

func (s *remoteSink) lost() error {
	return faultf(ErrUnreachable, "%s has lost an upload that was cut", s.cl.host).because(errLost)
}

// begin opens an upload.
func (s *remoteSink) begin(ctx context.Context) (up *upload, err error) {
	err = s.cl.backoff.retry(ctx, s.cl.log, func() error {
		resp, err := s.call(ctx, http.MethodPost, s.cl.endpoint(s.ref.Repo+"/blobs/uploads/", nil), "", nil, []string{s.scope},
			http.StatusAccepted, http.StatusCreated)
		if err == nil {
			up, err = s.opened(resp)
		}
		return err
	})
	return up, err
}

// opened returns the upload that the answer to a POST is about.
func (s *remoteSink) opened(resp *http.Response) (*upload, error) {
	u, err := uploadLocation(resp)
	if err != nil {
		return nil, err
	}
	least, _ := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64)
	return &upload{s: s, url: u, least: least}, nil
}

func uploadLocation(resp *http.Response) (*url.URL, error) {
	loc := resp.Header.Get("Location")
	u, err := resp.Request.URL.Parse(loc)
	if loc == "" || err != nil {
		return nil, faultf(ErrUnreachable, "%s: an upload without a valid address", resp.Request.URL.Host)
	}
	return u, nil
}

// moved takes the next address from an answer; some leave it out.
func (up *upload) moved(resp *http.Response) {
	if u, err := uploadLocation(resp); err == nil {
		up.url = u
	}
}

// sync asks how far the upload got (distribution-spec, "Get upload status"). The
// range is inclusive and an empty upload has "0-0", which is one byte too:
// that is no answer to build on.
func (up *upload) sync(ctx context.Context) error {
	resp, err := up.s.call(ctx, http.MethodGet, up.url, "", nil, []string{up.s.scope}, http.StatusNoContent, http.StatusOK, http.StatusAccepted)
	var f *fault
	if errors.As(err, &f) && f.status != 0 && !temporaryStatus(f.status) {
		return up.s.lost()
	}
	if err != nil {
		return err
	}
	n, ok := uploaded(resp)
	if !ok || n <= 1 {
		return up.s.lost()
	}
	up.moved(resp)
	up.off = n
	return nil
}

// uploaded reads the header Range of an answer about an upload: "0-LAST".
func uploaded(resp *http.Response) (n int64, ok bool) {
	_, last, found := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	return n + 1, found && err == nil && n >= 0
}

// patch appends b, however often the connection breaks on the way.
func (up *upload) patch(ctx context.Context, b []byte) error {
	start, cut := up.off, false
	return up.persist(ctx, func() error {
		if cut {
			if err := up.sync(ctx); err != nil {
				return err
			}
			if up.off < start || up.off > start+int64(len(b)) {
				return up.s.lost()
			}
		}
		cut = true
		if rest := b[up.off-start:]; len(rest) > 0 {
			return up.append(ctx, rest)
		}
		return nil
	})
}

// append sends one chunk, once.
func (up *upload) append(ctx context.Context, b []byte) error {
	end := up.off + int64(len(b))
	h := http.Header{"Content-Range": {fmt.Sprintf("%d-%d", up.off, end-1)}}
	resp, err := up.s.send(ctx, http.MethodPatch, up.url, h, bytesBody(b), http.StatusAccepted, http.StatusNoContent, http.StatusCreated, http.StatusOK)
	if err != nil {
		return err
	}
	up.moved(resp)
	if n, ok := uploaded(resp); ok && n != end {
		return faultf(ErrUnreachable, "%s has %d bytes of an upload after %d were sent", up.s.cl.host, n, end)
	}
	up.off = end
	return nil
}

// persist tries f again after failures, all over again where the upload has grown in between.
func (up *upload) persist(ctx context.Context, f func() error) error {
	last, try := up.off, 0
	for {
		err := f()
		if err == nil || errors.Is(err, errLost) {
			return err
		}
		if up.off >= last+enough {
			last, try = up.off, 0
		}
		if err := up.s.cl.backoff.pause(ctx, up.s.cl.log, try, err); err != nil {
			return err
		}
		try++
	}
}

// finish closes an upload that has all its bytes. An answer that got lost is looked up.
func (up *upload) finish(ctx context.Context, d digest.Digest) error {
	again := false
	return up.s.cl.backoff.retry(ctx, up.s.cl.log, func() error {
		if again {
			if have, err := up.s.exists(ctx, d); have && err == nil {
				return nil
			}
		}
		again = true
		return up.close(ctx, d, noBody)
	})
}

// close ends the upload with the bytes of b, once.
func (up *upload) close(ctx context.Context, d digest.Digest, b requestBody) error {
	u := *up.url
	q := u.Query()
	q.Set("digest", d.String())
	u.RawQuery = q.Encode()
	h := http.Header{}
	if up.off > 0 && b.size > 0 {
		h.Set("Content-Range", fmt.Sprintf("%d-%d", up.off, up.off+b.size-1))
	}
	_, err := up.s.send(ctx, http.MethodPut, &u, h, b, http.StatusCreated, http.StatusOK, http.StatusNoContent, http.StatusAccepted)
	return err
}

// cancel tells the registry that an upload will not be closed. Registries clean
// up by themselves too.
func (up *upload) cancel(ctx context.Context) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), stallTimeout)
	defer stop()
	_, err := up.s.call(ctx, http.MethodDelete, up.url, "", nil, []string{up.s.scope}, http.StatusNoContent, http.StatusAccepted, http.StatusOK)
	if err != nil {
		up.s.cl.log.Debug("cancel upload", "error", err)
	}
}

// A requestBody is what a request carries.
type requestBody struct {
	size int64 // -1: unknown
	// open returns the bytes from their start; ctx lives as long as the request.
	open func(ctx context.Context) (io.ReadCloser, error)
	once bool // open may be called once only
}

var noBody requestBody

func bytesBody(b []byte) requestBody {
	return requestBody{size: int64(len(b)), open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// send makes one request with a body, and expects one of the statuses. It may last
// as long as the connection takes bytes.
func (s *remoteSink) send(ctx context.Context, method string, u *url.URL, h http.Header, b requestBody, want ...int) (*http.Response, error) {
	own, w := newWatch(ctx, commitTimeout)
	defer w.stop()
	req, err := http.NewRequestWithContext(own, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = h
	if b.size != 0 {
		req.Header.Set("Content-Type", octetStream)
		get := func() (io.ReadCloser, error) {
			rc, err := b.open(own)
			return &sentBody{rc, w}, err
		}
		if req.Body, err = get(); err != nil {
			return nil, err
		}
		req.ContentLength = b.size
		if !b.once {
			req.GetBody = get
		}
	}
	resp, err := s.cl.do(req, s.scope)
	return s.expect(resp, w.explain(err), want...)
}

// A sentBody is a request's body. The clock runs while the connection takes
// bytes, not while we make them.
type sentBody struct {
	io.ReadCloser
	w *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.w.idle()
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		b.w.timer.Reset(stallTimeout)
	} else {
		b.w.progress()
	}
	return n, err
}

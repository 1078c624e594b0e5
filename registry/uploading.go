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
	"sync"
	"time"

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

// patched are the answers that registries give to a PATCH; distribution-spec has the first.
var patched = []int{http.StatusAccepted, http.StatusNoContent, http.StatusCreated, http.StatusOK}

// errLost says that a registry knows nothing of an upload any more, or not what it
// has of it: only a new one helps.
var errLost = errors.New("upload lost")

// begin opens an upload.
func (s *remoteSink) begin(ctx context.Context) (up *upload, err error) {
	err = s.cl.backoff.retry(ctx, s.cl.log, func() error {
		up, _, err = s.post(ctx, nil, []string{s.scope})
		return err
	})
	return up, err
}

// goodbye is how long the answer to a POST is waited for by who is to leave.
const goodbye = 2 * time.Second

// post asks for an upload. Who leaves waits a moment for the answer: without the address that is in it the
// upload could not be cancelled, and would stay. Of a mount, created tells that there is nothing to upload.
func (s *remoteSink) post(ctx context.Context, q url.Values, scopes []string) (up *upload, created bool, err error) {
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	late, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(goodbye, stop) })()
	resp, err := s.call(late, http.MethodPost, s.cl.endpoint(s.ref.Repo+"/blobs/uploads/", q), "", nil, scopes, http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return nil, false, err
	}
	if created = q.Has("mount") && resp.StatusCode == http.StatusCreated; created {
		return nil, true, nil
	}
	up, err = s.opened(resp)
	if err == nil && ctx.Err() != nil {
		up.cancel(ctx)
		return nil, false, context.Cause(ctx)
	}
	return up, false, err
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
	switch {
	case errors.As(err, &f) && f.status != 0 && !temporaryStatus(f.status):
		return up.lost()
	case err != nil:
		return err
	}
	n, ok := uploaded(resp)
	if !ok || n <= 1 {
		return up.lost()
	}
	if n < up.off+enough {
		up.s.shrink()
	}
	up.moved(resp)
	up.off = n
	return nil
}

// lost is the error when the registry cannot go on: the next upload is more careful.
func (up *upload) lost() error {
	up.s.shrink()
	return faultf(ErrUnreachable, "%s has lost an upload that was cut", up.s.cl.host).because(errLost)
}

// uploaded reads the header Range of an answer about an upload: "0-LAST".
func uploaded(resp *http.Response) (n int64, ok bool) {
	_, last, found := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	return n + 1, found && err == nil && n >= 0
}

// fill appends bytes until the registry has end of them, however often the
// connection breaks on the way. part returns n bytes from off, for any off that
// the upload had when fill was called, or has had since.
func (up *upload) fill(ctx context.Context, end int64, part func(off, n int64) requestBody) error {
	start, cut := up.off, false
	return up.persist(ctx, func() error {
		if cut {
			if err := up.sync(ctx); err != nil {
				return err
			}
			if up.off < start || up.off > end {
				return up.lost()
			}
		}
		for up.off < end {
			n := min(up.s.piece.Load(), end-up.off)
			err := up.append(ctx, part(up.off, n))
			if tooLarge(err) && up.s.shrink() {
				continue
			}
			if err != nil {
				cut = true
				return err
			}
		}
		return nil
	})
}

// minPiece is the least that a request carries, however bad the connection is.
const minPiece = 256 << 10

// shrink makes the requests to come carry less, if they may: what a registry keeps
// of one that was cut may be nothing, or worse (distribution before 3.0 gives up
// the upload), so that only requests that come through count.
func (s *remoteSink) shrink() bool {
	n := s.piece.Load()
	return s.piece.CompareAndSwap(n, max(n/4, minPiece)) && n > minPiece
}

func tooLarge(err error) bool {
	var f *fault
	return errors.As(err, &f) && f.status == http.StatusRequestEntityTooLarge
}

// append sends one piece, once.
func (up *upload) append(ctx context.Context, b requestBody) error {
	end := up.off + b.size
	h := http.Header{"Content-Range": {fmt.Sprintf("%d-%d", up.off, end-1)}}
	resp, err := up.s.send(ctx, http.MethodPatch, up.url, h, b, patched...)
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

// close ends the upload, which is empty or b is, with the bytes of b, once.
func (up *upload) close(ctx context.Context, d digest.Digest, b requestBody) error {
	u := *up.url
	q := u.Query()
	q.Set("digest", d.String())
	u.RawQuery = q.Encode()
	_, err := up.s.send(ctx, http.MethodPut, &u, http.Header{}, b, http.StatusCreated, http.StatusOK, http.StatusNoContent, http.StatusAccepted)
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
	var d door
	defer d.close() // after the next one, which ends a read of the body that waits
	own, w := newWatch(ctx, commitTimeout)
	defer w.stop()
	req, err := http.NewRequestWithContext(own, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = h
	req.Close = s.piece.Load() < chunkSize // connections break: each request gets a fresh one
	if b.size != 0 {
		req.Header.Set("Content-Type", octetStream)
		get := func() (io.ReadCloser, error) {
			rc, err := b.open(own)
			return &sentBody{rc, w, &d}, err
		}
		if req.Body, err = get(); err != nil {
			return nil, err
		}
		req.ContentLength = b.size
		if !b.once {
			req.GetBody = get
		}
		if b.once || s.wary.Load() {
			req.Header.Set("Expect", "100-continue")
		}
	}
	resp, err := s.cl.do(req, s.scope)
	if err != nil {
		s.wary.Store(true)
	}
	return s.expect(resp, w.explain(err), want...)
}

// A door keeps the transport from reading a body on when its request has been answered, which a
// transport does when the answer comes early: the bytes are somebody else's then.
type door struct {
	mu     sync.Mutex
	closed bool // protected by mu
}

func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
}

// A sentBody is a request's body. The clock runs while the connection takes
// bytes, not while we make them.
type sentBody struct {
	io.ReadCloser
	w    *watch
	door *door
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.door.mu.Lock()
	defer b.door.mu.Unlock()
	if b.door.closed {
		return 0, errAnswered
	}
	b.w.idle()
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		b.w.timer.Reset(stallTimeout)
	} else {
		b.w.progress()
	}
	return n, err
}

var errAnswered = errors.New("the request has been answered")

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A remoteBlob is a blob behind HTTP. It remembers where the registry redirects
// to, and whether ranges work.
type remoteBlob struct {
	src   *remote
	desc  ocispec.Descriptor
	count *counter

	lookup chan struct{} // holds one element while somebody asks the registry for the address anew

	mu        sync.Mutex
	location  *url.URL // where the bytes are, when that is not the registry; protected by mu
	redirects bool     // location was set once; protected by mu
	spool     *spool   // protected by mu
	noRanges  bool     // protected by mu
	closed    bool     // protected by mu
}

func (b *remoteBlob) readRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	w := b.src.waiter()
	r := &resumer{
		open:  func(off, n int64) (io.ReadCloser, error) { return b.attempt(ctx, off, n) },
		pause: func(try int, err error) error { return w.pause(ctx, try, err) },
		off:   off, left: n,
	}
	if err := r.start(); err != nil {
		return nil, err
	}
	return r, nil
}

// attempt opens a stream of n bytes at off, by whatever way works now, once.
func (b *remoteBlob) attempt(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s, noRanges := b.spooled()
	if s != nil {
		return s.reader(ctx, off, n), nil
	}
	whole := off == 0 && n == b.desc.Size
	rng := ""
	if !whole && !noRanges {
		rng = fmt.Sprintf("bytes=%d-%d", off, off+n-1)
	}
	body, err := b.request(ctx, rng)
	if err != nil {
		if rng == "" || !rangeRefused(err) {
			return nil, err
		}
		if body, err = b.request(ctx, ""); err != nil {
			return nil, err
		}
	}
	switch {
	case body.ranged(b.desc.Size):
		return body, body.checkRange(off, n, b.desc.Size)
	case whole:
		return body, body.checkWhole(b.desc.Size)
	}
	if s, err = b.startSpool(ctx, body); err != nil {
		return nil, err
	}
	return s.reader(ctx, off, n), nil
}

// rangeRefused tells whether a server dislikes the Range header itself.
func rangeRefused(err error) bool {
	var f *fault
	return errors.As(err, &f) && (f.status == http.StatusBadRequest ||
		f.status == http.StatusRequestedRangeNotSatisfiable || f.status == http.StatusNotImplemented)
}

// maxRenewals is how often one request follows addresses that others found and that
// are stale for it all the same.
const maxRenewals = 3

// request gets the blob or a range of it, from where it was last found or else
// through the registry, or from the addresses in the descriptor.
func (b *remoteBlob) request(ctx context.Context, rng string) (*body, error) {
	for renewed := 0; ; renewed++ {
		if loc := b.cached(); loc != nil {
			body, err := b.get(ctx, loc, rng)
			if err == nil || !staleAddress(err) || renewed == maxRenewals {
				return body, err
			}
			b.drop(loc)
		}
		unlock, err := b.lockLookup(ctx)
		if err != nil {
			return nil, err
		}
		if b.cached() != nil { // found by whoever had the lock before
			unlock()
			continue
		}
		defer unlock()
		return b.find(ctx, rng)
	}
}

// find makes a request through the registry, and remembers where it ended.
func (b *remoteBlob) find(ctx context.Context, rng string) (*body, error) {
	if err := b.src.cl.connect(ctx); err != nil {
		return nil, err
	}
	body, err := b.get(ctx, b.address(), rng)
	if errors.Is(err, ErrNotFound) && !b.src.cl.at.Mirror {
		return b.requestForeign(ctx, rng, err)
	}
	return body, err
}

// address is the blob's on the registry.
func (b *remoteBlob) address() *url.URL {
	return b.src.cl.endpoint(b.src.ref.Repo+"/blobs/"+b.desc.Digest.String(), nil)
}

// lockLookup lets one reader at a time ask a registry that redirects, so that
// an address that expired under many readers is renewed once.
func (b *remoteBlob) lockLookup(ctx context.Context) (unlock func(), err error) {
	b.mu.Lock()
	redirects := b.redirects
	b.mu.Unlock()
	if !redirects {
		return func() {}, nil
	}
	select {
	case b.lookup <- struct{}{}:
		return func() { <-b.lookup }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// staleAddress tells whether the registry should be asked again where the blob
// is: signed addresses expire, in the words of each CDN.
func staleAddress(err error) bool {
	var f *fault
	if !errors.As(err, &f) || f.status == 0 {
		return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	}
	switch f.status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		return true
	}
	return false
}

// requestForeign tries the addresses that the descriptor itself gives; see foreignAllowed.
func (b *remoteBlob) requestForeign(ctx context.Context, rng string, notFound error) (*body, error) {
	for _, s := range b.desc.URLs {
		u, err := url.Parse(s)
		if err != nil || !b.src.cl.foreignAllowed(ctx, u) {
			b.src.cl.log.Warn("foreign layer: its address is not asked", "url", s, "want", "https to another machine")
			continue
		}
		body, err := b.get(ctx, u, rng)
		if err == nil {
			b.remember(u)
			return body, nil
		}
		b.src.cl.log.Warn("foreign layer", "url", u.Redacted(), "error", err)
	}
	return nil, notFound
}

// get makes one request, redirects included, and accepts a 200 or a 206.
func (b *remoteBlob) get(ctx context.Context, u *url.URL, rng string) (*body, error) {
	h := http.Header{}
	if rng != "" {
		h.Set("Range", rng)
	}
	if !b.src.cl.owns(u) {
		referer := http.Request{Header: h, URL: u}
		setReferer(&referer, b.address())
	}
	body, loc, err := b.src.open(ctx, u, h, b.count)
	if err != nil {
		return nil, err
	}
	if !b.src.cl.owns(loc) {
		b.remember(loc)
	}
	b.src.cl.outage.answered()
	return body, nil
}

func (b *remoteBlob) cached() *url.URL {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.location
}

func (b *remoteBlob) remember(u *url.URL) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.location, b.redirects = u, true
}

func (b *remoteBlob) drop(u *url.URL) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.location == u {
		b.location = nil
	}
}

// A body is the answer to a GET. Reading it is watched.
type body struct {
	resp  *http.Response
	w     *watch
	count *counter
}

func newBody(resp *http.Response, w *watch, c *counter) *body { return &body{resp, w, c} }

// ranged tells whether the answer is a part of a blob of size bytes. Content-Range has the
// last word: some proxies cut a range out and answer 200, others call all of it a 206.
func (b *body) ranged(size int64) bool {
	first, last, _, ok := parseContentRange(b.resp.Header.Get("Content-Range"))
	if ok {
		whole := first == 0 && last == size-1 && (b.resp.ContentLength < 0 || b.resp.ContentLength == size)
		return !whole
	}
	return b.resp.StatusCode == http.StatusPartialContent
}

func (b *body) Read(p []byte) (int, error) {
	b.w.progress()
	n, err := b.resp.Body.Read(p)
	b.w.idle()
	b.count.bytes.Add(int64(n))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errShort()
	}
	if err != nil && err != io.EOF {
		err = classify(b.w.explain(err))
	}
	return n, err
}

func (b *body) Close() error {
	err := b.resp.Body.Close()
	b.w.stop()
	return err
}

// checkRange compares a 206 with what was asked for. An end that comes early is
// fine: the rest is asked for later. On an error the body is closed.
func (b *body) checkRange(off, n, size int64) error {
	first, last, total, ok := parseContentRange(b.resp.Header.Get("Content-Range"))
	var err error
	switch {
	case !ok && b.resp.ContentLength == n:
		// It can hardly be another range, and whoever reads compares a digest.
	case !ok:
		err = faultf(ErrUnreachable, "%s: a range came without a valid Content-Range", b.resp.Request.URL.Host)
	case first != off || last < first || last >= off+n:
		err = faultf(ErrUnreachable, "%s: the range %d-%d came instead of %d-%d", b.resp.Request.URL.Host, first, last, off, off+n-1)
	case total >= 0 && total != size:
		err = sizeMismatch(total, size)
	}
	if err != nil {
		_ = b.Close()
	}
	return err
}

func (b *body) checkWhole(size int64) error {
	if n := b.resp.ContentLength; n >= 0 && n != size {
		_ = b.Close()
		return sizeMismatch(n, size)
	}
	return nil
}

func sizeMismatch(got, want int64) error {
	return faultf(ErrIntegrity, "the registry has %d bytes instead of %d", got, want)
}

// parseContentRange parses "bytes FIRST-LAST/TOTAL" (RFC 9110 section 14.4).
// total is -1 where the server does not tell.
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, ok = strings.CutPrefix(strings.TrimSpace(s), "bytes ")
	rng, tot, ok2 := strings.Cut(s, "/")
	a, z, ok3 := strings.Cut(rng, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, false
	}
	first, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(z, 10, 64)
	total = -1
	var err3 error
	if tot != "*" {
		total, err3 = strconv.ParseInt(tot, 10, 64)
	}
	valid := err1 == nil && err2 == nil && err3 == nil && first >= 0 && last >= 0 && (tot == "*" || total >= 0)
	return first, last, total, valid
}

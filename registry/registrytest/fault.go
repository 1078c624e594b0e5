package registrytest

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// On puts a fault in the way of the requests that match, and of no other.
func On(match func(*http.Request) bool, f Fault) Fault {
	return func(next http.Handler) http.Handler {
		faulty := f(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if match(r) {
				faulty.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// Times puts a fault in the way of the first n requests that come to it.
func Times(n int, f Fault) Fault {
	var left atomic.Int64
	left.Store(int64(n))
	return On(func(*http.Request) bool { return left.Add(-1) >= 0 }, f)
}

// Blobs matches the reading of blobs.
func Blobs(r *http.Request) bool {
	t, ok := parsePath(r.URL.Path)
	return ok && t.kind == "blobs" && r.Method == http.MethodGet
}

// Manifests matches the reading of manifests, by GET or HEAD.
func Manifests(r *http.Request) bool {
	t, ok := parsePath(r.URL.Path)
	return ok && t.kind == "manifests" && (r.Method == http.MethodGet || r.Method == http.MethodHead)
}

// Uploads matches whatever belongs to an upload.
func Uploads(r *http.Request) bool {
	t, ok := parsePath(r.URL.Path)
	return ok && t.kind == "uploads"
}

// NoRange is a registry that answers every range with the whole blob.
func NoRange(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		next.ServeHTTP(w, r)
	})
}

// Ranged matches requests for a range of a blob.
func Ranged(r *http.Request) bool { return Blobs(r) && r.Header.Get("Range") != "" }

// RefuseRanges is a registry that answers every range with 416, in the way of
// docker-registry 2.8: the length is the blob's, the body is not.
func RefuseRanges(next http.Handler) http.Handler {
	refuse := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			whole := httptest.NewRecorder()
			head := r.Clone(r.Context())
			head.Method = http.MethodHead
			head.Header.Del("Range")
			next.ServeHTTP(whole, head)
			w.Header().Set("Content-Length", whole.Header().Get("Content-Length"))
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			_, _ = io.WriteString(w, "short")
		})
	}
	return On(Ranged, refuse)(next)
}

// Unnamed206 is a proxy that cuts the range out and calls it 200; what Content-Range
// says is right (Dragonfly).
func Unnamed206(next http.Handler) http.Handler {
	return onPartial(next, func(http.Header) int { return http.StatusOK })
}

// NoContentRange answers ranges and does not say which.
func NoContentRange(next http.Handler) http.Handler {
	return onPartial(next, func(h http.Header) int {
		h.Del("Content-Range")
		return http.StatusPartialContent
	})
}

// onPartial changes the header and the status of a 206.
func onPartial(next http.Handler, change func(http.Header) int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&partialWriter{w, change}, r)
	})
}

type partialWriter struct {
	http.ResponseWriter
	change func(http.Header) int
}

func (w *partialWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *partialWriter) WriteHeader(status int) {
	if status == http.StatusPartialContent {
		status = w.change(w.Header())
	}
	w.ResponseWriter.WriteHeader(status)
}

// NoMount is a registry that answers a mount with an ordinary upload, which
// distribution-spec allows ("Mounting a blob from another repository").
func NoMount(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		q.Del("mount")
		q.Del("from")
		r.URL.RawQuery = q.Encode()
		next.ServeHTTP(w, r)
	})
}

// NoReferrers is a registry from before distribution-spec 1.1: it has no list of
// referrers and does not tell that it took notice of a manifest's subject.
func NoReferrers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if t, ok := parsePath(r.URL.Path); ok && t.kind == "referrers" {
			http.NotFound(w, r)
			return
		}
		next.ServeHTTP(&unawareWriter{w}, r)
	})
}

type unawareWriter struct{ http.ResponseWriter }

func (w *unawareWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *unawareWriter) WriteHeader(status int) {
	w.Header().Del("OCI-Subject")
	w.ResponseWriter.WriteHeader(status)
}

// Status answers the first requests, so many times, with a code in place of
// theirs; times < 0 is for ever. header is names and values in turn, such as
// "Retry-After", "1".
func Status(code, times int, header ...string) Fault {
	refuse := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			text := strings.ToUpper(strings.ReplaceAll(http.StatusText(code), " ", ""))
			(&refusal{code, text, fmt.Sprintf("injected %d", code)}).ServeHTTP(w, r)
		})
	}
	if times < 0 {
		return refuse
	}
	return Times(times, refuse)
}

// ShortBody announces whole blobs and ranges, and cuts the connection after n
// bytes of them.
func ShortBody(n int64) Fault {
	short := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&shortWriter{w, n}, r)
		})
	}
	return On(Blobs, short)
}

type shortWriter struct {
	http.ResponseWriter
	left int64
}

func (w *shortWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write passes on what is left to pass on. net/http cuts the connection of a
// handler that wrote less than it announced.
func (w *shortWriter) Write(p []byte) (int, error) {
	n := min(int64(len(p)), w.left)
	w.left -= n
	if n > 0 {
		if _, err := w.ResponseWriter.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	if n < int64(len(p)) {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // what the client sees is the same
		return 0, http.ErrContentLength
	}
	return len(p), nil
}

// CutUploads takes n bytes of the body of every request of an upload, and cuts the
// connection if there are more.
func CutUploads(n int64) Fault {
	cut := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body := &shortBody{ReadCloser: r.Body, left: n}
			r.Body = body
			answer := httptest.NewRecorder()
			next.ServeHTTP(answer, r)
			if body.cut {
				panic(http.ErrAbortHandler)
			}
			maps.Copy(w.Header(), answer.Header())
			w.WriteHeader(answer.Code)
			_, _ = w.Write(answer.Body.Bytes()) // the client may have left
		})
	}
	return On(func(r *http.Request) bool { return Uploads(r) && r.Method != http.MethodGet }, cut)
}

type shortBody struct {
	io.ReadCloser
	left int64
	cut  bool
}

func (b *shortBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if int64(n) > b.left {
		b.cut = true
		return int(b.left), io.ErrUnexpectedEOF
	}
	b.left -= int64(n)
	return n, err
}

// Corrupt flips the bits of the byte at offset at of a blob or manifest, whatever
// range it is fetched in.
func Corrupt(d digest.Digest, at int64) Fault {
	flip := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&flipWriter{ResponseWriter: w, digest: d.String(), at: at}, r)
		})
	}
	return On(func(r *http.Request) bool { return r.Method == http.MethodGet }, flip)
}

type flipWriter struct {
	http.ResponseWriter
	digest string
	at     int64
	off    int64 // in the blob, of what is written next
	begun  bool
}

func (w *flipWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *flipWriter) Write(p []byte) (int, error) {
	if w.Header().Get("Docker-Content-Digest") != w.digest {
		return w.ResponseWriter.Write(p)
	}
	if !w.begun {
		w.begun = true
		_, _ = fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-", &w.off) // a whole body has no such header
	}
	if i := w.at - w.off; i >= 0 && i < int64(len(p)) {
		p = append([]byte(nil), p...) // the store's own bytes stay right
		p[i] ^= 0xff
	}
	n, err := w.ResponseWriter.Write(p)
	w.off += int64(n)
	return n, err
}

// Outage cuts every connection without an answer while on is true.
func Outage(on *atomic.Bool) Fault {
	cut := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	}
	return On(func(*http.Request) bool { return on.Load() }, cut)
}

// Hang takes requests and never answers, until the client leaves.
func Hang(http.Handler) http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
}

// Away cuts every connection without an answer for so long from the n-th request on that comes to it.
func Away(n int, long time.Duration) Fault {
	var seen atomic.Int64
	var on atomic.Bool
	return func(next http.Handler) http.Handler {
		cut := Outage(&on)(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if seen.Add(1) == int64(n) {
				on.Store(true)
				time.AfterFunc(long, func() { on.Store(false) })
			}
			cut.ServeHTTP(w, r)
		})
	}
}

// Drip writes blobs a little at a time, with a pause after each.
func Drip(n int, pause time.Duration) Fault {
	slow := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&dripWriter{w, n, pause}, r)
		})
	}
	return On(Blobs, slow)
}

type dripWriter struct {
	http.ResponseWriter
	n     int
	pause time.Duration
}

func (w *dripWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *dripWriter) Write(p []byte) (done int, err error) {
	for len(p) > 0 && err == nil {
		k := 0
		k, err = w.ResponseWriter.Write(p[:min(len(p), w.n)])
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		done, p = done+k, p[k:]
		time.Sleep(w.pause)
	}
	return done, err
}

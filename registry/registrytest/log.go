package registrytest

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A Request is one line of the log. In and Out are bytes of bodies, counted as
// they go by: a request that still runs has the ones so far.
type Request struct {
	Conn          int64  // the connection it came by, counted from 1
	Proto         string // "HTTP/1.1", "HTTP/2.0"
	Host          string // the port it came in by: the registry's or a storage's
	Method        string
	Path          string
	Query         string
	Range         string // the header, "bytes=0-99"
	Authorization string // the scheme only: "", "Basic", "Bearer"
	Certificate   bool   // the client has shown one
	Referer       string
	UserAgent     string
	Start         time.Time
	Status        int // 0: cut off, or not answered yet
	In, Out       int64
}

// A Count sums requests up.
type Count struct {
	Requests    int
	In, Out     int64
	Connections int // that these requests came by
}

// Log returns the requests since the start or the last Reset, in the order of
// their arrival.
func (s *Server) Log() []Request { return s.log.snapshot() }

// Reset forgets the log, and so sets the counters to zero.
func (s *Server) Reset() {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	s.log.requests = nil
}

// Total sums the requests with this method ("" for any) whose path contains
// part. What a client has received is counted by the time it has it.
func (s *Server) Total(method, part string) Count {
	var c Count
	conns := map[int64]bool{}
	for _, r := range s.Log() {
		if method != "" && r.Method != method || !strings.Contains(r.Path, part) {
			continue
		}
		c.Requests++
		conns[r.Conn] = true
		c.In += r.In
		c.Out += r.Out
	}
	c.Connections = len(conns)
	return c
}

type requestLog struct {
	mu       sync.Mutex // protects requests and the fields of each
	requests []*Request
}

func (l *requestLog) snapshot() []Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Request, len(l.requests))
	for i, r := range l.requests {
		out[i] = *r
	}
	return out
}

func (l *requestLog) begin(r *http.Request) *Request {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	q := &Request{
		Host: r.Host, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
		Range: r.Header.Get("Range"), Authorization: scheme, Referer: r.Referer(), UserAgent: r.UserAgent(),
		Certificate: r.TLS != nil && len(r.TLS.PeerCertificates) > 0, Conn: connOf(r.Context()), Proto: r.Proto, Start: time.Now(),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, q)
	return q
}

// count logs what passes through next.
func (l *requestLog) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := l.begin(r)
		r.Body = &countedBody{ReadCloser: r.Body, log: l, q: q}
		next.ServeHTTP(&countedWriter{ResponseWriter: w, log: l, q: q}, r)
	})
}

type countedBody struct {
	io.ReadCloser
	log *requestLog
	q   *Request
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.log.mu.Lock()
	b.q.In += int64(n)
	b.log.mu.Unlock()
	return n, err
}

type countedWriter struct {
	http.ResponseWriter
	log *requestLog
	q   *Request
}

// Unwrap gives http.ResponseController the way to Flush and Hijack.
func (w *countedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *countedWriter) WriteHeader(status int) {
	w.add(status, 0)
	w.ResponseWriter.WriteHeader(status)
}

// Write counts before it writes, so that a client that has the bytes finds them
// counted.
func (w *countedWriter) Write(p []byte) (int, error) {
	w.add(http.StatusOK, len(p))
	n, err := w.ResponseWriter.Write(p)
	w.add(0, n-len(p))
	return n, err
}

// add counts n bytes and keeps the first final status.
func (w *countedWriter) add(status, n int) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	w.q.Out += int64(n)
	if w.q.Status == 0 && status >= http.StatusOK {
		w.q.Status = status
	}
}

// Package registrytest is an OCI registry in the process that counts requests and bytes, throttles, and injects faults.
//
// It speaks the OCI distribution protocol as strictly as the registries people
// run: blobs belong to repositories (a blob of another repository is not there
// until it is mounted or uploaded), a manifest whose blobs are missing is
// refused, single ranges are answered with 206. What goes wrong in the world is
// added by wrapping: a [Fault] is a handler around the registry's handler, and
// [Server.Use] puts it there. With [Options.Upstream] all of that stands in front of
// a registry that runs elsewhere.
package registrytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options of New. The zero value is a registry in memory over plain HTTP.
type Options struct {
	Dir      string   // where blobs are kept, as blobs/ALGORITHM/HEX; "" is memory
	TLS      bool     // serve HTTPS, HTTP/2 included, with a certificate nobody trusts
	Upstream *url.URL // a registry to pass everything on to, in place of one of our own

	ClientCAs *x509.CertPool // with TLS: who has no certificate of theirs is turned away; nil: anybody may come
}

// A Fault wraps the registry's handler, or another fault's.
type Fault func(http.Handler) http.Handler

// A Server is a registry that listens on a port of 127.0.0.1.
type Server struct {
	http    *httptest.Server
	data    *data
	base    http.Handler // the registry
	log     requestLog
	link    link
	conns   atomic.Int64
	handler atomic.Pointer[http.Handler] // the registry and the faults around it

	mu      sync.Mutex         // protects what follows, and changes of handler
	storage []*httptest.Server // what RedirectBlobs started
}

// New starts a registry. It panics when no port of the loopback is to be had,
// as httptest does.
func New(o Options) *Server {
	s := &Server{data: newData(o.Dir)}
	s.base = s.data.handler()
	if o.Upstream != nil {
		s.base = forward(o.Upstream)
	}
	s.Heal()
	s.http = s.listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(*s.handler.Load()).ServeHTTP(w, r)
	}), o.TLS, o.ClientCAs)
	return s
}

// listen serves h on a new port, with the counters and the throttle around it.
func (s *Server) listen(h http.Handler, encrypted bool, clients *x509.CertPool) *httptest.Server {
	srv := httptest.NewUnstartedServer(s.log.count(s.link.slow(h)))
	srv.Listener = s.link.far(srv.Listener)
	srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return withConn(ctx, s.conns.Add(1))
	}
	srv.EnableHTTP2 = encrypted
	if encrypted {
		srv.TLS = &tls.Config{ClientCAs: clients, ClientAuth: tls.RequestClientCert}
		if clients != nil {
			srv.TLS.ClientAuth = tls.RequireAndVerifyClientCert
		}
		srv.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that do not trust it
		srv.StartTLS()
	} else {
		srv.Start()
	}
	return srv
}

// Close ends the registry and cuts the connections that are open. A client sees
// "connection refused" from then on.
func (s *Server) Close() {
	s.mu.Lock()
	servers := append(s.storage, s.http)
	s.storage = nil
	s.mu.Unlock()
	for _, srv := range servers {
		srv.CloseClientConnections()
		srv.Close()
	}
}

// Host is the registry's part of a reference, "127.0.0.1:40123".
func (s *Server) Host() string {
	_, host, _ := strings.Cut(s.http.URL, "://")
	return host
}

// URL is the root of the registry, "http://127.0.0.1:40123", without a slash.
func (s *Server) URL() string { return s.http.URL }

// Certificate is that of a server with TLS, which is its own authority.
func (s *Server) Certificate() *x509.Certificate { return s.http.Certificate() }

// Client trusts the certificate of a server with TLS.
func (s *Server) Client() *http.Client { return s.http.Client() }

// Use puts faults around what is there: the last one sees a request first.
// Authentication belongs outside RedirectBlobs, because the storage that blobs
// are redirected to must not ask for it.
func (s *Server) Use(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := *s.handler.Load()
	for _, f := range faults {
		h = f(h)
	}
	s.handler.Store(&h)
}

// Heal takes every fault off again, authentication included.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler.Store(&s.base)
}

// Throttle makes the registry seem far away: bodies share a link of bytesPerSec
// in each direction, every answer begins rtt after the request arrived, and a new
// connection takes another rtt. Zero lifts the limit.
func (s *Server) Throttle(bytesPerSec int64, rtt time.Duration) {
	s.link.set(bytesPerSec, rtt)
}

package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/layerfs/layerfs/registry/hosts"
)

// newTransport returns what all requests of a client go through; host is the client's own as URLs have it.
func newTransport(at hosts.Host, host string, o Options) *guard {
	g := &guard{host: host, at: at, userAgent: o.UserAgent, plainHTTP: o.PlainHTTP || at.Insecure || at.Scheme == "http"}
	g.inner = g.wrapped(o, at.TLS)
	g.others = g.inner
	if at.TLS != nil && len(at.TLS.Certificates) > 0 {
		who := at.TLS.Clone()
		who.Certificates = nil
		g.others = g.wrapped(o, who)
	}
	if g.userAgent == "" {
		g.userAgent = "layerfs"
	}
	return g
}

// wrapped makes one transport, with what the caller wants to have around it.
func (g *guard) wrapped(o Options, c *tls.Config) http.RoundTripper {
	inner := o.Transport
	if inner == nil {
		if c == nil {
			c = &tls.Config{}
		}
		c = c.Clone()
		c.InsecureSkipVerify = c.InsecureSkipVerify || o.InsecureSkipTLSVerify || g.at.Insecure
		own := defaultTransport(c)
		g.own = append(g.own, own)
		inner = own
	}
	if o.Wrap != nil {
		inner = o.Wrap(inner)
	}
	return inner
}

func defaultTransport(c *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       c,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   16, // layers are fetched in parallel
		ReadBufferSize:        64 << 10,
		WriteBufferSize:       64 << 10,
		DisableCompression:    true, // ranges and digests are of the bytes as stored
		ForceAttemptHTTP2:     true,
	}
}

// A guard names us to the server and keeps requests, with the credentials they
// may carry, off unencrypted connections to other machines. What is configured for a host, headers
// and client certificates, goes to no other.
type guard struct {
	host      string
	at        hosts.Host
	inner     http.RoundTripper // of requests to host
	others    http.RoundTripper // of requests to others: storage, token servers
	own       []*http.Transport // below these, where nobody else has them
	userAgent string
	plainHTTP bool
}

func (g *guard) close() {
	for _, t := range g.own {
		t.CloseIdleConnections()
	}
}

// isOwn tells whether u is on the host whose configuration this is.
func (g *guard) isOwn(u *url.URL) bool {
	return strings.EqualFold(u.Host, g.host) && (g.at.Scheme == "" || u.Scheme == g.at.Scheme)
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plainHTTP && !isLoopback(req.URL.Host) {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, faultf(ErrUnreachable, "%s: http without encryption is not allowed", req.URL.Host).
			withHint("--plain-http allows it")
	}
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", g.userAgent)
	if !g.isOwn(req.URL) {
		return g.others.RoundTrip(req)
	}
	for name, values := range g.at.Header {
		req.Header[name] = values
	}
	return g.inner.RoundTrip(req)
}

// discard gives a connection back without reading much of a body that nobody
// wants.
func discard(resp *http.Response) {
	// A 416 of docker-registry 2.8 promises a body that never comes.
	if resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	}
	_ = resp.Body.Close()
}

// statusError turns a response that is not what was asked for into an error and
// closes it.
func (c *client) statusError(resp *http.Response) error {
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return c.fromStatus(&transport.Error{StatusCode: resp.StatusCode}, resp.Request)
	}
	err := transport.CheckError(resp, 0)
	var te *transport.Error
	if !errors.As(err, &te) {
		te = &transport.Error{StatusCode: resp.StatusCode}
	}
	f := c.fromStatus(te, resp.Request)
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		f.wait = time.Duration(s) * time.Second
	}
	return f
}

// explain gives errors of the handshake and of the network their sentinel.
func (c *client) explain(err error) error {
	var te *transport.Error
	var f *fault
	var cert *tls.CertificateVerificationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return f
	case errors.As(err, &cert): // also where plain http was tried after it
		return classify(err)
	case errors.As(err, &te):
		return c.fromStatus(te, te.Request)
	}
	err = classify(err)
	if errors.As(err, &f) || errors.Is(err, context.Canceled) {
		return err
	}
	return faultf(ErrUnreachable, "%s: %s", c.host, oneLine(err.Error())).because(err)
}

func (c *client) fromStatus(te *transport.Error, req *http.Request) *fault {
	text := fmt.Sprintf("%d %s", te.StatusCode, strings.ToLower(http.StatusText(te.StatusCode)))
	if len(te.Errors) > 0 && te.Errors[0].Message != "" {
		text += ": " + oneLine(te.Errors[0].Message)
	}
	host := c.host
	if req != nil && req.URL.Host != c.reg.RegistryStr() {
		host = req.URL.Host
	}
	f := &fault{text: host + ": " + text, status: te.StatusCode, cause: te}
	switch s := te.StatusCode; {
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		f.kind, f.hint = ErrUnauthorized, hintLogin
	case s == http.StatusNotFound || s == http.StatusGone:
		f.kind = ErrNotFound
		if t := notFoundText(te); t != "" {
			f.text = t
		}
	case s == http.StatusTooManyRequests || s == http.StatusRequestTimeout || s >= 500:
		f.kind = ErrUnreachable
	}
	return f
}

// notFoundText says in the same words for every registry what it does not have.
func notFoundText(te *transport.Error) string {
	for _, d := range te.Errors {
		switch d.Code {
		case transport.ManifestUnknownErrorCode:
			return "manifest unknown"
		case transport.NameUnknownErrorCode:
			return "repository unknown"
		case transport.BlobUnknownErrorCode:
			return "blob unknown"
		}
	}
	return ""
}

// oneLine makes a server's message fit for an error line and a terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	const limit = 200
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return strings.TrimSpace(s)
}

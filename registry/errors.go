package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// What went wrong, for errors.Is. Every error that leaves this package and is
// not the caller's own (a cancelled context, a failing writer) wraps at most
// one of them.
var (
	ErrNotFound     = errors.New("not found")
	ErrUnauthorized = errors.New("unauthorized")
	ErrUnreachable  = errors.New("registry unreachable")
	ErrIntegrity    = errors.New("integrity mismatch")
	ErrUsage        = errors.New("malformed reference")
	ErrOffline      = errors.New("not in the cache, and offline")
	ErrUnsupported  = errors.New("unsupported image")
)

// An Error says what failed on which reference, in one line.
type Error struct {
	Op, Ref string
	Err     error
	Hint    string // what to do next; not part of Error(); may be empty
}

// Error returns "OP REF: WHAT", without the hint.
func (e *Error) Error() string { return e.Op + " " + e.Ref + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// A fault is a reason with a text of its own, a sentinel and perhaps a cause.
type fault struct {
	kind   error // one of the sentinels, or nil
	text   string
	cause  error  // may be nil; not part of the text
	hint   string // may be empty
	status int    // of the HTTP response; 0: there was none
	wait   time.Duration
	final  bool // not worth another try
}

func (f *fault) Error() string { return f.text }

func (f *fault) Unwrap() []error {
	var list []error
	for _, err := range []error{f.kind, f.cause} {
		if err != nil {
			list = append(list, err)
		}
	}
	return list
}

// faultf returns an error that is kind and reads as the format says. A %w verb
// keeps its operand as the cause.
func faultf(kind error, format string, args ...any) *fault {
	err := fmt.Errorf(format, args...)
	return &fault{kind: kind, text: err.Error(), cause: errors.Unwrap(err)}
}

func (f *fault) because(err error) *fault {
	f.cause = err
	return f
}

func (f *fault) withHint(hint string) *fault {
	f.hint = hint
	return f
}

// wrapError puts op and ref before err, once: an *Error stays as it is.
// Transport errors get their sentinel and a short text here.
func wrapError(op, ref string, err error) error {
	if err == nil {
		return nil
	}
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	err = classify(err)
	e := &Error{Op: op, Ref: ref, Err: err}
	var f *fault
	if errors.As(err, &f) {
		e.Hint = f.hint
	}
	return e
}

// classify gives an error of the network its sentinel and a short text.
// Anything else, a caller's own cancellation included, comes back as it is.
func classify(err error) error {
	var f *fault
	if errors.As(err, &f) || errors.Is(err, context.Canceled) {
		return err
	}
	var cert *tls.CertificateVerificationError
	var dns *net.DNSError
	var op *net.OpError
	var u *url.Error
	switch {
	case errors.As(err, &cert):
		f := faultf(ErrUnreachable, "%w", cert.Err).withHint("--insecure-skip-tls-verify accepts any certificate")
		f.final = true
		return f
	case errors.Is(err, http.ErrSchemeMismatch):
		f := faultf(ErrUnreachable, "the registry speaks http without encryption").because(err).withHint("--plain-http allows it")
		f.final = true
		return f
	case errors.As(err, &dns):
		return faultf(ErrUnreachable, "%s: no such host", dns.Name).because(err).withHint(hintUnreachable)
	case errors.As(err, &op):
		return faultf(ErrUnreachable, "%s", netText(op)).because(err).withHint(hintUnreachable)
	case errors.As(err, &u):
		return faultf(ErrUnreachable, "%w", u.Err).withHint(hintUnreachable)
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return faultf(ErrUnreachable, "timed out").because(err).withHint(hintUnreachable)
	}
	return err
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func netText(e *net.OpError) string {
	text := e.Err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	if e.Addr != nil {
		return e.Op + " " + e.Addr.String() + ": " + text
	}
	return e.Op + ": " + text
}

const (
	hintUnreachable = "check the name, the network and the proxy settings; --offline uses what the cache holds"
	hintLogin       = `run "docker login" or set REGISTRY_AUTH_FILE`
	hintTransports  = "references are NAME[:TAG], docker://NAME, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker-root:DIR#ID, containers-storage:DIR#ID, containerd-root:DIR#ID or dir:PATH[:PATH…]"
)

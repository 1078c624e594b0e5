package registry

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"
)

// How long a registry may be silent. There is no limit on a whole transfer.
const (
	stallTimeout  = 15 * time.Second // without a byte of a body
	headerTimeout = 30 * time.Second // until a response starts: proxies fetch the blob first
	commitTimeout = 5 * time.Minute  // until an upload is closed: registries hash or copy it then
	lockPoll      = 20 * time.Millisecond
)

// backoff says how often and after what pauses a request is tried.
type backoff struct {
	tries    int
	once     bool          // somebody else tries again: he has other hosts to ask before
	min, max time.Duration // of a pause; it grows fourfold
	longest  time.Duration // that a server can ask for with Retry-After
}

var defaultBackoff = backoff{tries: 5, min: 100 * time.Millisecond, max: 10 * time.Second, longest: 30 * time.Second}

// retry calls f until it succeeds, fails for good, or was called b.tries times.
func (b backoff) retry(ctx context.Context, log *slog.Logger, f func() error) error {
	for try := 0; ; try++ {
		err := f()
		if err == nil {
			return nil
		}
		if err := b.pause(ctx, log, try, err); err != nil {
			return err
		}
	}
}

// pause waits before another try after err, which was number try, counted
// from 0. It returns err when there shall be none, marked so that whoever is
// in a loop of tries himself does not multiply them.
func (b backoff) pause(ctx context.Context, log *slog.Logger, try int, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if b.once {
		return err
	}
	if try+1 >= b.tries || !temporary(err) {
		return &permanent{err}
	}
	d := b.delay(try, err)
	log.Debug("retry", "error", err, "try", try+1, "wait", d)
	return sleep(ctx, d)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// delay is min·4^try with jitter of a half to both sides, or what the server asked for.
func (b backoff) delay(try int, err error) time.Duration {
	d := min(b.min<<(2*min(try, 8)), b.max)
	d = d/2 + rand.N(d+1)
	var f *fault
	if errors.As(err, &f) && f.wait > d {
		d = min(f.wait, b.longest)
	}
	return min(d, max(b.max, b.longest))
}

// temporary tells whether the same request may succeed later.
func temporary(err error) bool {
	var p *permanent
	var f *fault
	switch {
	case errors.As(err, &p), errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &f) && f.status != 0:
		return temporaryStatus(f.status)
	case errors.As(err, &f):
		return f.kind == ErrUnreachable && !f.final
	}
	return true
}

func temporaryStatus(s int) bool {
	switch s {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// permanent marks an error that is not worth another try.
type permanent struct{ error }

func (p *permanent) Unwrap() error { return p.error }

// permanentUnlessStatus marks every error but a server's own "try again".
func permanentUnlessStatus(err error) error {
	var f *fault
	if err == nil || errors.As(err, &f) && temporaryStatus(f.status) {
		return err
	}
	return &permanent{err}
}

var errStalled = errors.New("stalled")

// A watch ends a request that makes no progress, or whose caller has left.
// Other than with a context of the caller's, the request can be taken over by
// somebody else.
type watch struct {
	cancel context.CancelCauseFunc
	detach func() bool // parts the request from its caller; false: he has left already
	cause  func() error
	timer  *time.Timer
	limit  time.Duration
}

// newWatch returns the context for a request of ctx's caller.
func newWatch(ctx context.Context, limit time.Duration) (context.Context, *watch) {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	w := &watch{cancel: cancel, limit: limit, cause: func() error { return context.Cause(own) }}
	w.detach = context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	w.timer = time.AfterFunc(limit, func() { cancel(errStalled) })
	return own, w
}

// progress starts the wait for the next byte.
func (w *watch) progress() { w.timer.Reset(w.limit) }

// idle stops the clock while nobody waits for the server.
func (w *watch) idle() { w.timer.Stop() }

func (w *watch) stop() {
	w.timer.Stop()
	w.detach()
	w.cancel(nil)
}

// explain returns why the request really ended. Of a stall, the cancellation
// that it looks like must not be seen: it is worth another try.
func (w *watch) explain(err error) error {
	if err == nil {
		return nil
	}
	switch cause := w.cause(); {
	case errors.Is(cause, errStalled):
		return faultf(ErrUnreachable, "no answer for %s", w.limit)
	case cause != nil && !errors.Is(cause, context.Canceled):
		return cause
	}
	return err
}

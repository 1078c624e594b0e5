package registry

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// An outage is what all readers of one registry know of its not answering.
//
// A reader of a blob who may wait (Options.Wait) tries on until that time has
// passed. The readers take turns, so that a registry that comes back meets one
// request and not a thousand; the first answer sends them all.
type outage struct {
	wait time.Duration // of a read, from its first failure on; 0: nobody waits
	host string
	log  *slog.Logger
	turn chan struct{} // holds one: somebody may try

	mu    sync.Mutex
	known bool          // the registry has answered once, or is to be waited for all the same; protected by mu
	since time.Time     // of the first failure; zero: it answers; protected by mu
	turns int           // since then; protected by mu
	timer *time.Timer   // gives the next turn; protected by mu
	back  chan struct{} // closed when it answers again; nil: it answers; protected by mu
}

const (
	// rest is the longest pause between two tries of an outage: who waits for a
	// registry wants to know soon that it is back.
	rest = 2 * time.Second
	// blip is how many turns an outage has before it is worth a word in the log.
	blip = 3
)

func newOutage(wait time.Duration, host string, log *slog.Logger) *outage {
	return &outage{wait: wait, host: host, log: log, turn: make(chan struct{}, 1)}
}

// A waiter is one read's view of the outage.
type waiter struct {
	o     *outage
	b     backoff
	begun time.Time // of its first failure without progress since
}

// pause waits for the time of another try after err, which was number try since the last
// progress, and returns err when there shall be none.
func (w *waiter) pause(ctx context.Context, try int, err error) error {
	if try == 0 {
		w.begun = time.Now()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if w.b.once || !away(err) || !w.o.isKnown() {
		return w.b.pause(ctx, w.o.log, try, err)
	}
	left := w.o.wait - time.Since(w.begun)
	if left <= 0 {
		return &permanent{err}
	}
	back := w.o.failed(w.b)
	if asked := askedWait(err, w.b.longest); asked > 0 {
		return sleep(ctx, min(asked, left))
	}
	end := time.NewTimer(left)
	defer end.Stop()
	select {
	case <-back:
		return w.again(ctx, try)
	case <-w.o.turn:
		w.o.took(w.b)
		return nil
	case <-end.C:
		return &permanent{err}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// again is the pause of a reader who heard that the registry answers: none, unless it
// answers others and not him.
func (w *waiter) again(ctx context.Context, try int) error {
	if try < blip {
		return nil
	}
	return sleep(ctx, min(w.b.delay(try, nil), rest))
}

// askedWait is how long the server told this reader to wait (Retry-After), at most longest.
func askedWait(err error, longest time.Duration) time.Duration {
	var f *fault
	if !errors.As(err, &f) {
		return 0
	}
	return min(f.wait, longest)
}

// away tells whether an error means that the registry does not answer, for now:
// no connection, none that lasts, or "try again later".
func away(err error) bool {
	var f *fault
	if !errors.As(err, &f) {
		return false
	}
	return f.kind == ErrUnreachable && !f.final && (f.status == 0 || temporaryStatus(f.status))
}

func (o *outage) isKnown() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.wait > 0 && o.known
}

// expect makes readers wait also for a registry that has not answered yet.
func (o *outage) expect() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known = true
}

// failed takes note of a failure, and returns what is closed when the registry answers again.
func (o *outage) failed(b backoff) <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.back == nil {
		o.back, o.since, o.turns = make(chan struct{}), time.Now(), 0
		o.armLocked(b)
	}
	return o.back
}

// took has the next turn given, after one was taken.
func (o *outage) took(b backoff) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.back != nil {
		o.armLocked(b)
	}
}

// armLocked gives the next turn after a pause, which grows from turn to turn.
func (o *outage) armLocked(b backoff) {
	if o.turns++; o.turns == blip {
		o.log.Warn("the registry does not answer", "registry", o.host, "waiting", o.wait)
	}
	b.max = min(b.max, rest)
	o.timer = time.AfterFunc(b.delay(o.turns-1, nil), func() {
		select {
		case o.turn <- struct{}{}:
		default:
		}
	})
}

// answered ends the outage.
func (o *outage) answered() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known = true
	if o.back == nil {
		return
	}
	o.timer.Stop()
	close(o.back)
	if o.turns >= blip {
		o.log.Info("the registry answers again", "registry", o.host, "after", time.Since(o.since))
	}
	o.back, o.since = nil, time.Time{}
}

// begun is when the outage began; zero: there is none.
func (o *outage) begun() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.since
}

// WaitForRegistry makes readers of blobs wait for Options.Wait from now on also where the
// registry has never answered: before, somebody may have mistyped its name.
func (im *Image) WaitForRegistry() {
	if o := im.outage(); o != nil {
		o.expect()
	}
}

// AwaySince is when the registry stopped to answer; zero: it answers, as far as anybody has asked.
func (im *Image) AwaySince() time.Time {
	if o := im.outage(); o != nil {
		return o.begun()
	}
	return time.Time{}
}

// An awaited source is one that can be away.
type awaited interface {
	// state is what is known of that, and of who answered last ("": nobody).
	state() (o *outage, host string)
}

// outage is what is known of the image's registry; nil: it is in files, or nobody may ask.
func (im *Image) outage() *outage {
	o, _ := im.awaited()
	return o
}

func (im *Image) awaited() (*outage, string) {
	if r, ok := im.src.(*recorded); ok {
		if s, ok := r.inner.(awaited); ok {
			return s.state()
		}
	}
	return nil, ""
}

// AnsweredBy names the host that last had what was asked for, the registry or a mirror of it; "": nobody was asked.
func (im *Image) AnsweredBy() string {
	_, host := im.awaited()
	return host
}

func (s *remote) state() (*outage, string) { return s.cl.outage, s.cl.host }

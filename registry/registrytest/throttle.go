package registrytest

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// piece is how much goes over a slow link at once: small enough that several
// requests share the link evenly.
const piece = 16 << 10

// late is how long a link may have been free and still count as busy: on a loaded
// machine sleepers wake up late, which would otherwise cost the link a part of its rate.
const late = 10 * time.Millisecond

// A link delays answers and paces bodies. All requests share it.
type link struct {
	mu       sync.Mutex // protects all
	rate     int64      // bytes a second in each direction; 0: no limit
	rtt      time.Duration
	up, down time.Time // when each direction is free again
}

func (l *link) set(rate int64, rtt time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.rtt, l.up, l.down = rate, rtt, time.Time{}, time.Time{}
}

// far makes a listener's connections take a round trip before the first byte of a
// client is seen, as TCP's handshake does.
func (l *link) far(in net.Listener) net.Listener { return &farListener{in, l} }

type farListener struct {
	net.Listener
	l *link
}

func (f *farListener) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &farConn{Conn: c, l: f.l}, nil
}

// A farConn is read by one goroutine at a time.
type farConn struct {
	net.Conn
	l    *link
	near bool // the handshake is over
}

func (c *farConn) Read(p []byte) (int, error) {
	if !c.near {
		c.near = true
		c.l.mu.Lock()
		rtt := c.l.rtt
		c.l.mu.Unlock()
		time.Sleep(rtt)
	}
	return c.Conn.Read(p)
}

func (l *link) slow(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		rtt := l.rtt
		l.mu.Unlock()
		if !sleep(r.Context(), rtt) {
			return
		}
		r.Body = &slowBody{r.Body, l, r.Context()}
		next.ServeHTTP(&slowWriter{w, l, r.Context()}, r)
	})
}

// pass waits until n bytes have gone over one direction of the link.
func (l *link) pass(ctx context.Context, free *time.Time, n int) bool {
	l.mu.Lock()
	if l.rate <= 0 {
		l.mu.Unlock()
		return true
	}
	wait := l.reserveLocked(free, time.Now(), n)
	l.mu.Unlock()
	return sleep(ctx, wait)
}

// reserveLocked takes the next n bytes of a direction and returns how long they are on
// their way.
func (l *link) reserveLocked(free *time.Time, now time.Time, n int) time.Duration {
	if free.Before(now.Add(-late)) {
		*free = now
	}
	*free = free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	return free.Sub(now)
}

// sleep says whether d went by before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

type slowBody struct {
	io.ReadCloser
	l   *link
	ctx context.Context // the request's; a Reader has no other way to it
}

func (b *slowBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), piece)])
	if !b.l.pass(b.ctx, &b.l.up, n) {
		return n, b.ctx.Err()
	}
	return n, err
}

type slowWriter struct {
	http.ResponseWriter
	l   *link
	ctx context.Context
}

func (w *slowWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *slowWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		end := min(len(p), done+piece)
		if !w.l.pass(w.ctx, &w.l.down, end-done) {
			return done, w.ctx.Err()
		}
		n, err := w.ResponseWriter.Write(p[done:end])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

package fuse

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// patience is how long a request whose caller got a signal goes on before it is
// given up with EINTR. The kernel interrupts a request for any signal that is
// not ignored, and many programs do not expect EINTR from a file; a page fault
// that gets it is a SIGBUS (filemap_fault in mm/filemap.c). Nearly all requests
// end within this time, and who really wants to leave waits no longer than this.
const patience = 2 * time.Second

// A call is the context of one request. It is done when the caller has been
// interrupted and patience has passed. It costs nothing until somebody waits on
// it. The handler that makes it must end it.
type call struct {
	interrupted <-chan struct{} // closed by the library when the kernel interrupts the request
	gate        *sync.RWMutex   // nil, or held for reading until the end

	mu    sync.Mutex
	done  chan struct{} // protected by mu; nil: nobody waits
	ended chan struct{} // protected by mu; made with done
}

var _ context.Context = (*call)(nil)

func newCall(cancel <-chan struct{}) *call { return &call{interrupted: cancel} }

// begin is the call of a request. Calls wait here once Pause has begun.
func (m *core) begin(cancel <-chan struct{}) *call {
	m.gate.RLock()
	return &call{interrupted: cancel, gate: &m.gate}
}

func (c *call) Deadline() (time.Time, bool) { return time.Time{}, false }

func (c *call) Value(any) any { return nil }

// Done starts the watch for the interruption.
func (c *call) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done, c.ended = make(chan struct{}), make(chan struct{})
		go watch(c.interrupted, c.done, c.ended)
	}
	return c.done
}

func watch(interrupted <-chan struct{}, done, ended chan struct{}) {
	select {
	case <-ended:
		return
	case <-interrupted:
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		close(done)
	}
}

// Err is nil until Done is closed.
func (c *call) Err() error {
	select {
	case <-c.interrupted:
	default:
		return nil
	}
	select {
	case <-c.Done():
		return context.Canceled
	default:
		return nil
	}
}

// end stops the watch.
func (c *call) end() {
	if c.gate != nil {
		c.gate.RUnlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		close(c.ended)
		c.ended = nil
	}
}

// left tells whether err is there because the caller did not wait.
func (c *call) left(err error) bool {
	return errors.Is(err, context.Canceled) && c.Err() != nil
}

// reply is what the caller of a request gets for an error. Only EIO is logged:
// everything else is an answer, not an accident.
func (m *core) reply(op string, node uint64, err error) gofuse.Status {
	if err == nil {
		return gofuse.OK
	}
	errno := errnoOf(err)
	if errno == syscall.EIO {
		m.log.Error("request answered with an input/output error", "op", op, "node", node, slog.Any("error", err))
	}
	return gofuse.Status(errno)
}

// replyCall is reply for a request that may have been given up by its caller.
func (m *core) replyCall(c *call, op string, node uint64, err error) gofuse.Status {
	if err != nil && c.left(err) {
		return gofuse.EINTR
	}
	return m.reply(op, node, err)
}

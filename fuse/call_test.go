package fuse

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

func TestCallHasPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		interrupt := make(chan struct{})
		c := newCall(interrupt)
		defer c.end()
		done := c.Done()
		begin := time.Now()
		close(interrupt)
		if c.Err() != nil {
			t.Error("given up at once")
		}
		<-done
		if waited := time.Since(begin); waited != patience {
			t.Errorf("given up after %v, want %v", waited, patience)
		}
		if c.Err() != context.Canceled {
			t.Errorf("Err is %v", c.Err())
		}
	})
}

// TestCallPolled is for who asks only Err, and never waits on Done.
func TestCallPolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		interrupt := make(chan struct{})
		c := newCall(interrupt)
		defer c.end()
		for _, want := range []error{nil, nil} {
			if err := c.Err(); err != want {
				t.Fatal(err)
			}
		}
		close(interrupt)
		if err := c.Err(); err != nil {
			t.Fatal("given up at once: ", err)
		}
		time.Sleep(2 * patience)
		if err := c.Err(); err != context.Canceled {
			t.Errorf("Err is %v", err)
		}
	})
}

// TestCallEnds checks that no watch is left behind: synctest fails when one is.
func TestCallEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, interrupted := range []bool{false, true} {
			interrupt := make(chan struct{})
			c := newCall(interrupt)
			ctx, cancel := context.WithCancel(c)
			if interrupted {
				close(interrupt)
			}
			synctest.Wait()
			if ctx.Err() != nil {
				t.Error(ctx.Err())
			}
			cancel()
			c.end()
			c.end()
		}
	})
}

func TestReply(t *testing.T) {
	var log bytes.Buffer
	m := newCore(emptyFS(t), slog.New(slog.NewTextHandler(&log, nil)))
	c := newCall(make(chan struct{}))
	gone := &call{interrupted: closed(), done: closed()}
	data := &union.DataError{Path: "x", Err: context.Canceled}
	for _, tt := range []struct {
		c      *call
		err    error
		want   gofuse.Status
		logged bool
	}{
		{c, nil, gofuse.OK, false},
		{c, syscall.ENOTEMPTY, gofuse.Status(syscall.ENOTEMPTY), false},
		{c, fmt.Errorf("broken"), gofuse.EIO, true},
		{c, data, gofuse.EIO, true}, // somebody else gave up: this caller is told the data is missing
		{gone, data, gofuse.EINTR, false},
		{gone, syscall.ENOSPC, gofuse.Status(syscall.ENOSPC), false},
	} {
		log.Reset()
		if got := m.replyCall(tt.c, "read", 7, tt.err); got != tt.want || (log.Len() > 0) != tt.logged {
			t.Errorf("%v: got %v, want %v; log %q", tt.err, got, tt.want, log.String())
		}
	}
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestPanicked(t *testing.T) {
	var log bytes.Buffer
	if got := panicked(slog.New(slog.NewTextHandler(&log, nil)), "the reason"); got != gofuse.EIO {
		t.Errorf("got %v", got)
	}
	for _, want := range []string{"the reason", "TestPanicked"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q: %s", want, log.String())
		}
	}
}

func TestHandles(t *testing.T) {
	var h handles[string]
	a, b := h.add("a", 0), h.add("b", 0)
	if a == 0 || b == 0 || a == b {
		t.Errorf("numbers %d, %d", a, b)
	}
	if v, ok := h.get(a); !ok || v != "a" {
		t.Errorf("get: %q, %v", v, ok)
	}
	if v, ok := h.remove(a); !ok || v != "a" {
		t.Errorf("remove: %q, %v", v, ok)
	}
	if _, ok := h.get(a); ok {
		t.Error("still there after remove")
	}
	if c := h.add("c", 0); c == a {
		t.Error("a number was used again")
	}
	if _, ok := h.remove(0); ok {
		t.Error("0 is a handle")
	}
	if all := h.drain(); len(all) != 2 || h.len() != 0 {
		t.Errorf("drained %q, left %v", all, h.open)
	}
}

func TestXattrList(t *testing.T) {
	names := []string{"user.a", "trusted.b", "security.c"}
	if got := string(xattrList(names, true)); got != "user.a\x00trusted.b\x00security.c\x00" {
		t.Errorf("superuser: %q", got)
	}
	if got := string(xattrList(names, false)); got != "user.a\x00security.c\x00" {
		t.Errorf("user: %q", got)
	}
}

func TestWithoutPrivs(t *testing.T) {
	for mode, want := range map[uint32]uint32{
		0o644: 0o644, 0o4755: 0o755, 0o2755: 0o755, 0o2744: 0o2744, 0o6711: 0o711, 0o6701: 0o2701, 0o1777: 0o1777,
	} {
		if got := withoutPrivs(mode); got != want {
			t.Errorf("%o: got %o, want %o", mode, got, want)
		}
	}
}

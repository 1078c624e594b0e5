package registry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// waiting opens an image whose blobs are waited for.
func waiting(t *testing.T, s *registrytest.Server, blob []byte, wait time.Duration, log *slog.Logger) (*Image, *Blob) {
	t.Helper()
	s.PushImage("x:1", image(blob))
	o := anonymous(t)
	o.Wait, o.Logger = wait, log
	im := mustOpen(t, s.Host()+"/x:1", o)
	im.src.(*recorded).inner.(*remote).cl.backoff.min = 5 * time.Millisecond
	return im, im.Blob(im.Manifest.Layers[0])
}

// TestOutage: who reads while the registry is away waits for it, all of them at the cost of one, and the log says it once.
func TestOutage(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(300_000)
	var said safeBuffer
	im, b := waiting(t, s, blob, time.Minute, slog.New(slog.NewTextHandler(&said, nil)))
	s.Use(registrytest.On(registrytest.Blobs, registrytest.Status(503, -1)))
	var readers sync.WaitGroup
	const n = 200
	for i := range int64(n) {
		readers.Go(func() { wantRange(t, b, blob, i*1000, 1000) })
	}
	for begun := time.Now(); s.Total("GET", "/blobs/").Requests < n+8; time.Sleep(time.Millisecond) {
		if time.Since(begun) > 30*time.Second {
			t.Fatal("no more tries")
		}
	}
	if im.AwaySince().IsZero() {
		t.Error("nobody knows that the registry is away")
	}
	s.Heal()
	readers.Wait()
	if !im.AwaySince().IsZero() {
		t.Error("it is back, and nobody knows")
	}
	if text := said.String(); strings.Count(text, "does not answer") != 1 || strings.Count(text, "answers again") != 1 {
		t.Errorf("the log:\n%s", text)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestTurns: the readers of a registry that is away ask it together no more often than one would.
func TestTurns(t *testing.T) {
	o := newOutage(time.Hour, "r", slog.New(slog.DiscardHandler))
	o.expect()
	var tries atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	b := backoff{min: 4 * time.Millisecond, max: 64 * time.Millisecond, longest: time.Second}
	for range 500 {
		readers.Go(func() {
			w := &waiter{o: o, b: b}
			for try := 0; w.pause(ctx, try, faultf(ErrUnreachable, "away")) == nil; try++ {
				tries.Add(1)
			}
		})
	}
	time.Sleep(time.Second)
	cancel()
	readers.Wait()
	if n := tries.Load(); n < 3 || n > 40 { // a pause of 64 ms, give or take a half
		t.Errorf("500 readers tried %d times in a second", n)
	}
}

// TestOutageEnds: after the set time the read fails, the next one tries again, and what cannot be mended is not waited for.
func TestOutageEnds(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	_, b := waiting(t, s, blob, 300*time.Millisecond, nil)
	s.Use(registrytest.On(registrytest.Blobs, registrytest.Status(503, -1)))
	for range 2 {
		begun := time.Now()
		if _, err := readRange(t.Context(), b, 0, 10); !errors.Is(err, ErrUnreachable) || time.Since(begun) < 300*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	}
	s.Heal()
	wantRange(t, b, blob, 0, 10)

	_, b = waiting(t, s, blob, time.Hour, nil)
	for _, status := range []int{404, 403} {
		s.Use(registrytest.On(registrytest.Blobs, registrytest.Status(status, -1)))
		if _, err := readRange(t.Context(), b, 0, 10); err == nil {
			t.Errorf("%d: no error", status)
		}
		s.Heal()
	}
	s.Use(registrytest.On(registrytest.Blobs, registrytest.Status(503, -1)))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := readRange(ctx, b, 0, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who leaves: %v", err)
	}
}

// TestRetryAfter: who is told when to come again comes then and not before, whatever others hear.
func TestRetryAfter(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	_, b := waiting(t, s, blob, time.Minute, nil)
	s.Use(registrytest.On(registrytest.Blobs, registrytest.Status(429, 3, "Retry-After", "1")))
	before, begun := s.Total("GET", "/blobs/").Requests, time.Now()
	wantRange(t, b, blob, 0, 10)
	if n, took := s.Total("GET", "/blobs/").Requests-before, time.Since(begun); n != 4 || took < 3*time.Second {
		t.Errorf("%d requests in %v", n, took)
	}
}

// TestUnknownRegistry: a registry that never answered is not waited for, unless somebody says so.
func TestUnknownRegistry(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	desc := s.PushImage("x:1", image(blob))
	o := anonymous(t)
	o.Records = &memory{}
	mustOpen(t, s.Host()+"/x@"+desc.Digest.String(), o)
	s.Use(registrytest.Status(503, -1))
	o.Wait = time.Hour
	im := mustOpen(t, s.Host()+"/x@"+desc.Digest.String(), o)
	hasten(im)
	b := im.Blob(im.Manifest.Layers[0])
	if _, err := readRange(t.Context(), b, 0, 10); !errors.Is(err, ErrUnreachable) {
		t.Errorf("never met: %v", err)
	}
	im.WaitForRegistry()
	time.AfterFunc(200*time.Millisecond, s.Heal)
	wantRange(t, b, blob, 0, 10)
}

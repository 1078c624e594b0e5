package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// flock repeats the call while signals interrupt it.
func flock(f interface{ Fd() uintptr }, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err != syscall.EINTR {
			return err
		}
	}
}

// tryAlone locks f exclusively unless anybody else has it locked.
func tryAlone(f file) bool {
	return flock(f, syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// still reports whether path is the file f: between open and flock somebody may have
// removed or replaced it.
func still(f file, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// A door serializes what makes files of the store appear and disappear, in this process
// and between processes. It is held for moments only.
type door struct {
	mu sync.Mutex
	f  *os.File
}

func openDoor(path string) (*door, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return &door{f: f}, nil
}

// enter waits for the door and returns the function that leaves it.
func (d *door) enter() (leave func(), err error) {
	d.mu.Lock()
	if err := flock(d.f, syscall.LOCK_EX); err != nil {
		d.mu.Unlock()
		return nil, fmt.Errorf("lock %s: %w", d.f.Name(), err)
	}
	return func() {
		_ = flock(d.f, syscall.LOCK_UN)
		d.mu.Unlock()
	}, nil
}

func (d *door) close() error { return d.f.Close() }

// The pauses between two looks at a lock that somebody else holds: flock cannot be
// interrupted by a context, and a waiting caller must be able to leave.
const (
	minPause = time.Millisecond
	maxPause = 25 * time.Millisecond
)

// Lock waits until no other caller, in this process or another, holds the lock of d, and
// takes it: one of them streams the layer while the others wait, then find it there. It
// protects nothing by itself. The lock ends with unlock, or with the process.
func (s *Store) Lock(ctx context.Context, d digest.Digest) (unlock func(), err error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("lock layer: digest %q: %w", d, err)
	}
	path := filepath.Join(s.dir, "locks", d.Algorithm().String()+"-"+d.Encoded())
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		f, err := tryLock(path)
		if err != nil {
			return nil, fmt.Errorf("lock layer %s: %w", d, err)
		}
		if f != nil {
			return sync.OnceFunc(func() { letGo(f) }), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock layer %s: %w", d, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// tryLock returns the locked file, or nil when somebody else has it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(f, syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil && still(f, path) {
		return f, nil
	}
	letGo(f)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = nil
	}
	return nil, err
}

// letGo closes a file for its lock and its descriptor only: what was written to it is
// synced, or proves itself when it is read.
func letGo(f io.Closer) { f.Close() }

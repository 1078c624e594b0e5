package cache

import (
	"fmt"
	"path/filepath"
	"syscall"
	"time"
)

// quiet is how long nothing must be written to a lazily filled pack before it is
// brought to the disk and marked clean, though it stays open.
const quiet = 5 * time.Second

// stop ends the fills, and returns when they have.
func (c *content) stop() {
	c.mu.Lock()
	c.closing = true
	if c.idle != nil {
		c.idle.Stop()
	}
	c.mu.Unlock()
	c.cancel()
	c.fills.Wait()
}

// idleLocked starts the wait for quiet anew.
func (c *content) idleLocked() {
	if c.closing || c.h.clean || c.dir == "" {
		return
	}
	if c.idle == nil {
		c.idle = time.AfterFunc(quiet, c.settleIdle)
		return
	}
	c.idle.Reset(quiet)
}

func (c *content) settleIdle() {
	c.mu.Lock()
	busy := c.closing || len(c.flights) > 0
	if !busy {
		c.fills.Add(1) // stop waits for us, as it does for fills
	}
	c.mu.Unlock()
	if busy {
		return
	}
	defer c.fills.Done()
	if err := c.settle(); err != nil {
		c.s.log.Warn("sync pack", "layer", c.d, "err", err)
	}
}

// settle brings the pack to the disk and marks it clean, unless that was done or the file
// is no longer the pack of its layer. System calls: fsync flock(exclusive) pwrite
// flock(shared) fsync, fsync of the directory.
func (c *content) settle() error {
	if c.dir == "" || c.isClean() || !still(c.f, filepath.Join(c.dir, "pack")) {
		return nil
	}
	c.writing.Lock()
	seen := c.writes.Load()
	c.writing.Unlock()
	if err := c.f.Sync(); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	done, err := c.markClean(seen)
	if err != nil || !done {
		return err
	}
	if err := c.f.Sync(); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	return c.s.disk.sync(c.dir)
}

func (c *content) isClean() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.h.clean
}

// markClean writes a clean header if nothing was written since seen. Nobody may write
// between the fsync and the mark, so the pack must be complete, or no other process may
// have it open; otherwise the mark is left to whoever closes it last.
func (c *content) markClean(seen int64) (done bool, err error) {
	leave, err := c.s.door.enter()
	if err != nil {
		return false, err
	}
	defer leave()
	// A failed attempt may lose the shared lock, but whoever wants the exclusive one
	// waits at the door.
	alone := tryAlone(c.f)
	if err := flock(c.f, syscall.LOCK_SH); err != nil {
		return false, fmt.Errorf("settle: lock: %w", err)
	}
	if !alone && !c.complete() {
		return false, nil
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.writes.Load() != seen {
		return false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.h.clean = true
	if err := c.writeHeaderLocked(); err != nil {
		c.h.clean = false
		return false, fmt.Errorf("settle: %w", err)
	}
	return true, nil
}

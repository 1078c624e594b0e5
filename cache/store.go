package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// background runs work that Close waits for.
func (s *Store) background(f func()) { s.bg.Go(f) }

// temp creates a file that is published by a rename. Its flock tells everybody that its
// writer lives, and after the rename that the pack is in use.
func (s *Store) temp() (file, error) {
	for {
		f, err := s.disk.temp(filepath.Join(s.dir, "tmp"))
		if err != nil {
			return nil, err
		}
		err = flock(f, syscall.LOCK_SH)
		if err == nil && still(f, f.Name()) {
			return f, nil
		}
		letGo(f)
		if err != nil {
			return nil, err
		}
	}
}

// acquire returns the content that find finds or makes, with a reference for the caller. It
// holds the door, so that nobody else makes, replaces or removes the same pack.
func (s *Store) acquire(d digest.Digest, find func(dir string) (*content, error)) (*content, error) {
	dir, err := s.layerDir(d)
	if err != nil {
		return nil, err
	}
	leave, err := s.door.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	c, err := find(dir)
	if err != nil {
		return nil, err
	}
	c.wanted.Store(true)
	c.touch()
	return c, nil
}

// hold counts one more reference.
func (s *Store) hold(c *content) {
	s.mu.Lock()
	c.refs++
	s.mu.Unlock()
}

// adopt makes c, which is new, the pack of its digest in this process, with a reference
// for the caller. It needs the door.
func (s *Store) adopt(c *content) *content {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.refs++
	s.open[c.d] = c
	return c
}

// opened returns the pack that this process has open, with a reference for the caller, or nil.
func (s *Store) opened(d digest.Digest) *content {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.open[d]
	if c != nil {
		c.refs++
	}
	return c
}

// openLazy needs the door.
func (s *Store) openLazy(d digest.Digest, dir string, units []Unit, ends []int64) (*content, error) {
	layout := layoutOf(units)
	c := s.opened(d)
	if c != nil && c.h.layout != layout {
		s.letGo(c)
		c = nil
	}
	if c == nil {
		var err error
		if c, err = s.loadLazy(d, dir, layout, ends); err != nil {
			return nil, err
		}
		s.adopt(c)
	}
	c.mu.Lock()
	c.units = units
	c.mu.Unlock()
	return c, nil
}

// loadLazy opens the pack file if it has this layout, and makes an empty one otherwise.
func (s *Store) loadLazy(d digest.Digest, dir string, layout [sha256.Size]byte, ends []int64) (*content, error) {
	c, err := s.load(d, dir)
	if err == nil && c.h.layout == layout {
		return c, nil
	}
	if err == nil {
		s.log.Info("pack with other units replaced", "layer", d)
		c.discard()
	} else if Refused(err) {
		s.log.Warn("open pack; kept in memory", "layer", d, "err", err)
		return s.makeMemory(d, header{layout: layout}, ends, err)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return s.makeLazy(d, dir, header{layout: layout}, ends)
}

// openComplete needs the door.
func (s *Store) openComplete(d digest.Digest, dir string) (*content, error) {
	c := s.opened(d)
	if c == nil {
		var err error
		if c, err = s.load(d, dir); err != nil {
			return nil, err
		}
		if !c.complete() {
			c.discard()
			return nil, fmt.Errorf("%d of %d bytes: %w", c.present.Load(), c.size, fs.ErrNotExist)
		}
		return s.adopt(c), nil
	}
	for i := range c.ends {
		if c.is(i, unknown) && !c.appeared(i) {
			s.letGo(c)
			return nil, fmt.Errorf("%d of %d bytes: %w", c.present.Load(), c.size, fs.ErrNotExist)
		}
	}
	return c, nil
}

// load opens the pack file in dir. One that is damaged, or that a power loss may have
// damaged, is removed; the error is fs.ErrNotExist then. It needs the door.
func (s *Store) load(d digest.Digest, dir string) (*content, error) {
	path := filepath.Join(dir, "pack")
	f, err := s.disk.open(path)
	if errors.Is(err, syscall.ELOOP) {
		s.log.Warn("pack dropped", "layer", d, "err", err)
		return nil, errors.Join(fs.ErrNotExist, os.Remove(path))
	}
	if err != nil {
		return nil, err
	}
	if err := flock(f, syscall.LOCK_SH); err != nil {
		letGo(f)
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	c, err := s.read(d, f)
	if err != nil {
		letGo(f)
		s.log.Warn("pack dropped", "layer", d, "err", err)
		return nil, errors.Join(fs.ErrNotExist, os.Remove(path))
	}
	c.dir = dir
	return c, nil
}

func (s *Store) read(d digest.Digest, f file) (*content, error) {
	h, err := loadHeader(f)
	if err != nil {
		return nil, err
	}
	if !h.clean && h.boot != s.boot {
		return nil, errors.New("the machine was restarted before the pack was on the disk")
	}
	gens, err := readWords(f, h.genOff(), int(h.regions())) // before the map
	if err != nil {
		return nil, err
	}
	m := make([]byte, h.units*entrySize)
	if _, err := f.ReadAt(m, h.mapOff()); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	ends, err := parseEnds(m, h)
	if err != nil {
		return nil, err
	}
	return newContent(s, d, f, h, ends, m, gens), nil
}

func loadHeader(f file) (header, error) {
	st, err := f.Stat()
	if err != nil {
		return header{}, err
	}
	if st.Size() < blockSize {
		return header{}, fmt.Errorf("pack of %d bytes: %w", st.Size(), ErrCorrupt)
	}
	b := make([]byte, blockSize)
	if _, err := f.ReadAt(b, st.Size()-blockSize); err != nil {
		return header{}, err
	}
	return parseHeader(b, st.Size())
}

// makeLazy makes an empty pack. System calls: openat(tmp) flock ftruncate pwrite rename;
// fsync comes when the pack is settled. It needs the door.
func (s *Store) makeLazy(d digest.Digest, dir string, h header, ends []int64) (*content, error) {
	m := s.encodeMap(&h, ends)
	f, err := s.makeFile(dir, h, m)
	if Refused(err) {
		s.log.Warn("make pack; kept in memory", "layer", d, "err", err)
		return s.makeMemory(d, h, ends, err)
	}
	if err != nil {
		return nil, err
	}
	c := newContent(s, d, f, h, ends, m, nil)
	c.dir = dir
	return c, nil
}

// makeMemory makes a pack for a disk that refuses the map: its units never leave the overlay.
func (s *Store) makeMemory(d digest.Digest, h header, ends []int64, why error) (*content, error) {
	m := s.encodeMap(&h, ends)
	f, err := memoryFile(h, m)
	if err != nil {
		return nil, err
	}
	c := newContent(s, d, f, h, ends, m, nil)
	c.noFile = why
	return c, nil
}

// encodeMap makes the map and the header of an empty pack.
func (s *Store) encodeMap(h *header, ends []int64) (m []byte) {
	if len(ends) > 0 {
		h.size = ends[len(ends)-1]
	}
	h.units, h.boot = int64(len(ends)), s.boot
	m, h.ends = encodeEnds(ends)
	return m
}

func (s *Store) makeFile(dir string, h header, m []byte) (file, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := s.temp()
	if err != nil {
		return nil, err
	}
	if err = writeMeta(f, h, m); err == nil {
		err = s.disk.rename(f.Name(), filepath.Join(dir, "pack"))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		letGo(f)
		return nil, err
	}
	return f, nil
}

// writeMeta gives f its final size, its map and its header.
func writeMeta(f file, h header, m []byte) error {
	if err := f.Truncate(h.fileSize()); err != nil {
		return err
	}
	if _, err := f.WriteAt(m, h.mapOff()); err != nil {
		return err
	}
	_, err := f.WriteAt(h.encode(), h.headerOff())
	return err
}

func memoryFile(h header, m []byte) (file, error) {
	fd, err := unix.MemfdCreate("layerfs-pack", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	if err := writeMeta(f, h, m); err != nil {
		letGo(f)
		return nil, err
	}
	return f, nil
}

// release gives back a reference to c. Who gives back the last one ends the fills.
func (s *Store) release(c *content) {
	if s.unref(c) {
		s.finish(c)
	}
}

// letGo is release without waiting for fills, as who is behind the door must.
func (s *Store) letGo(c *content) {
	if s.unref(c) {
		s.background(func() { s.finish(c) })
	}
}

// unref reports whether it took the last reference. Nobody can get c any more then, and
// the caller owes it a finish.
func (s *Store) unref(c *content) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.refs--
	if c.refs > 0 {
		return false
	}
	if s.open[c.d] == c {
		delete(s.open, c.d)
	}
	s.closing[c] = make(chan struct{})
	return true
}

// finish ends the fills of c; the disk is waited for in the background.
func (s *Store) finish(c *content) {
	c.stop()
	if c.wanted.Load() {
		c.touch()
		c.flushUse()
	}
	s.background(func() {
		if err := c.settle(); err != nil {
			s.log.Warn("sync pack", "layer", c.d, "err", err)
		}
		s.closed(c)
	})
}

// closed closes the file of a content that was finished.
func (s *Store) closed(c *content) {
	letGo(c.f)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.closing[c])
	delete(s.closing, c)
}

// waitClosed returns when the packs of d that this process closed are on the disk, so
// that they do not look as if they were in use.
func (s *Store) waitClosed(d digest.Digest) {
	s.mu.Lock()
	var waits []chan struct{}
	for c, closed := range s.closing {
		if c.d == d {
			waits = append(waits, closed)
		}
	}
	s.mu.Unlock()
	for _, closed := range waits {
		<-closed
	}
}

// touch notes that the layer is used now.
func (c *content) touch() {
	if c.dir == "" {
		return
	}
	now := time.Now()
	if err := os.Chtimes(c.dir, now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.s.log.Warn("touch layer", "layer", c.d, "err", err)
	}
}

// appeared looks whether another process filled unit i.
func (c *content) appeared(i int) bool {
	lock := c.stripe(i)
	lock.Lock()
	defer lock.Unlock()
	if !c.is(i, unknown) {
		return true
	}
	if _, there := c.entry(i); !there || c.sick.Load() {
		return false
	}
	c.setState(i, marked)
	return true
}

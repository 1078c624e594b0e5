package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// Usage is what one layer takes.
type Usage struct {
	Digest   digest.Digest
	Size     int64     // bytes of the pack; 0 when there is only an index
	OnDisk   int64     // bytes that pack and index take
	Complete bool      // all bytes are there
	InUse    bool      // a process has the pack open
	Pinned   bool      // evicted last: see Pin
	Used     time.Time // when it was last opened or closed
}

// Usage lists the layers of the store, by digest.
func (s *Store) Usage() ([]Usage, error) {
	leave, err := s.door.enter()
	if err != nil {
		return nil, fmt.Errorf("cache usage: %w", err)
	}
	defer leave()
	list, err := s.usageLocked()
	if err != nil {
		return nil, fmt.Errorf("cache usage: %w", err)
	}
	return list, nil
}

func (s *Store) usageLocked() ([]Usage, error) {
	dirs, err := filepath.Glob(filepath.Join(s.dir, "layers", "*", "*"))
	if err != nil {
		return nil, err
	}
	var list []Usage
	for _, dir := range dirs {
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(dir))), filepath.Base(dir))
		if d.Validate() == nil {
			list = append(list, s.usageOf(d, dir))
		}
	}
	return list, nil
}

// usageOf never fails: what cannot be read is not complete.
func (s *Store) usageOf(d digest.Digest, dir string) Usage {
	u := Usage{Digest: d}
	if st, err := os.Stat(dir); err == nil {
		u.Used = st.ModTime()
	}
	u.OnDisk = onDisk(filepath.Join(dir, "index")) + onDisk(filepath.Join(dir, "pack"))
	_, err := os.Lstat(filepath.Join(dir, "pinned"))
	u.Pinned = err == nil
	f, err := s.disk.open(filepath.Join(dir, "pack"))
	if err != nil {
		return u
	}
	defer letGo(f)
	u.InUse = !tryAlone(f)
	if c, err := s.read(d, f); err == nil {
		u.Size, u.Complete = c.size, c.complete()
		c.cancel()
	}
	return u
}

func onDisk(path string) int64 {
	var st syscall.Stat_t
	if syscall.Lstat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// Remove removes the pack and the index of d; the error is ErrInUse while any process has
// the pack open, and nil when there is nothing. It waits for packs of d that were closed in
// this process and are on their way to the disk.
func (s *Store) Remove(d digest.Digest) error {
	s.waitClosed(d)
	return s.remove(d, removeLocked)
}

// Evict is Remove, but keeps the index and the time of the last use: the layer opens
// without the index being made again.
func (s *Store) Evict(d digest.Digest) error {
	s.waitClosed(d)
	return s.remove(d, evictLocked)
}

// removeLocked needs the door, as evictLocked does.
func removeLocked(dir string) error {
	if err := removePack(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func evictLocked(dir string) error {
	used, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = removePack(dir)
	}
	if err != nil {
		return err
	}
	if os.Remove(dir) == nil { // there was no index, and nobody pinned it
		return nil
	}
	return os.Chtimes(dir, used.ModTime(), used.ModTime())
}

func (s *Store) remove(d digest.Digest, locked func(dir string) error) error {
	dir, err := s.layerDir(d)
	if err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	leave, err := s.door.enter()
	if err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	defer leave()
	if err := locked(dir); err != nil {
		return fmt.Errorf("remove layer %s: %w", d, err)
	}
	return nil
}

func removePack(dir string) error {
	pack := filepath.Join(dir, "pack")
	f, err := os.OpenFile(pack, os.O_RDWR|oNoFollow, 0)
	if errors.Is(err, syscall.ELOOP) { // what is not ours can go, whoever uses it
		return os.Remove(pack)
	}
	if err == nil {
		defer letGo(f)
		if !tryAlone(f) {
			return ErrInUse
		}
		err = os.Remove(pack)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// GC makes room until the directory takes at most limit bytes on disk: it evicts regions
// of packs, the least recently used first and those of pinned layers last, then indexes, which are a hundredth
// of them and worth more. With a limit of 0 it evicts all packs that nobody uses, and
// keeps the indexes and what is in use. It also removes what dead processes left, and returns the bytes freed.
func (s *Store) GC(limit int64) (freed int64, err error) {
	before := s.total()
	if limit > 0 {
		left, err := s.keepBelow(limit, limit)
		if err != nil {
			return before - left, fmt.Errorf("collect cache: %w", err)
		}
	}
	if _, err := s.sweep(); err != nil {
		return before - s.total(), fmt.Errorf("collect cache: %w", err)
	}
	if limit == 0 {
		err = s.evictUnused()
	}
	return before - s.total(), err
}

func (s *Store) evictUnused() error {
	list, err := s.Usage()
	if err != nil {
		return fmt.Errorf("collect cache: %w", err)
	}
	for _, u := range list {
		if u.InUse {
			continue
		}
		if err := s.Evict(u.Digest); err != nil && !errors.Is(err, ErrInUse) {
			return fmt.Errorf("collect cache: %w", err)
		}
	}
	return nil
}

// sweep removes temporary files and lock files that no living process has locked, and
// returns the bytes freed. Anybody who makes such a file locks it and then looks whether it is still there.
func (s *Store) sweep() (freed int64, err error) {
	leave, err := s.door.enter()
	if err != nil {
		return 0, err
	}
	defer leave()
	for _, sub := range []string{"tmp", "locks"} {
		dir := filepath.Join(s.dir, sub)
		list, err := os.ReadDir(dir)
		if err != nil {
			return freed, err
		}
		for _, e := range list {
			freed += sweepFile(filepath.Join(dir, e.Name()))
		}
	}
	return freed, nil
}

func sweepFile(path string) int64 {
	f, err := os.OpenFile(path, os.O_RDWR|oNoFollow, 0)
	if errors.Is(err, syscall.ELOOP) {
		_ = os.Remove(path) // not ours
	}
	if err != nil {
		return 0
	}
	defer letGo(f)
	size := onDisk(path)
	if !tryAlone(f) || !still(f, path) || os.Remove(path) != nil {
		return 0
	}
	return size
}

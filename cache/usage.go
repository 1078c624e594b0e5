package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	f, err := os.OpenFile(filepath.Join(dir, "pack"), os.O_RDWR, 0)
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
	return s.remove(d, func(dir string) error {
		if err := removePack(dir); err != nil {
			return err
		}
		return os.RemoveAll(dir)
	})
}

// Evict is Remove, but keeps the index and the time of the last use: the layer opens
// without the index being made again.
func (s *Store) Evict(d digest.Digest) error {
	return s.remove(d, func(dir string) error {
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
		if os.Remove(dir) == nil { // there was no index
			return nil
		}
		return os.Chtimes(dir, used.ModTime(), used.ModTime())
	})
}

func (s *Store) remove(d digest.Digest, locked func(dir string) error) error {
	dir, err := s.layerDir(d)
	if err != nil {
		return fmt.Errorf("remove layer: %w", err)
	}
	s.waitClosed(d)
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
	f, err := os.OpenFile(pack, os.O_RDWR, 0)
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

// GC makes room until what is left takes at most limit bytes on disk, never at the cost of
// what is in use: it evicts packs, the least recently used first, and then, unless limit
// is 0, removes indexes, which are a hundredth of them and worth more. It also removes what
// dead processes left, and returns the bytes freed.
func (s *Store) GC(limit int64) (freed int64, err error) {
	freed, err = s.sweep()
	if err != nil {
		return freed, fmt.Errorf("collect cache: %w", err)
	}
	list, err := s.Usage()
	if err != nil {
		return freed, fmt.Errorf("collect cache: %w", err)
	}
	slices.SortStableFunc(list, func(a, b Usage) int { return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.Digest, b.Digest)) })
	var total int64
	for _, u := range list {
		total += u.OnDisk
	}
	before := total
	drops := []func(digest.Digest) error{s.Evict, s.Remove}
	if limit == 0 {
		drops = drops[:1]
	}
	for _, drop := range drops {
		for i := range list {
			if total <= limit {
				break
			}
			if err := s.drop(&list[i], drop, &total); err != nil {
				return freed + before - total, fmt.Errorf("collect cache: %w", err)
			}
		}
	}
	return freed + before - total, nil
}

// drop makes room by one layer, unless it is in use, and takes what it freed from total.
func (s *Store) drop(u *Usage, drop func(digest.Digest) error, total *int64) error {
	if u.InUse {
		return nil
	}
	err := drop(u.Digest)
	if err != nil && !errors.Is(err, ErrInUse) {
		return err
	}
	dir, err := s.layerDir(u.Digest)
	if err != nil {
		return err
	}
	now := s.usageOf(u.Digest, dir).OnDisk
	*total -= u.OnDisk - now
	u.OnDisk = now
	return nil
}

// limit keeps the store within Options.MaxBytes.
func (s *Store) limit() {
	if s.max <= 0 {
		return
	}
	freed, err := s.GC(s.max)
	if err != nil {
		s.log.Warn("limit cache", "err", err)
	}
	if freed > 0 {
		s.log.Info("cache limited", "freed", freed, "max", s.max)
	}
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
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
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

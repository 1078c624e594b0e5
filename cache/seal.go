package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// A sealed file is sealMagic, the SHA-256 of all that follows, and the content. A record's
// content begins with its name and a line feed, because its file name is only a hash.
const sealMagic = "lfsseal1"

func seal(content []byte) []byte {
	sum := sha256.Sum256(content)
	b := make([]byte, 0, len(sealMagic)+len(sum)+len(content))
	b = append(b, sealMagic...)
	b = append(b, sum[:]...)
	return append(b, content...)
}

// unseal returns the content of a sealed file, or false when it is damaged.
func unseal(b []byte) ([]byte, bool) {
	const head = len(sealMagic) + sha256.Size
	if len(b) < head || string(b[:len(sealMagic)]) != sealMagic {
		return nil, false
	}
	sum := sha256.Sum256(b[head:])
	return b[head:], bytes.Equal(sum[:], b[len(sealMagic):head])
}

// loadSealed reads a sealed file. A damaged one is removed, and the error says both that
// it was corrupt and that there is none.
func (s *Store) loadSealed(path string) ([]byte, error) {
	b, err := s.disk.readFile(path)
	if err != nil {
		return nil, err
	}
	content, ok := unseal(b)
	if ok {
		return content, nil
	}
	s.log.Warn("damaged cache file dropped", "path", path)
	_ = os.Remove(path) // whoever sees it next drops it again
	return nil, fmt.Errorf("%s: %w (%w)", path, ErrCorrupt, fs.ErrNotExist)
}

// saveSealed puts content at path. What stands there already is left alone when it is the
// same. System calls: openat(tmp) flock write [fsync] rename; in the background fsync, and
// fsync of the directory. Only where it replaces something must the new file be on the
// disk first: after a power loss a new file may be gone (it proves itself, and can be made
// again), but an old one must not be lost for it.
func (s *Store) saveSealed(path string, content []byte) error {
	old, err := s.disk.readFile(path)
	sealed := seal(content)
	if err == nil && bytes.Equal(old, sealed) {
		return nil
	}
	replaces := err == nil
	f, err := s.temp()
	if err != nil {
		return err
	}
	if err = writeTemp(f, sealed, replaces); err == nil {
		err = s.disk.rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		letGo(f)
		return err
	}
	s.background(func() {
		defer letGo(f)
		err := errors.Join(f.Sync(), s.disk.sync(filepath.Dir(path)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the layer may be gone already
			s.log.Warn("sync cache file", "path", path, "err", err)
		}
	})
	return nil
}

func writeTemp(f file, b []byte, sync bool) error {
	if _, err := f.Write(b); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return nil
}

// Index returns the bytes given to PutIndex or Commit for d. The error is fs.ErrNotExist
// when there are none, and also ErrCorrupt when they were damaged and dropped.
func (s *Store) Index(d digest.Digest) ([]byte, error) {
	dir, err := s.layerDir(d)
	if err != nil {
		return nil, fmt.Errorf("load index: %w", err)
	}
	b, err := s.loadSealed(filepath.Join(dir, "index"))
	if err != nil {
		return nil, fmt.Errorf("load index: %w", err)
	}
	return b, nil
}

// PutIndex keeps b as the index of d, in place of the one before. Readers see the old or
// the new one, never a part.
func (s *Store) PutIndex(d digest.Digest, b []byte) error {
	dir, err := s.layerDir(d)
	if err != nil {
		return fmt.Errorf("save index: %w", err)
	}
	s.makeRoom(int64(len(b)))
	leave, err := s.door.enter()
	if err != nil {
		return fmt.Errorf("save index: %w", err)
	}
	defer leave()
	if err := s.putIndexLocked(dir, b); err != nil {
		return fmt.Errorf("save index: %w", err)
	}
	return nil
}

// putIndexLocked needs the door, because a removal takes the directory away.
func (s *Store) putIndexLocked(dir string, b []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return s.saveSealed(filepath.Join(dir, "index"), b)
}

func (s *Store) recordPath(name string) string {
	return filepath.Join(s.dir, "records", fmt.Sprintf("%x", sha256.Sum256([]byte(name))))
}

// Load returns what was saved under name. The error is fs.ErrNotExist when there is
// nothing, and also ErrCorrupt when it was damaged and dropped.
func (s *Store) Load(name string) ([]byte, error) {
	b, err := s.loadSealed(s.recordPath(name))
	if err != nil {
		return nil, fmt.Errorf("load record %q: %w", name, err)
	}
	rest, ok := bytes.CutPrefix(b, []byte(name+"\n"))
	if !ok {
		return nil, fmt.Errorf("load record %q: saved under another name: %w (%w)", name, ErrCorrupt, fs.ErrNotExist)
	}
	return rest, nil
}

// Save keeps b under name, in place of what was there. Readers see the old or the new
// bytes, never a part.
func (s *Store) Save(name string, b []byte) error {
	content := append([]byte(name+"\n"), b...)
	s.makeRoom(int64(len(content)))
	if err := s.saveSealed(s.recordPath(name), content); err != nil {
		return fmt.Errorf("save record %q: %w", name, err)
	}
	return nil
}

// Drop removes what was saved under name, if there is anything.
func (s *Store) Drop(name string) error {
	err := os.Remove(s.recordPath(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop record %q: %w", name, err)
	}
	return nil
}

package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A Damage is bytes that were not what they had been when they were written. They are
// dropped: who needs them fetches them again.
type Damage struct {
	What  string        // pack, index, record
	Layer digest.Digest // of a pack or an index
	Path  string        // in the directory of the store
	Off   int64         // of the damaged part of a pack's data
	Len   int64         // 0: all of the file
}

// A Checked counts what Verify has read.
type Checked struct {
	Packs, Indexes, Records int
	Bytes                   int64 // of content
}

// Verify reads everything in the store and holds it against its checksums: the units of all packs, indexes and
// records. What is damaged is reported, dropped, and forgotten by the processes that use it. Reads and
// evictions may go on meanwhile. The error is ctx's, or found's.
func (s *Store) Verify(ctx context.Context, found func(Damage) error) (n Checked, err error) {
	v := &verification{s: s, found: found}
	layers, err := s.Usage()
	if err != nil {
		return n, fmt.Errorf("verify cache: %w", err)
	}
	for _, u := range layers {
		if err := errors.Join(v.index(u.Digest), v.pack(ctx, u.Digest)); err != nil {
			return v.n, fmt.Errorf("verify cache: %w", err)
		}
	}
	records, err := os.ReadDir(filepath.Join(s.dir, "records"))
	for _, e := range records {
		err = errors.Join(err, v.record(e.Name()))
	}
	if err != nil {
		return v.n, fmt.Errorf("verify cache: %w", err)
	}
	return v.n, nil
}

type verification struct {
	s     *Store
	found func(Damage) error
	n     Checked
}

// damaged reports a file or a part of it.
func (v *verification) damaged(what string, d digest.Digest, path string, off, n int64) error {
	rel, err := filepath.Rel(v.s.dir, path)
	if err != nil {
		return err
	}
	return v.found(Damage{What: what, Layer: d, Path: rel, Off: off, Len: n})
}

func (v *verification) index(d digest.Digest) error {
	dir, err := v.s.layerDir(d)
	if err != nil {
		return err
	}
	return v.sealed("index", d, filepath.Join(dir, "index"), &v.n.Indexes, func([]byte) bool { return true })
}

func (v *verification) record(file string) error {
	return v.sealed("record", "", filepath.Join(v.s.dir, "records", file), &v.n.Records, func(content []byte) bool {
		name, _, ok := strings.Cut(string(content), "\n")
		return ok && fmt.Sprintf("%x", sha256.Sum256([]byte(name))) == file
	})
}

// sealed checks a sealed file, of whose content right must be true.
func (v *verification) sealed(what string, d digest.Digest, path string, count *int, right func([]byte) bool) error {
	content, err := v.s.loadSealed(path)
	if err == nil && !right(content) {
		err = errors.Join(ErrCorrupt, os.Remove(path))
	}
	switch {
	case errors.Is(err, ErrCorrupt):
		return v.damaged(what, d, path, 0, 0)
	case errors.Is(err, fs.ErrNotExist):
		return nil // there is none, or it has gone since
	}
	*count++
	return err
}

func (v *verification) pack(ctx context.Context, d digest.Digest) error {
	dir, err := v.s.layerDir(d)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "pack")
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	c, err := v.s.borrow(d)
	if errors.Is(err, fs.ErrNotExist) { // it was there, and is no pack
		return v.damaged("pack", d, path, 0, 0)
	}
	if err != nil {
		return err
	}
	defer v.s.release(c)
	v.n.Packs++
	for r := range c.regions {
		if err := ctx.Err(); err != nil {
			return err
		}
		bad, n := c.damagedUnits(r)
		v.n.Bytes += n
		for _, i := range bad {
			if err := v.damaged("pack", d, path, c.start(i), c.length(i)); err != nil {
				return err
			}
		}
		if err := c.invalidate(r, bad); err != nil {
			return err
		}
	}
	return nil
}

// damagedUnits returns the units of a region whose bytes are not those of their entries, and how many bytes it read.
func (c *content) damagedUnits(r int) (bad []int, n int64) {
	c.hold(r) // what is evicted meanwhile would look damaged
	defer c.release(r)
	first, last := c.unitsOf(r)
	for i := first; i <= last; i++ {
		crc, there := c.entry(i)
		if !there {
			continue
		}
		n += c.length(i)
		if sum, err := c.sum(i); err != nil || sum != crc {
			bad = append(bad, i)
		}
	}
	return bad, n
}

// invalidate drops units of a region for all processes.
func (c *content) invalidate(r int, units []int) error {
	if len(units) == 0 {
		return nil
	}
	_, err := c.anew(r, func() error {
		for _, i := range units {
			if err := c.writeEntry(i, 0, false); err != nil {
				return err
			}
		}
		return nil
	}, nil)
	return err
}

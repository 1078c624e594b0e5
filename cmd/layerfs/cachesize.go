package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/layerfs/layerfs/cache"
	"golang.org/x/sys/unix"
)

// cacheShare is the part of its file system that the cache may take where nobody says otherwise.
const cacheShare = 10

// cacheLimit is what --cache-size says in bytes, 0 for no limit.
func (e *env) cacheLimit() (int64, error) {
	switch e.cacheSize {
	case "":
		return defaultCacheSize(filepath.Join(e.root, "cache"))
	case "0", "none":
		return 0, nil
	}
	n, err := humanize.ParseBytes(e.cacheSize)
	if err != nil || n > 1<<62 {
		return 0, usageError("--cache-size " + e.cacheSize + ": want a size such as 20GB, or none")
	}
	return int64(n), nil
}

// defaultCacheSize is a tenth of the file system that dir is on, or will be.
func defaultCacheSize(dir string) (int64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			return max(int64(st.Blocks)*st.Frsize/cacheShare, 1), nil
		}
		up := filepath.Dir(dir)
		if !errors.Is(err, unix.ENOENT) || up == dir {
			return 0, fmt.Errorf("size of the file system of %s: %w; set --cache-size", dir, err)
		}
		dir = up
	}
}

// pullAll fetches all of an image, and makes its layers those that leave the cache last.
func (e *env) pullAll(ctx context.Context, im *image, atOnce int) error {
	for _, l := range im.layers {
		if err := im.store.Pin(l.Digest()); err != nil {
			return err
		}
	}
	if err := im.fetchAll(ctx, atOnce); err != nil {
		return err
	}
	var missing int64
	for _, l := range im.layers {
		have, total := l.Present()
		missing += total - have
	}
	if missing > 0 {
		return fmt.Errorf("pull %s: no room in the cache for %s of it; raise --cache-size, or make room with layerfs cache rm", im.Name, size(missing, false))
	}
	return nil
}

// A damageRow is a cache.Damage.
type damageRow struct {
	What   string `json:"what"` // pack, index, record
	Layer  string `json:"layer,omitempty"`
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"` // 0: all of the file
}

func (e *env) cacheVerify(ctx context.Context, s *cache.Store, asJSON, exact bool) error {
	var doc struct {
		Packs   int         `json:"packs"`
		Indexes int         `json:"indexes"`
		Records int         `json:"records"`
		Bytes   int64       `json:"bytes"`
		Damaged []damageRow `json:"damaged"`
	}
	doc.Damaged = []damageRow{}
	n, err := s.Verify(ctx, func(d cache.Damage) error {
		doc.Damaged = append(doc.Damaged, damageRow{d.What, string(d.Layer), d.Path, d.Off, d.Len})
		return nil
	})
	if err != nil {
		return err
	}
	doc.Packs, doc.Indexes, doc.Records, doc.Bytes = n.Packs, n.Indexes, n.Records, n.Bytes
	if asJSON {
		err = writeJSON(e.stdout, doc)
	} else {
		err = e.printDamage(doc.Damaged, fmt.Sprintf("%d packs with %s, %d indexes and %d records are whole", n.Packs, size(n.Bytes, exact), n.Indexes, n.Records))
	}
	if err == nil && len(doc.Damaged) > 0 {
		err = &exitError{exitIntegrity, fmt.Errorf("cache verify: %d damaged parts, dropped to be fetched again; check the disk", len(doc.Damaged))}
	}
	return err
}

func (e *env) printDamage(list []damageRow, whole string) error {
	for _, d := range list {
		where := "all of it"
		if d.Length > 0 {
			where = fmt.Sprintf("%d bytes at %d", d.Length, d.Offset)
		}
		if _, err := fmt.Fprintf(e.stdout, "DAMAGED  %s  %s\n", d.Path, where); err != nil {
			return err
		}
	}
	if len(list) > 0 {
		return nil
	}
	_, err := fmt.Fprintln(e.stdout, whole)
	return err
}

// checkOwner refuses a state directory of somebody else. Whoever owns it can change what is
// in the cache behind our back, checksums included, and every process there trusts it. That holds for root
// too: what root would write into a user's directory, that user could no longer use or clear.
func checkOwner(dir string) error {
	var st unix.Stat_t
	err := unix.Lstat(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s is no directory; choose another with --root", dir)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, and this is user %d; choose another directory with --root", dir, st.Uid, os.Geteuid())
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %s); chmod go-w it, or choose another with --root", dir, strings.TrimPrefix(fmt.Sprintf("%#o", st.Mode&0o7777), "0"))
	}
	return nil
}

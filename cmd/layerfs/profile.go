package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
)

// What earlier mounts of an image read when it started is kept in the cache, as a
// record under the digest of its tree.

func profileName(tree digest.Digest) string { return "profile/" + tree.String() }

// treeDigest is the digest of the image's tree; the layers need not be open.
func (im *image) treeDigest() digest.Digest {
	var list []digest.Digest
	for _, d := range im.Manifest.Layers {
		list = append(list, d.Digest)
	}
	return union.DigestOf(list)
}

// profile is what is kept for the image; the error is fs.ErrNotExist when there is none.
func (im *image) profile() (union.Profile, error) {
	b, err := im.store.Load(profileName(im.treeDigest()))
	if err != nil {
		return union.Profile{}, err
	}
	p, err := union.ParseProfile(bytes.NewReader(b))
	if err == nil && len(p.Files) == 0 {
		err = fs.ErrNotExist
	}
	return p, err
}

func (im *image) saveProfile(p union.Profile) error {
	name := profileName(im.treeDigest())
	if len(p.Files) == 0 {
		return im.store.Drop(name)
	}
	return im.store.Save(name, p.Text(true))
}

// dropProfile removes the profile of an image whose layers are given.
func dropProfile(s *cache.Store, layers []digest.Digest) error {
	return s.Drop(profileName(union.DigestOf(layers)))
}

// A profileRow is a file of a profile in JSON.
type profileRow struct {
	Path   string        `json:"path"`
	Ranges []layer.Range `json:"ranges,omitempty"` // none: the whole file
	Unread int           `json:"unread,omitempty"` // starts since the last one that read it
}

// printProfile prints the paths of the kept profile, in order.
func (e *env) printProfile(im *image, asJSON bool) error {
	p, err := im.profile()
	if errors.Is(err, fs.ErrNotExist) {
		return &exitError{exitNotFound, fmt.Errorf("profile of %s: none is kept; mount it and start something in it", im.Name)}
	}
	if err != nil {
		return fmt.Errorf("profile of %s: %w", im.Name, err)
	}
	if asJSON {
		rows := []profileRow{}
		for _, f := range p.Files {
			rows = append(rows, profileRow(f))
		}
		return writeJSON(e.stdout, rows)
	}
	if _, err := fmt.Fprintf(e.stdout, "# what a start of %s reads, in order\n", safe(im.Name)); err != nil {
		return err
	}
	_, err = e.stdout.Write(p.Text(false))
	return err
}

// What --prefetch may say.
const (
	prefetchNone = "none"
	prefetchAuto = "auto"
	prefetchAll  = "all"
)

// loadProfile takes up the kept profile and has this mount's reads recorded. A part
// of an image (--layers) is for looking at: its reads are no start.
func (s *server) loadProfile() {
	if s.plan.span != (span{}) {
		return
	}
	var err error
	if s.profile, err = s.im.profile(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.e.log.Warn("read the access profile; a new one is begun", "err", err)
	}
	s.fs.Record(union.NewRecorder(s.im.tree, s.profile))
}

// startWork begins what goes on beside the mount, until the returned function is called.
func (s *server) startWork(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	if r := s.fs.Recorder(); r != nil {
		work.Go(func() {
			r.Run(ctx, func(p union.Profile) {
				if err := s.im.saveProfile(p); err != nil {
					s.e.log.Warn("save the access profile", "err", err)
				}
			})
		})
	}
	work.Go(func() {
		if err := s.prefetch(ctx); err != nil && ctx.Err() == nil {
			s.e.log.Warn("prefetch; what is missing is fetched when it is read", "err", err)
		}
	})
	return func() { cancel(); work.Wait() }
}

// prefetch fetches ahead of the readers as far as --prefetch says, first what a start reads.
func (s *server) prefetch(ctx context.Context) error {
	if s.plan.prefetch == prefetchNone || s.e.offline {
		return nil
	}
	if err := s.prefetchStart(ctx); err != nil {
		return err
	}
	if s.plan.prefetch == prefetchAll {
		return s.im.fetchAll(ctx, backgroundLayers)
	}
	return s.im.completeHalves(ctx)
}

// prefetchStart fetches what earlier mounts read when they started.
func (s *server) prefetchStart(ctx context.Context) error {
	if len(s.profile.Files) == 0 {
		return nil
	}
	begun := time.Now()
	err := s.im.tree.Prefetch(ctx, s.profile)
	if err == nil {
		s.e.log.Info("prefetched", "mountpoint", s.plan.dir, "files", len(s.profile.Files), "took", time.Since(begun))
	}
	return err
}

const (
	// backgroundLayers are fetched at a time behind the readers' back.
	backgroundLayers = 2
	// A mount looks for layers that are more than half there this often, and ever
	// less often while nothing is fetched.
	completeSoon = 2 * time.Second
	completeLate = 2 * time.Minute
)

// completeHalves fetches the rest of every lazy layer of which more than half is in
// the cache: it is used a good deal, and in one go the rest costs few requests. It returns
// when no layer is left that might get there.
func (im *image) completeHalves(ctx context.Context) error {
	pause, seen := completeSoon/2, int64(0)
	for {
		half, left, have := im.halves()
		for _, l := range half {
			if err := l.Fetch(ctx); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		pause = min(2*pause, completeLate)
		if have != seen {
			pause, seen = completeSoon, have
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// halves are the incomplete layers that are more than half there; left is how many are
// less, and have how many bytes of those are there.
func (im *image) halves() (half []*layer.Layer, left int, have int64) {
	for _, l := range im.layers {
		n, total := l.Present()
		switch {
		case n == total:
		case n > total/2:
			half = append(half, l)
		default:
			left, have = left+1, have+n
		}
	}
	return half, left, have
}

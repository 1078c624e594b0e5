package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// A container is an image with what was written above it: a writable mount, or an upper directory by itself.
type container struct {
	*image
	upper *union.Upper
	fs    *union.FS
}

// An upperPlace is where an upper directory is.
type upperPlace struct {
	dir, ref string // ref names the base image
	note     baseNote
	live     *mountState // of the mount that writes to it now; nil: none that we know
}

// openContainer opens what a writable mount at dir has written, or an upper
// directory. Nothing in it is changed or locked, so that the mount may be live.
func (e *env) openContainer(ctx context.Context, dir string) (*container, error) {
	at, err := e.findUpper(dir)
	if err != nil {
		return nil, err
	}
	return e.openUpper(ctx, at)
}

func (e *env) openUpper(ctx context.Context, at upperPlace) (*container, error) {
	im, err := e.openBase(ctx, at, e.openImage)
	if err != nil {
		return nil, err
	}
	u, err := union.OpenUpper(at.dir, "", union.UpperOptions{ReadOnly: true, Base: im.tree.Digest(), Logger: e.log})
	if err != nil {
		return nil, errors.Join(err, im.Close())
	}
	return &container{im, u, union.New(im.tree, u)}, nil
}

// findUpper finds the upper directory that a mountpoint, or a path of its own, means.
func (e *env) findUpper(dir string) (upperPlace, error) {
	at, err := mountpoint(dir)
	if err != nil {
		return upperPlace{}, err
	}
	state, live, err := e.findState(at)
	switch {
	case err == nil && state.Upper == "":
		return upperPlace{}, usageError(dir + " is mounted read-only: nothing can have changed")
	case err == nil:
		return e.mountedUpper(state, live), nil
	case !errors.Is(err, fs.ErrNotExist):
		return upperPlace{}, err
	}
	if kept := filepath.Join(e.root, "containers", mountID(at), "upper"); isDir(kept) {
		dir = kept // the container layer of a mountpoint where nothing is mounted now
	}
	if state, err := e.liveOn(dir); state != nil || err != nil {
		return e.mountedUpper(state, true), err
	}
	return upperRef(dir)
}

func (e *env) mountedUpper(s *mountState, live bool) upperPlace {
	if s == nil {
		return upperPlace{}
	}
	if e.platform == "" {
		e.platform = s.Platform
	}
	p := upperPlace{dir: s.Upper, ref: s.Name, note: baseNote{s.Image, s.Index, s.Platform}}
	if live {
		p.live = s
	}
	return p
}

// liveOn finds the live mount that writes to an upper directory; nil: none of this root.
func (e *env) liveOn(dir string) (*mountState, error) {
	want, err := os.Stat(dir)
	if err != nil {
		return nil, nil // the caller finds out
	}
	all, live, err := e.states()
	for i, s := range all {
		if st, err := os.Stat(s.Upper); live[i] && s.Upper != "" && err == nil && os.SameFile(st, want) {
			return s, nil
		}
	}
	return nil, err
}

func isDir(dir string) bool {
	st, err := os.Stat(dir)
	return err == nil && st.IsDir()
}

func upperRef(dir string) (upperPlace, error) {
	if !isDir(dir) {
		return upperPlace{}, &exitError{exitNotFound, &fs.PathError{Op: "open", Path: dir, Err: unix.ENOENT}}
	}
	u, err := union.OpenUpper(dir, "", union.UpperOptions{ReadOnly: true})
	if err != nil {
		return upperPlace{}, err
	}
	defer u.Close()
	if u.BaseRef() == "" {
		return upperPlace{}, usageError(dir + " is neither a mount of this --root nor an upper directory that says what image it belongs to")
	}
	return upperPlace{dir: dir, ref: u.BaseRef(), note: parseNote(u.Note())}, nil
}

func (c *container) Close() error {
	return errors.Join(c.fs.Close(), c.upper.Close(), c.image.Close())
}

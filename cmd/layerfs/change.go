package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/union"
	"github.com/spf13/pflag"
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
	dir, ref string      // ref names the base image
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
	im, err := e.openImage(ctx, at.ref)
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
	p := upperPlace{dir: s.Upper, ref: s.Name}
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
	return upperPlace{dir: dir, ref: u.BaseRef()}, nil
}

func (c *container) Close() error {
	return errors.Join(c.fs.Close(), c.upper.Close(), c.image.Close())
}

var diffCommand = command{
	name: "diff", args: "DIR|UPPER", short: "List what a writable mount has changed",
	long: `
One line for each path: A added, M modified, D deleted (with all below it),
T of another type. The base image's content is not read.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		exitDiff := flags.Bool("exit-code", false, "exit with 10 if there are differences")
		asJSON := flags.Bool("json", false, "one JSON document a line")
		raw := flags.BoolP("null", "0", false, "raw names, each line ended by a NUL")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("diff [flags] DIR|UPPER", args, 1, 1); err != nil {
				return err
			}
			c, err := e.openContainer(ctx, args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			n, err := printChanges(ctx, e.stdout, c.fs, *asJSON, *raw)
			if err == nil && n > 0 && *exitDiff {
				err = &exitError{exitDifferent, errSilent}
			}
			return err
		}
	},
}

// A changeRow is a change as JSON has it.
type changeRow struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	Meta bool   `json:"metadata_only,omitempty"`
	Size int64  `json:"size"`
	Mode string `json:"mode"`
}

func printChanges(ctx context.Context, w io.Writer, f *union.FS, asJSON, raw bool) (n int, err error) {
	for c, err := range f.Changes(ctx) {
		if err != nil {
			return n, err
		}
		n++
		path := "/" + c.Path
		switch {
		case asJSON:
			err = writeJSONLine(w, changeRow{string(c.Kind), path, c.Meta, c.Size, fmt.Sprintf("%04o", c.Mode&0o7777)})
		case raw:
			_, err = fmt.Fprintf(w, "%c %s\x00", c.Kind, path)
		default:
			_, err = fmt.Fprintf(w, "%c %s\n", c.Kind, safe(path))
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strconv"
	"strings"

	"github.com/layerfs/layerfs/union"
	"github.com/spf13/pflag"
)

var diffCommand = command{
	name: "diff", args: "A [B]", short: "List what a writable mount has changed, or what leads from one tree to another",
	long: `
One line for each path: A added, M modified, D deleted (with all below it),
T of another type. A directory is listed when it differs itself.

A and B are mountpoints, upper directories, images, or IMAGE@N: the layers 1 to N
of an image, counted from the base. Without B, what the writable mount or the upper
directory A has changed.

Compared are all metadata; content is the same where the layers or the digests
of an index say so, otherwise where size and time are. --content reads the files
of which that says nothing, and no others.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		var o diffFlags
		flags.BoolVar(&o.content, "content", false, "compare content byte by byte where nothing else tells")
		flags.BoolVar(&o.exitCode, "exit-code", false, "exit with 10 if there are differences")
		flags.BoolVar(&o.json, "json", false, "one JSON document a line")
		flags.BoolVarP(&o.raw, "null", "0", false, "raw names, each line ended by a NUL")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("diff [flags] A [B]", args, 1, 2); err != nil {
				return err
			}
			return e.diff(ctx, args, o)
		}
	},
}

type diffFlags struct {
	content, exitCode, json, raw bool
}

func (e *env) diff(ctx context.Context, args []string, o diffFlags) (err error) {
	sides, err := e.openSides(ctx, args)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sides.Close()) }()
	n, err := printChanges(e.stdout, sides.changes(ctx, o.content), o)
	if err == nil && n > 0 && o.exitCode {
		err = &exitError{exitDifferent, errSilent}
	}
	return err
}

// diffSides are the two trees to compare, or a container alone.
type diffSides struct {
	fs      []*union.FS
	closers []io.Closer
}

func (s *diffSides) Close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// changes of a container alone are found in its upper directory alone.
func (s *diffSides) changes(ctx context.Context, content bool) iter.Seq2[union.Change, error] {
	a, b := s.fs[0], s.fs[len(s.fs)-1]
	if len(s.fs) == 1 {
		if !content {
			return a.Changes(ctx)
		}
		a = union.New(b.Tree(), nil)
	}
	return union.Diff(ctx, a, b, union.DiffOptions{Content: content})
}

func (e *env) openSides(ctx context.Context, args []string) (*diffSides, error) {
	s := &diffSides{}
	for _, arg := range args {
		t, err := e.findTarget(arg)
		if err == nil && len(args) == 1 && !t.container {
			err = t.alone()
		}
		if err == nil {
			err = s.open(ctx, e, t)
		}
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *diffSides) open(ctx context.Context, e *env, t target) error {
	if t.container {
		c, err := e.openContainer(ctx, t.arg)
		if err != nil {
			return err
		}
		s.fs, s.closers = append(s.fs, c.fs), append(s.closers, c)
		return nil
	}
	im, err := e.openLayersOf(ctx, t.ref, t.span)
	if err != nil {
		return err
	}
	s.fs, s.closers = append(s.fs, union.New(im.tree, nil)), append(s.closers, im)
	return nil
}

// A target is what a command was pointed to: a writable mount or an upper directory, or
// an image, by its reference or by a mount of it.
type target struct {
	arg       string
	container bool // what follows is of images
	mounted   bool // arg is a mountpoint
	ref       string
	span      span
}

// alone says what is wrong with an image that has nothing to be compared with.
func (t target) alone() error {
	if t.mounted {
		return usageError(t.arg + " is mounted read-only: nothing can have changed; name a second tree to compare it with")
	}
	return usageError(fmt.Sprintf("%s is an image: name a second tree to compare it with, as in \"layerfs diff %s@1 %s\"", t.arg, t.ref, t.ref))
}

// findTarget: mounts and upper directories come first, and what looks like a path is nothing else.
func (e *env) findTarget(arg string) (target, error) {
	t := target{arg: arg}
	if ok, err := e.findMounted(&t); ok || err != nil {
		return t, err
	}
	_, err := e.findUpper(arg)
	if code := exitCode(err); err == nil || isPath(arg) || code != exitNotFound && code != exitUsage {
		t.container = true
		return t, err
	}
	var n int
	if t.ref, n, err = cutLayer(arg); n > 0 {
		t.span = span{1, n}
	}
	return t, err
}

// findMounted finds the image of a read-only mount, as far as the mount shows it.
func (e *env) findMounted(t *target) (bool, error) {
	at, err := mountpoint(t.arg)
	if err != nil {
		return false, err
	}
	state, _, err := e.findState(at)
	if errors.Is(err, fs.ErrNotExist) || err == nil && state.Upper != "" {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if e.platform == "" {
		e.platform = state.Platform
	}
	t.mounted, t.ref, t.span = true, state.Name, state.span()
	return true, nil
}

func isPath(arg string) bool {
	return strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".")
}

// cutLayer cuts the layer off IMAGE@N; n is 0 where there is none. A digest is none,
// nor is the number of an image in a docker-archive, FILE:@N.
func cutLayer(arg string) (ref string, n int, err error) {
	i := strings.LastIndexByte(arg, '@')
	if i <= 0 || arg[i-1] == ':' || arg[i+1:] == "" || strings.Trim(arg[i+1:], "0123456789") != "" {
		return arg, 0, nil
	}
	n, err = strconv.Atoi(arg[i+1:])
	if err != nil || n < 1 {
		return "", 0, usageError(arg + ": layers are counted from 1 at the base")
	}
	return arg[:i], n, nil
}

// openLayersOf opens an image, or the layers of it that are wanted.
func (e *env) openLayersOf(ctx context.Context, ref string, want span) (*image, error) {
	im, err := e.openManifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	if n := len(im.Manifest.Layers); want.to > n {
		err = &exitError{exitNotFound, fmt.Errorf("open %s: there is no layer %d: the image has %d", ref, want.to, n)}
	} else {
		p := e.newProgress()
		err = im.openLayers(ctx, e, want, p.layer)
		p.done()
	}
	if err != nil {
		return nil, errors.Join(err, im.Close())
	}
	e.warn(im)
	return im, nil
}

// A changeRow is a change as JSON has it.
type changeRow struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	Meta bool   `json:"metadata_only,omitempty"`
	Size int64  `json:"size"`
	Mode string `json:"mode"`
}

func printChanges(w io.Writer, changes iter.Seq2[union.Change, error], o diffFlags) (n int, err error) {
	for c, err := range changes {
		if err != nil {
			return n, err
		}
		n++
		path := "/" + c.Path
		switch {
		case o.json:
			err = writeJSONLine(w, changeRow{string(c.Kind), path, c.Meta, c.Size, fmt.Sprintf("%04o", c.Mode&0o7777)})
		case o.raw:
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

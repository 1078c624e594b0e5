package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// A container is an image with what was written above it: a writable mount, or an upper directory by itself.
type container struct {
	*image
	upper *union.Upper
	fs    *union.FS
}

// openContainer opens what a writable mount at dir has written, or an upper
// directory. Nothing in it is changed or locked, so that the mount may be live.
func (e *env) openContainer(ctx context.Context, dir string) (*container, error) {
	upper, ref, err := e.findUpper(dir)
	if err != nil {
		return nil, err
	}
	im, err := e.openImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	u, err := union.OpenUpper(upper, "", union.UpperOptions{ReadOnly: true, Base: im.tree.Digest(), Logger: e.log})
	if err != nil {
		return nil, errors.Join(err, im.Close())
	}
	return &container{im, u, union.New(im.tree, u)}, nil
}

// findUpper finds the upper directory and its base's reference.
func (e *env) findUpper(dir string) (upper, ref string, err error) {
	at, err := mountpoint(dir)
	if err != nil {
		return "", "", err
	}
	state, _, err := e.findState(at)
	switch {
	case err == nil && state.Upper == "":
		return "", "", usageError(dir + " is mounted read-only: nothing can have changed")
	case err == nil:
		if e.platform == "" {
			e.platform = state.Platform
		}
		return state.Upper, state.Name, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", "", err
	}
	if kept := filepath.Join(e.root, "containers", mountID(at), "upper"); isDir(kept) {
		dir = kept // the container layer of a mountpoint where nothing is mounted now
	}
	return upperRef(dir)
}

func isDir(dir string) bool {
	st, err := os.Stat(dir)
	return err == nil && st.IsDir()
}

func upperRef(dir string) (upper, ref string, err error) {
	if !isDir(dir) {
		return "", "", &exitError{exitNotFound, &fs.PathError{Op: "open", Path: dir, Err: unix.ENOENT}}
	}
	u, err := union.OpenUpper(dir, "", union.UpperOptions{ReadOnly: true})
	if err != nil {
		return "", "", err
	}
	defer u.Close()
	if u.BaseRef() == "" {
		return "", "", usageError(dir + " is neither a mount of this --root nor an upper directory that says what image it belongs to")
	}
	return dir, u.BaseRef(), nil
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

var commitCommand = command{
	name: "commit", args: "DIR|UPPER DEST", short: "Make a new image of what was written",
	long: `
DIR is a writable mount, which stays mounted, or the mountpoint of one that was
unmounted; UPPER is an upper directory. DEST is an image in a registry, oci:DIR:TAG,
oci-archive:FILE:TAG or docker-archive:FILE:REF. Prints DEST with its digest.

Only what was written is read and sent. The layers of the base image are not
fetched: a registry that has them mounts them into the new repository.`,
	setup: setupCommit,
}

// commitFlags are the flags of commit.
type commitFlags struct {
	compression, message, author string
	level                        int
	changes                      []string
	epoch                        int64
	allowLoss                    bool
}

func setupCommit(flags *pflag.FlagSet) runFunc {
	var c commitFlags
	flags.StringVar(&c.compression, "compression", "gzip", "gzip, zstd, estargz, zstd:chunked or none")
	flags.IntVar(&c.level, "level", 0, "compression level (0: the usual one)")
	flags.StringArrayVar(&c.changes, "change", nil, "change the config as a Dockerfile line does: CMD ENTRYPOINT ENV EXPOSE LABEL USER VOLUME WORKDIR STOPSIGNAL ONBUILD")
	flags.StringVarP(&c.message, "message", "m", "", "comment of the history entry")
	flags.StringVarP(&c.author, "author", "a", "", "author of the image")
	flags.Int64Var(&c.epoch, "source-date-epoch", -1, "Unix time for all that is dated now, and the latest time of files (also from SOURCE_DATE_EPOCH)")
	flags.BoolVar(&c.allowLoss, "allow-loss", false, "go on when a layer cannot hold something")
	return func(ctx context.Context, e *env, args []string) error {
		if err := wantArgs("commit [flags] DIR|UPPER DEST", args, 2, 2); err != nil {
			return err
		}
		if err := c.fromEnvironment(e.getenv); err != nil {
			return err
		}
		return e.commit(ctx, args[0], args[1], c)
	}
}

func (c *commitFlags) fromEnvironment(getenv func(string) string) error {
	v := getenv("SOURCE_DATE_EPOCH")
	if c.epoch >= 0 || v == "" {
		return nil
	}
	if _, err := fmt.Sscan(v, &c.epoch); err != nil || c.epoch < 0 {
		return usageError("SOURCE_DATE_EPOCH=" + v + ": want seconds since 1970")
	}
	return nil
}

func (c *commitFlags) epochOrNil() *int64 {
	if c.epoch < 0 {
		return nil
	}
	return &c.epoch
}

func (e *env) commit(ctx context.Context, dir, dest string, o commitFlags) error {
	c, err := e.openContainer(ctx, dir)
	if err != nil {
		return err
	}
	defer c.Close()
	push := registry.PushOptions{
		Changes: o.changes, Message: o.message, Author: o.author, CreatedBy: "layerfs commit", Epoch: o.epochOrNil(),
		Options: e.registryOptions(c.store),
	}
	changed, err := hasChanges(ctx, c.fs)
	if err != nil {
		return err
	}
	if changed {
		push.Layer = &registry.NewLayer{Repeatable: true, Write: func(ctx context.Context, w io.Writer) (ocispec.Descriptor, digest.Digest, error) {
			return e.writeLayer(ctx, c.fs, w, o)
		}}
	}
	p := e.newProgress()
	push.Progress = p.blob
	_, name, err := registry.Push(ctx, c.Image, dest, push)
	p.done()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.stdout, name)
	return err
}

func hasChanges(ctx context.Context, f *union.FS) (bool, error) {
	for _, err := range f.Changes(ctx) {
		return err == nil, err
	}
	return false, nil
}

// writeLayer writes the new layer in one pass: tar, diff ID, compressor, digest.
func (e *env) writeLayer(ctx context.Context, f *union.FS, w io.Writer, o commitFlags) (d ocispec.Descriptor, diffID digest.Digest, err error) {
	r, pw := io.Pipe()
	done := make(chan union.TarResult, 1)
	go func() {
		result, err := writeTar(ctx, f, pw, o)
		done <- result
		_ = pw.CloseWithError(err)
	}()
	enc, err := layer.Encode(ctx, w, r, layer.Compression{Algorithm: o.compression, Level: o.level})
	_ = r.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // ends the writer, if Encode gave up
	result := <-done
	if err != nil {
		return d, "", err
	}
	e.remark("layer: %d entries, %s of content, %s compressed", result.Entries, size(result.Bytes, false), size(enc.Descriptor.Size, false))
	return enc.Descriptor, enc.DiffID, e.losses(result.Losses, o.allowLoss)
}

func writeTar(ctx context.Context, f *union.FS, w io.Writer, o commitFlags) (union.TarResult, error) {
	m, err := f.Mark(ctx)
	if err != nil {
		return union.TarResult{}, err
	}
	defer m.Close()
	return m.WriteTar(ctx, w, union.TarOptions{Epoch: o.epochOrNil()})
}

// losses names what the layer does not hold. Without --allow-loss nothing is pushed then.
func (e *env) losses(list []union.Loss, allow bool) error {
	for _, l := range list {
		fmt.Fprintf(e.stderr, "layerfs: not in the layer: /%s: %s\n", safe(l.Path), l.Reason)
	}
	if len(list) == 0 || allow {
		return nil
	}
	return fmt.Errorf("commit: %d things cannot be in the layer as they are; nothing was pushed; --allow-loss leaves them out", len(list))
}

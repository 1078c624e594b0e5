package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
)

var commitCommand = command{
	name: "commit", args: "DIR|UPPER DEST", short: "Make a new image of what was written",
	long: `
DIR is a writable mount, which stays mounted, or the mountpoint of one that was
unmounted; UPPER is an upper directory. DEST is an image in a registry, oci:DIR:TAG,
oci-archive:FILE:TAG or docker-archive:FILE:REF. Prints DEST with its digest.

Only what was written is read and sent. The layers of the base image are not
fetched: a registry that has them mounts them into the new repository. An image that
was found in an index of several platforms is replaced in it, and the other platforms
are carried over; DEST is the new index then.

With --squash the new image has one layer of all that shows. Its content is fetched
and read through, and stored nowhere but in the cache. In place of DIR an image may
stand then, or IMAGE@N: its layers 1 to N.

With --continue the mount goes on from the new image. Its upper directory loses what
the new layer has, and the next commit holds and sends only what is written from
now on. Processes notice nothing: open files, working directories and inode numbers
stay. A file that is open stays in the upper directory too, and so does one of which
the layer has not all (a later time than SOURCE_DATE_EPOCH, a socket). The new layer
is in the local cache at once.`,
	setup: setupCommit,
}

// commitFlags are the flags of commit.
type commitFlags struct {
	compression, message, author string
	level                        int
	changes                      []string
	epoch                        int64
	allowLoss, squash, goOn      bool
}

func setupCommit(flags *pflag.FlagSet) runFunc {
	var c commitFlags
	flags.StringVar(&c.compression, "compression", "gzip", "gzip, zstd, estargz, zstd:chunked or none")
	flags.IntVar(&c.level, "level", 0, "compression level (0: the usual one; of gzip 2)")
	flags.StringArrayVar(&c.changes, "change", nil, "change the config as lines of a Dockerfile do: CMD ENTRYPOINT ENV EXPOSE HEALTHCHECK LABEL ONBUILD SHELL STOPSIGNAL USER VOLUME WORKDIR")
	flags.StringVarP(&c.message, "message", "m", "", "comment of the history entry")
	flags.StringVarP(&c.author, "author", "a", "", "author of the image")
	flags.Int64Var(&c.epoch, "source-date-epoch", -1, "Unix time for all that is dated now, and the latest time of files (also from SOURCE_DATE_EPOCH)")
	flags.BoolVar(&c.allowLoss, "allow-loss", false, "go on when a layer cannot hold something")
	flags.BoolVar(&c.squash, "squash", false, "one layer of all that shows, base and changes, in place of the base's layers")
	flags.BoolVar(&c.goOn, "continue", false, "have the mount go on from the new image, with an upper directory without what is in it")
	return func(ctx context.Context, e *env, args []string) error {
		if c.goOn && c.squash {
			return usageError("--continue does not go with --squash: the mount's layers would be others")
		}
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
	if e.getenv("GOGC") == "" {
		debug.SetGCPercent(25) // what lives are buffers; what is made anew all the time is small
	}
	open := e.openChanges
	if o.squash {
		open = e.openSquashed
	}
	c, err := open(ctx, dir, changeOptions{union.TarOptions{Epoch: o.epochOrNil(), Squash: o.squash}, o.goOn})
	if err != nil {
		return err
	}
	defer func() { _ = c.close() }() // only read
	push := registry.PushOptions{
		Squash: o.squash, BaseName: c.name, Changes: o.changes, Message: o.message, Author: o.author, CreatedBy: "layerfs commit", Epoch: o.epochOrNil(),
		Options: e.registryOptions(c.image.store),
	}
	if c.changed {
		push.Layer = &registry.NewLayer{Repeatable: true, Write: func(ctx context.Context, w io.Writer) (ocispec.Descriptor, digest.Digest, error) {
			return e.writeLayer(ctx, c.writeTar, w, o)
		}}
	}
	var end *tail
	if push.Layer != nil && hasIndex(o.compression) && !o.goOn { // which keeps all of it
		end = &tail{}
		push.Layer = end.wrap(push.Layer)
	}
	name, err := e.push(ctx, c, dest, push, o.goOn)
	if err == nil && end != nil {
		end.intoCache(ctx, e, c.image)
	}
	if name != "" {
		_, printed := fmt.Fprintln(e.stdout, name)
		err = errors.Join(err, printed)
	}
	return err
}

// push pushes, and has the mount go on from there if wanted. An error with a name means that
// the image is there.
func (e *env) push(ctx context.Context, c *changeSet, dest string, o registry.PushOptions, goOn bool) (name string, err error) {
	var kept *keptBlob
	if goOn {
		if kept, err = e.keepBlob(); err != nil {
			return "", err
		}
		defer kept.f.Close()
		if o.Layer != nil {
			o.Layer = kept.wrap(o.Layer)
		}
	}
	p := e.newProgress()
	o.Progress = p.blob
	_, name, err = registry.Push(ctx, c.image.Image, dest, o)
	p.done()
	if err != nil || !goOn {
		return name, err
	}
	if err := c.goOn(ctx, e, kept, dest); err != nil {
		return name, fmt.Errorf("the image was pushed, but the mount stays on its old base: %w", err)
	}
	return name, nil
}

// A changeSet is what was written, to be committed.
type changeSet struct {
	image    *image // the base; of a live mount without its layers
	name     string // of the base, as the user gave it; "": as it was opened
	changed  bool
	writeTar tarWriter
	live     func() *liveCommit // the one that wrote the layer; with goOn
	close    func() error
}

// changeOptions say what changes are wanted for.
type changeOptions struct {
	union.TarOptions
	goOn bool // the mount goes on from what they are committed to
}

type tarWriter func(ctx context.Context, w io.Writer) (union.TarResult, error)

// openChanges finds what dir means, and has a live server mark the moment.
func (e *env) openChanges(ctx context.Context, dir string, o changeOptions) (*changeSet, error) {
	at, err := e.findUpper(dir)
	if err != nil {
		return nil, err
	}
	if at.live == nil && o.goOn {
		return nil, usageError("--continue wants a mount: nothing is mounted at " + dir + "; what is mounted next can be the new image")
	}
	if at.live != nil {
		return e.liveChanges(ctx, at, o)
	}
	c, err := e.openUpper(ctx, at)
	if err != nil {
		return nil, err
	}
	set := newChangeSet(c.image, c.fs, o.TarOptions, c.Close)
	set.name = at.note.Image
	if set.changed, err = c.fs.Changed(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	set.changed = set.changed || o.Squash
	return set, nil
}

// newChangeSet is of an FS that nobody writes to through a server we know.
func newChangeSet(im *image, f *union.FS, o union.TarOptions, close func() error) *changeSet {
	return &changeSet{image: im, changed: true, close: close, writeTar: func(ctx context.Context, w io.Writer) (union.TarResult, error) {
		m, err := f.Mark(ctx)
		if err != nil {
			return union.TarResult{}, err
		}
		defer m.Close()
		return m.WriteTar(ctx, w, o)
	}}
}

// liveChanges are those of a live mount. A layer that must be written again,
// because an upload was lost, is of a later moment.
func (e *env) liveChanges(ctx context.Context, at upperPlace, o changeOptions) (*changeSet, error) {
	im, err := e.openBase(ctx, at, e.openManifest)
	if err != nil {
		return nil, err
	}
	first, changed, err := startLiveCommit(at.live.dir, o.TarOptions, o.goOn)
	if err != nil {
		return nil, errors.Join(err, im.Close())
	}
	last := first
	set := &changeSet{image: im, name: at.note.Image, changed: changed, live: func() *liveCommit { return last }}
	set.writeTar = func(ctx context.Context, w io.Writer) (union.TarResult, error) {
		l := first
		if first = nil; l == nil {
			var err error
			if last != nil {
				_ = last.conn.Close() // its moment
			}
			changed := false
			if l, changed, err = startLiveCommit(at.live.dir, o.TarOptions, o.goOn); err != nil {
				return union.TarResult{}, err
			}
			last = l
			if !changed {
				return union.TarResult{}, errors.New("all changes were undone while the layer was sent")
			}
		}
		return l.writeTar(ctx, w)
	}
	set.close = func() error {
		if last != nil {
			_ = last.conn.Close()
		}
		return im.Close()
	}
	return set, nil
}

// writeLayer writes the new layer in one pass: tar, diff ID, compressor, digest.
func (e *env) writeLayer(ctx context.Context, write tarWriter, w io.Writer, o commitFlags) (d ocispec.Descriptor, diffID digest.Digest, err error) {
	r, pw := io.Pipe()
	done := make(chan union.TarResult, 1)
	go func() {
		result, err := write(ctx, pw)
		done <- result
		_ = pw.CloseWithError(err)
	}()
	enc, err := layer.Encode(ctx, w, r, quick(layer.Compression{Algorithm: o.compression, Level: o.level}))
	_ = r.CloseWithError(errors.Join(err, io.ErrClosedPipe)) // ends the writer, if Encode gave up
	result := <-done
	if err != nil {
		return d, "", err
	}
	e.remark("layer: %d entries, %s of content, %s compressed", result.Entries, size(result.Bytes, false), size(enc.Descriptor.Size, false))
	return enc.Descriptor, enc.DiffID, e.losses(result.Losses, o.allowLoss)
}

// quick gives gzip a level at which the compressor keeps up with the rest, unless one was
// asked for: of a container's changes level 6 takes twice the time, for a tenth fewer bytes.
func quick(c layer.Compression) layer.Compression {
	if c.Algorithm == "gzip" && c.Level == 0 {
		c.Level = 2
	}
	return c
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

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

func writeJSONLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// withImage opens an image for a command and closes it afterwards.
func (e *env) withImage(ctx context.Context, ref string, use func(*image) error) error {
	im, err := e.openImage(ctx, ref)
	if err != nil {
		return err
	}
	return errors.Join(use(im), im.Close())
}

// find resolves a path of an image; the last symlink is followed on request.
func (im *image) find(p string, follow bool) (union.ID, error) {
	resolve := im.tree.Resolve
	if follow {
		resolve = im.tree.ResolveFollow
	}
	id, err := resolve(p)
	if err == nil || follow {
		return id, im.notFound(p, err)
	}
	// A symlink on the way is followed; the last name is not.
	dir, err := im.tree.ResolveFollow(path.Dir("/" + p))
	if err != nil {
		return 0, im.notFound(p, err)
	}
	id, ok := im.tree.Lookup(dir, path.Base("/"+p))
	if !ok {
		return 0, im.notFound(p, unix.ENOENT)
	}
	return id, nil
}

// notFound is the error of a path that the image, or the layer that is looked at, does not
// have; nil stays nil.
func (im *image) notFound(p string, err error) error {
	if err == nil {
		return nil
	}
	return notInImage(p, err, im.hint(p))
}

// A fileRow is a file as the listings print it.
type fileRow struct {
	Path   string    `json:"path"`
	Type   string    `json:"type"`
	Mode   string    `json:"mode"`
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Size   int64     `json:"size"`
	Mtime  time.Time `json:"mtime"`
	Inode  uint64    `json:"inode"`
	Links  uint32    `json:"links"`
	Major  uint32    `json:"major,omitempty"`
	Minor  uint32    `json:"minor,omitempty"`
	Target string    `json:"target,omitempty"`
	Layer  int       `json:"layer"` // from 1 at the base
	Digest string    `json:"layer_digest,omitempty"`
	Xattrs []string  `json:"xattrs,omitempty"`

	Deleted int `json:"deleted_by_layer,omitempty"` // from 1; of what the image does not show

	bits uint32
}

var typeNames = map[uint32]string{
	unix.S_IFREG: "file", unix.S_IFDIR: "dir", unix.S_IFLNK: "symlink", unix.S_IFCHR: "char", unix.S_IFBLK: "block", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket",
}

func (im *image) row(p string, id union.ID) fileRow {
	a := im.tree.Attr(id)
	r := fileRow{
		Path: p, Type: typeNames[a.Type()], Mode: fmt.Sprintf("%04o", a.Mode&0o7777), UID: a.UID, GID: a.GID, Size: a.Size,
		Mtime: a.Mtime.Time().UTC(), Inode: a.Ino, Links: a.Nlink, bits: a.Mode,
	}
	switch a.Type() {
	case unix.S_IFLNK:
		r.Target = im.tree.Readlink(id)
	case unix.S_IFCHR, unix.S_IFBLK:
		r.Major, r.Minor = unix.Major(a.Rdev), unix.Minor(a.Rdev)
	}
	for _, x := range im.tree.Xattrs(id) {
		r.Xattrs = append(r.Xattrs, x.Name)
	}
	if l, _ := im.tree.Origin(id); l >= 0 {
		r.Layer, r.Digest = im.first+l+1, string(im.layers[l].Digest())
	}
	return r
}

// modeString is a mode as ls(1) prints it.
func modeString(mode uint32) string {
	return string(typeLetters[mode&unix.S_IFMT]) + forensic.Permissions(mode)
}

var typeLetters = map[uint32]byte{
	unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFCHR: 'c', unix.S_IFBLK: 'b', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's',
}

// listFlags are what the listings have in common.
type listFlags struct {
	long, json, bytes, null, recursive, self, deleted bool
}

func (f *listFlags) declare(flags *pflag.FlagSet) {
	flags.BoolVarP(&f.long, "long", "l", false, "mode, owner, size, time, layer")
	flags.BoolVar(&f.json, "json", false, "one JSON document a line")
	flags.BoolVar(&f.bytes, "bytes", false, "exact sizes")
	flags.BoolVarP(&f.null, "null", "0", false, "raw names, each ended by a NUL")
}

func deletedFlag(f *listFlags, flags *pflag.FlagSet) {
	flags.BoolVar(&f.deleted, "deleted", false, "what layers had and the image does not show any more")
}

func (f *listFlags) print(w io.Writer, r fileRow) (err error) {
	switch {
	case f.json:
		return writeJSONLine(w, r)
	case f.null:
		_, err = io.WriteString(w, r.Path+"\x00")
		return err
	case !f.long:
		_, err = fmt.Fprintln(w, safe(r.Path))
		return err
	}
	what, arrow := size(r.Size, f.bytes), ""
	if r.Type == "char" || r.Type == "block" {
		what = fmt.Sprintf("%d, %d", r.Major, r.Minor)
	}
	if r.Type == "symlink" {
		arrow = " -> " + safe(r.Target)
	}
	if r.Deleted > 0 {
		arrow += fmt.Sprintf("  [deleted by layer %d]", r.Deleted)
	}
	_, err = fmt.Fprintf(w, "%s %3d %5d %5d %9s %s layer %d  %s%s\n", modeString(r.bits), r.Links, r.UID, r.GID, what, localTime(r.Mtime), r.Layer, safe(r.Path), arrow)
	return err
}

// list prints a path of an image: of a directory what is in it, with self the directory too.
func (im *image) list(w io.Writer, p string, f *listFlags) error {
	id, err := im.find(p, !f.long && !f.self)
	if err != nil {
		return err
	}
	return im.listNode(w, path.Join("/", p), id, f, true)
}

func (im *image) listNode(w io.Writer, p string, id union.ID, f *listFlags, top bool) error {
	if !im.tree.IsDir(id) || !top || f.self {
		if err := f.print(w, im.row(p, id)); err != nil {
			return err
		}
	}
	if !im.tree.IsDir(id) || !top && !f.recursive || top && f.self && !f.recursive {
		return nil
	}
	for name, child := range im.tree.Children(id) {
		if err := im.listNode(w, path.Join(p, name), child, f, false); err != nil {
			return err
		}
	}
	return nil
}

func listingCommand(name, short string, set func(*listFlags, *pflag.FlagSet)) command {
	return command{name: name, args: "IMAGE [PATH…]", short: short, setup: func(flags *pflag.FlagSet) runFunc {
		var f listFlags
		f.declare(flags)
		set(&f, flags)
		only := layerFlag(flags)
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs(name+" [flags] IMAGE [PATH…]", args, 1, -1); err != nil {
				return err
			}
			if len(args) == 1 {
				args = append(args, "/")
			}
			if *only > 0 && f.deleted {
				return usageError("--layer looks at one layer, --deleted at all of them")
			}
			return e.withView(ctx, args[0], *only, func(im *image) error {
				list := im.list
				if f.deleted {
					list = im.listDeleted
				}
				var errs []error
				for _, p := range args[1:] {
					errs = append(errs, list(e.stdout, p, &f))
				}
				return errors.Join(errs...)
			})
		}
	}}
}

var (
	lsCommand = listingCommand("ls", "List files of an image", func(f *listFlags, flags *pflag.FlagSet) {
		flags.BoolVarP(&f.recursive, "recursive", "R", false, "all below too")
		deletedFlag(f, flags)
		flags.BoolVarP(&f.self, "directory", "d", false, "directories themselves, not what is in them")
	})
	statCommand = listingCommand("stat", "Say what an image knows of a file", func(f *listFlags, _ *pflag.FlagSet) {
		f.long, f.self = true, true
	})
	findCommand = listingCommand("find", "List all files below a path of an image", func(f *listFlags, flags *pflag.FlagSet) {
		f.recursive, f.self = true, true
		deletedFlag(f, flags)
	})
)

var catCommand = command{
	name: "cat", args: "IMAGE PATH…", short: "Print files of an image",
	setup: func(flags *pflag.FlagSet) runFunc {
		only := layerFlag(flags)
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("cat [flags] IMAGE PATH…", args, 2, -1); err != nil {
				return err
			}
			return e.withView(ctx, args[0], *only, func(im *image) error {
				for _, p := range args[1:] {
					id, err := im.find(p, true)
					if err == nil {
						err = im.copyTo(ctx, e.stdout, p, id)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		}
	},
}

// copyTo writes the content of a regular file.
func (im *image) copyTo(ctx context.Context, w io.Writer, p string, id union.ID) error {
	if im.tree.Mode(id)&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%s: not a regular file", p)
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err := im.tree.ReadAt(ctx, id, buf, off)
		if err != nil || n == 0 {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
}

var whichCommand = command{
	name: "which", args: "IMAGE PATH…", short: "Say which layers have a path, the newest first",
	setup: func(flags *pflag.FlagSet) runFunc {
		asJSON := flags.Bool("json", false, "one JSON document a line")
		bytes := flags.Bool("bytes", false, "exact sizes")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("which [flags] IMAGE PATH…", args, 2, -1); err != nil {
				return err
			}
			return e.withImage(ctx, args[0], func(im *image) error {
				for _, p := range args[1:] {
					if err := im.which(e.stdout, p, *asJSON, *bytes); err != nil {
						return err
					}
				}
				return nil
			})
		}
	},
}

// A whichRow is one version of a path.
type whichRow struct {
	Path   string    `json:"path"`
	Layer  int       `json:"layer"` // from 1 at the base
	Digest string    `json:"digest"`
	Step   string    `json:"build_step,omitempty"`
	State  string    `json:"state"` // visible; whiteout; overwritten by layer N, deleted by layer N
	Type   string    `json:"type,omitempty"`
	Mode   string    `json:"mode,omitempty"`
	Size   int64     `json:"size"`
	Mtime  time.Time `json:"mtime,omitzero"`
}

func (im *image) which(w io.Writer, p string, asJSON, exact bool) error {
	versions := union.Versions(im.layers, p)
	if len(versions) == 0 {
		return notInImage(p, unix.ENOENT, "")
	}
	steps := im.steps()
	state := "not shown"
	for _, v := range versions {
		r := whichRow{Path: path.Join("/", p), Layer: v.Layer + 1, Digest: string(im.layers[v.Layer].Digest()), Step: steps[v.Layer], State: state}
		state = fmt.Sprintf("overwritten by layer %d", r.Layer)
		switch {
		case v.Whiteout:
			r.State, state = "whiteout", fmt.Sprintf("deleted by layer %d", r.Layer)
		case v.Visible:
			r.State = "visible"
		}
		if !v.Whiteout {
			r.Type, r.Mode = typeNames[v.Entry.Mode&unix.S_IFMT], fmt.Sprintf("%04o", v.Entry.Mode&0o7777)
			r.Size, r.Mtime = v.Entry.Size, time.Unix(v.Entry.Sec, int64(v.Entry.Nsec)).UTC()
		}
		if err := r.print(w, asJSON, exact); err != nil {
			return err
		}
	}
	return nil
}

func (r whichRow) print(w io.Writer, asJSON, exact bool) error {
	if asJSON {
		return writeJSONLine(w, r)
	}
	detail := ""
	if r.Type != "" {
		detail = fmt.Sprintf(" %s %s %s %s", r.Type, r.Mode, size(r.Size, exact), localTime(r.Mtime))
	}
	_, err := fmt.Fprintf(w, "%s  layer %d  %s  %s%s  %s\n", safe(r.Path), r.Layer, shortDigest(strings.TrimPrefix(r.Digest, "sha256:")), r.State, detail, safe(oneLine(r.Step)))
	return err
}

var cpCommand = command{
	name: "cp", args: "IMAGE PATH… DEST", short: "Copy files out of an image",
	long: `
Directories are copied with all below them. Type, permissions and times are
kept, for root owners, devices and extended attributes too. Nothing that is
there already is overwritten unless --force is given.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		force := flags.Bool("force", false, "replace files that are there")
		only := layerFlag(flags)
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("cp [flags] IMAGE PATH… DEST", args, 3, -1); err != nil {
				return err
			}
			dest := args[len(args)-1]
			paths := args[1 : len(args)-1]
			if len(paths) > 1 && !isDir(dest) {
				return usageError(dest + " is no directory; several files want one")
			}
			return e.withView(ctx, args[0], *only, func(im *image) error {
				x := &extractor{im: im, force: *force, log: e.log, root: os.Geteuid() == 0, links: map[union.ID]string{}}
				for _, p := range paths {
					if err := x.copy(ctx, p, dest); err != nil {
						return err
					}
				}
				return nil
			})
		}
	},
}

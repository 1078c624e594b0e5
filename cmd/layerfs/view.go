package main

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// layerFlag declares --layer, which chooses one layer to look at.
func layerFlag(flags *pflag.FlagSet) *int {
	return flags.Int("layer", 0, "what layer N has, counted from 1 at the base, also what later ones overwrite or delete")
}

// withView opens an image and, unless n is 0, looks at its layer n alone.
func (e *env) withView(ctx context.Context, ref string, n int, use func(*image) error) error {
	return e.withImage(ctx, ref, func(im *image) error {
		if n == 0 {
			return use(im)
		}
		if n < 1 || n > len(im.layers) {
			return usageError(fmt.Sprintf("--layer %d: the image has layers 1 to %d", n, len(im.layers)))
		}
		v, err := im.only(ctx, n-1)
		if err != nil {
			return err
		}
		return use(v)
	})
}

// only is the image as if it were layer i alone. It is closed with the image.
func (im *image) only(ctx context.Context, i int) (v *image, err error) {
	one := *im
	one.layers, one.first, one.whole = im.layers[i:i+1], i, im
	one.tree, err = union.Merge(ctx, one.layers)
	return &one, err
}

// hint says what has become of a path that is not shown, and how to read it; "" if no layer has it.
func (im *image) hint(p string) string {
	if im.whole != nil {
		return im.whole.hintAt(p, im.first)
	}
	return im.hintAt(p, -1)
}

// hintAt is hint for one layer that was looked at, or all (-1).
func (im *image) hintAt(p string, looked int) string {
	deleted := 0
	var have []string
	for _, v := range union.Versions(im.layers, p) {
		switch {
		case !v.Whiteout:
			have = append(have, fmt.Sprint(v.Layer+1))
		case len(have) == 0:
			deleted = v.Layer + 1
		}
	}
	if len(have) == 0 {
		return ""
	}
	read := fmt.Sprintf("--layer %s looks at what was there", have[0])
	switch {
	case looked >= 0:
		return fmt.Sprintf("layer %d does not have it; layer %s does", looked+1, strings.Join(have, ", "))
	case deleted > 0:
		return fmt.Sprintf("layer %d deletes it; %s", deleted, read)
	}
	return "a later layer hides it; " + read
}

// entryRow is an entry of layer i, whatever the layers above make of it.
func (im *image) entryRow(p string, i int, e layer.Entry) fileRow {
	r := fileRow{
		Path: p, Type: typeNames[e.Mode&unix.S_IFMT], Mode: fmt.Sprintf("%04o", e.Mode&0o7777), UID: e.UID, GID: e.GID, Size: e.Size,
		Mtime: time.Unix(e.Sec, int64(e.Nsec)).UTC(), Links: e.Nlink, Target: e.Link, Layer: i + 1, Digest: string(im.layers[i].Digest()), bits: e.Mode,
	}
	if t := e.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		r.Major, r.Minor = unix.Major(e.Rdev), unix.Minor(e.Rdev)
	}
	for _, x := range e.Xattrs {
		r.Xattrs = append(r.Xattrs, x.Name)
	}
	return r
}

// listDeleted prints what was below a path and is not shown any more, the newest version of each.
func (im *image) listDeleted(w io.Writer, p string, f *listFlags) error {
	dir := strings.Trim(path.Clean("/"+p), "/")
	shown := func(path string) bool {
		_, err := im.tree.Resolve(path)
		return err == nil
	}
	for _, r := range forensic.DeletedRecords(im.layers, shown) {
		if !f.below(dir, r.Path) {
			continue
		}
		row := im.entryRow("/"+r.Path, r.Layer, r.Entry)
		row.Deleted = r.By + 1
		if err := f.print(w, row); err != nil {
			return err
		}
	}
	return nil
}

// below tells whether a listing of dir has a path.
func (f *listFlags) below(dir, p string) bool {
	switch rest, in := strings.CutPrefix(p, dir+"/"); {
	case dir == "":
		return f.recursive || !strings.Contains(p, "/")
	case p == dir:
		return true
	default:
		return in && (f.recursive || !strings.Contains(rest, "/"))
	}
}

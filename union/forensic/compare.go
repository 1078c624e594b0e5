package forensic

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/layerfs/layerfs/union/layer"
)

// A Difference is where two views of one layer part.
type Difference struct {
	Path, What string
}

// Compare holds a layer as its index shows it against the same layer as its
// tar has it: names, attributes, whiteouts, and the content of every file. It
// reads all content of both. An index that lies gives two views of one image:
// a lazy mount shows the one, an unpacking tool the other.
func Compare(ctx context.Context, index, tar *layer.Layer) ([]Difference, error) {
	c := &comparison{a: index, b: tar, links: map[layer.ID]layer.ID{}}
	if err := c.dir(ctx, "", layer.Root, layer.Root); err != nil {
		return c.list, err
	}
	if !slices.Equal(index.ForeignLinks(), tar.ForeignLinks()) && len(c.list) == 0 {
		c.differ("", "hardlinks out of the layer")
	}
	return c.list, nil
}

type comparison struct {
	a, b  *layer.Layer
	links map[layer.ID]layer.ID // of files with several names: what each is in the other
	list  []Difference
}

func (c *comparison) differ(path, format string, args ...any) {
	c.list = append(c.list, Difference{"/" + path, fmt.Sprintf(format, args...)})
}

func (c *comparison) dir(ctx context.Context, path string, a, b layer.ID) error {
	if x, y := slices.Collect(c.a.Whiteouts(a)), slices.Collect(c.b.Whiteouts(b)); !slices.Equal(x, y) {
		c.differ(path, "deletes %q, the tar %q", x, y)
	}
	for name, id := range c.a.Children(a) {
		other, ok := c.b.Lookup(b, name)
		if !ok {
			c.differ(join(path, name), "not in the tar")
			continue
		}
		if err := c.entry(ctx, join(path, name), id, other); err != nil {
			return err
		}
	}
	for name := range c.b.Children(b) {
		if _, ok := c.a.Lookup(a, name); !ok {
			c.differ(join(path, name), "only in the tar")
		}
	}
	return nil
}

func (c *comparison) entry(ctx context.Context, path string, a, b layer.ID) error {
	x, y := c.a.Entry(a), c.b.Entry(b)
	for _, f := range []struct {
		what string
		a, b any
	}{
		{"mode", fmt.Sprintf("%o", x.Mode), fmt.Sprintf("%o", y.Mode)}, {"owner", x.UID, y.UID}, {"group", x.GID, y.GID},
		{"size", x.Size, y.Size}, {"device", x.Rdev, y.Rdev}, {"links", x.Nlink, y.Nlink}, {"time", x.Sec, y.Sec},
		{"target", x.Link, y.Link}, {"opaque", x.Opaque, y.Opaque},
	} {
		if f.a != f.b {
			c.differ(path, "%s %v, in the tar %v", f.what, f.a, f.b)
		}
	}
	if !slices.EqualFunc(byName(x.Xattrs), byName(y.Xattrs), func(p, q layer.Xattr) bool { return p.Name == q.Name && bytes.Equal(p.Value, q.Value) }) {
		c.differ(path, "extended attributes")
	}
	switch {
	case x.Mode&syscall.S_IFMT != y.Mode&syscall.S_IFMT:
		return nil
	case x.Mode&syscall.S_IFMT == syscall.S_IFDIR:
		return c.dir(ctx, path, a, b)
	case x.Mode&syscall.S_IFMT == syscall.S_IFREG && x.Size == y.Size:
		return c.file(ctx, path, a, b, x.Size)
	}
	return nil
}

// file compares content, once for each file with several names.
func (c *comparison) file(ctx context.Context, path string, a, b layer.ID, size int64) error {
	if other, seen := c.links[a]; seen && other == b {
		return nil
	}
	c.links[a] = b
	p, q := make([]byte, min(size, 1<<20)), make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; off += int64(len(p)) {
		n := min(int64(len(p)), size-off)
		if _, err := c.a.ReadAt(ctx, a, p[:n], off); err != nil && err != io.EOF {
			c.differ(path, "cannot be read: %v", err)
			return ctx.Err()
		}
		if _, err := c.b.ReadAt(ctx, b, q[:n], off); err != nil && err != io.EOF {
			return fmt.Errorf("read %s of the tar: %w", path, err)
		}
		if !bytes.Equal(p[:n], q[:n]) {
			c.differ(path, "content")
			return nil
		}
	}
	return nil
}

// byName sorts: a tar keeps the order in which attributes were written, a TOC has none.
func byName(list []layer.Xattr) []layer.Xattr {
	return slices.SortedFunc(slices.Values(list), func(p, q layer.Xattr) int { return strings.Compare(p.Name, q.Name) })
}

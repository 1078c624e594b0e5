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

// EntryOptions of CompareEntries.
type EntryOptions struct {
	Owners bool // owners count too; not where a user namespace has shifted them
}

// CompareEntries holds an unpacked layer against the entries of its tar: names, attributes
// and whiteouts, no content. What the tar does not say is no difference: the attributes
// of directories that it only implies, and the labels of SELinux, which belong to the machine.
func CompareEntries(ctx context.Context, dir, tar *layer.Layer, o EntryOptions) ([]Difference, error) {
	c := &comparison{a: dir, b: tar, unpacked: true, noContent: true, owners: o.Owners}
	err := c.dir(ctx, "", layer.Root, layer.Root)
	return c.list, err
}

// CompareUnpacked is CompareEntries with the content of every file.
func CompareUnpacked(ctx context.Context, dir, tar *layer.Layer, o EntryOptions) ([]Difference, error) {
	c := &comparison{a: dir, b: tar, unpacked: true, owners: o.Owners, links: map[layer.ID]layer.ID{}}
	err := c.dir(ctx, "", layer.Root, layer.Root)
	return c.list, err
}

type comparison struct {
	a, b      *layer.Layer
	unpacked  bool // a is a directory: see CompareEntries
	noContent bool
	owners    bool                  // with unpacked
	links     map[layer.ID]layer.ID // of files with several names: what each is in the other
	list      []Difference
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
	if c.unpacked {
		x = c.likeTar(x, y)
	}
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
	case c.noContent:
		return nil
	case x.Mode&syscall.S_IFMT == syscall.S_IFREG && x.Size == y.Size:
		return c.file(ctx, path, a, b, x.Size)
	}
	return nil
}

// likeTar takes from y, of the tar, what is not to be compared in x, of a directory.
func (c *comparison) likeTar(x, y layer.Entry) layer.Entry {
	if !c.owners {
		x.UID, x.GID = y.UID, y.GID
	}
	if !y.Explicit {
		return y
	}
	x.Xattrs = slices.DeleteFunc(slices.Clone(x.Xattrs), func(a layer.Xattr) bool {
		return a.Name == "security.selinux" && !slices.ContainsFunc(y.Xattrs, func(b layer.Xattr) bool { return b.Name == a.Name })
	})
	return x
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

package union

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"iter"
	"path"
	"slices"

	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// A Change is a path at which the union differs from the tree below.
type Change struct {
	Kind byte   // 'A' added, 'M' modified, 'D' deleted (with all below it), 'T' of another type
	Path string // relative to the root; "" is the root
	Meta bool   // of 'M': owner, mode, times or xattrs alone, as far as size and time of change tell
	Mode uint32 // as it is now, type and permissions; as it was, of 'D'
	Size int64
}

// Changes lists what the upper directory changes, sorted by the bytes of the
// paths. It walks the upper directory alone and reads no content. A directory
// whose time changed because names in it came or went is not listed for that.
func (f *FS) Changes(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		list, err := f.changes(ctx)
		if err != nil {
			yield(Change{}, err)
			return
		}
		for _, c := range list {
			if !yield(c, nil) {
				return
			}
		}
	}
}

// errFound ends a walk.
var errFound = errors.New("found")

// Changed tells whether Changes lists anything.
func (f *FS) Changed(ctx context.Context) (bool, error) {
	if f.up == nil {
		return false, nil
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	err := f.walk(ctx, func(it *item) error {
		c, onlyTime, err := f.compare(it)
		if err == nil && c.Kind != 0 && !onlyTime {
			err = errFound
		}
		return err
	})
	if err == errFound {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	list, err := f.changes(ctx) // a directory of another time may be all there is
	return len(list) > 0, err
}

func (f *FS) changes(ctx context.Context) ([]Change, error) {
	if f.up == nil {
		return nil, nil
	}
	var list, times []Change
	names := map[string]bool{} // directories in which names came, went or became another thing
	err := f.walk(ctx, func(it *item) error {
		c, onlyTime, err := f.compare(it)
		switch {
		case err != nil || c.Kind == 0:
		case onlyTime:
			times = append(times, c)
		default:
			list = append(list, c)
		}
		if c.Kind == 'A' || c.Kind == 'D' || c.Kind == 'T' {
			names[parentPath(c.Path)] = true
		}
		return err
	})
	for _, c := range times {
		if !names[c.Path] {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return list, err
}

func parentPath(p string) string {
	if p = path.Dir(p); p == "." {
		return ""
	}
	return p
}

// compare says how an item differs from the lower node at its path; Kind 0 is
// not at all. onlyTime is true for a directory that only has another time.
func (f *FS) compare(it *item) (c Change, onlyTime bool, err error) {
	if it.whiteout {
		a := f.tree().Attr(it.lower)
		return Change{Kind: 'D', Path: it.path, Mode: a.Mode, Size: a.Size}, false, nil
	}
	now := f.itemAttr(it)
	c = Change{Kind: 'M', Path: it.path, Mode: now.Mode, Size: now.Size}
	if it.lower == 0 {
		c.Kind = 'A'
		return c, false, nil
	}
	was := f.tree().Attr(it.lower)
	if now.Type() != was.Type() {
		c.Kind = 'T'
		return c, false, nil
	}
	same, err := f.sameMeta(it, now, was)
	timeless := now.Mtime == was.Mtime
	c.Meta = now.IsDir() || timeless && now.Size == was.Size
	if same && timeless && (now.IsDir() || now.Size == was.Size) {
		c.Kind = 0
	}
	return c, same && now.IsDir(), err
}

// sameMeta compares all but times and content.
func (f *FS) sameMeta(it *item, now, was Attr) (bool, error) {
	if now.Mode != was.Mode || now.UID != was.UID || now.GID != was.GID || now.Rdev != was.Rdev {
		return false, nil
	}
	if now.Type() == unix.S_IFLNK {
		target, err := f.itemLink(it)
		if err != nil || target != f.tree().Readlink(it.lower) {
			return false, err
		}
	}
	xattrs, err := f.itemXattrs(it)
	return sameXattrs(xattrs, f.tree().Xattrs(it.lower)), err
}

func sameXattrs(a, b []layer.Xattr) bool {
	byName := func(x, y layer.Xattr) int { return cmp.Compare(x.Name, y.Name) }
	a, b = slices.SortedFunc(slices.Values(a), byName), slices.SortedFunc(slices.Values(b), byName)
	return slices.EqualFunc(a, b, func(x, y layer.Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) })
}

func (f *FS) itemLink(it *item) (string, error) {
	if it.dir < 0 {
		return f.tree().Readlink(it.from), nil
	}
	return readlinkAt(it.dir, it.name)
}

// itemXattrs are the xattrs a process would see, without overlayfs's own marks.
func (f *FS) itemXattrs(it *item) ([]layer.Xattr, error) {
	if it.dir < 0 {
		return f.tree().Xattrs(it.from), nil
	}
	names, err := listxattrAt(it.dir, it.name)
	if err != nil {
		return nil, err
	}
	var list []layer.Xattr
	for _, stored := range names {
		name, ok := f.unescape(stored)
		if !ok {
			continue
		}
		value, err := lgetxattrAt(it.dir, it.name, stored)
		if err != nil {
			return nil, err
		}
		list = append(list, layer.Xattr{Name: name, Value: value})
	}
	return list, nil
}

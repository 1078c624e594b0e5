package union

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// An item is one thing the upper directory says, met on a walk.
type item struct {
	path     string // relative to the root; "" is the root
	dir      int    // descriptor of the upper directory it is in; -1: it only shows through a renamed directory
	name     string
	st       unix.Stat_t // of the upper part
	whiteout bool
	lower    ID // the lower node at the same path; 0: none
	below    ID // the lower node that the directory it is in has at the name; after a rename not the same
	from     ID // the lower node it shows, where dir is -1
	through  ID // of directories: the lower directory that shows through
}

// walk visits what the upper directory says, and nothing else: the directory
// itself, then what it hides, sorted by the bytes of the names, then what it
// has, sorted likewise. It needs no lock and no table, so that it also works
// beside a live mount, on an upper directory that was opened only to be read.
func (f *FS) walk(ctx context.Context, visit func(*item) error) error {
	root := &item{dir: f.up.root, name: ".", lower: Root, through: Root}
	if err := unix.Fstat(f.up.root, &root.st); err != nil {
		return err
	}
	if f.up.isOpaque(f.up.root, ".") {
		root.through = 0
	}
	if err := visit(root); err != nil {
		return err
	}
	return f.walkDir(ctx, f.up.root, root, visit)
}

// walkDir visits what is in an upper directory, fd.
func (f *FS) walkDir(ctx context.Context, fd int, d *item, visit func(*item) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	shown, err := f.shownIn(fd, d)
	if err != nil {
		return err
	}
	for _, it := range f.hiddenIn(d, shown) {
		if err := visit(it); err != nil {
			return err
		}
	}
	list := make([]*item, 0, len(shown))
	for _, it := range shown {
		if it != nil && !f.sentAs(it) {
			list = append(list, it)
		}
	}
	slices.SortFunc(list, func(a, b *item) int { return cmp.Compare(a.name, b.name) })
	for _, it := range list {
		if err := f.walkItem(ctx, d, it, visit); err != nil {
			return err
		}
	}
	return nil
}

// shownIn lists what a directory shows that is not as at the same path below; nil items are hidden names.
func (f *FS) shownIn(fd int, d *item) (map[string]*item, error) {
	shown := map[string]*item{}
	entries, err := readEntries(fd)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if hidden, ok := strings.CutPrefix(e.name, whiteoutPrefix); ok {
			shown[hidden] = nil
			continue
		}
		it := &item{path: join(d.path, e.name), dir: fd, name: e.name, lower: f.lowerAt(d.lower, e.name), below: f.lowerAt(d.through, e.name)}
		err := unix.Fstatat(fd, e.name, &it.st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case err == unix.ENOENT: // gone meanwhile
		case err != nil:
			return nil, err
		case f.up.isWhiteout(fd, e.name, &it.st):
			shown[e.name] = nil
		default:
			shown[e.name] = it
		}
	}
	if d.through != 0 && d.through != d.lower {
		f.throughIn(d, shown)
	}
	return shown, nil
}

// throughIn adds what shows through a directory that was renamed: for a layer all of it is new.
func (f *FS) throughIn(d *item, shown map[string]*item) {
	for name, id := range f.tree().Children(d.through) {
		if _, ok := shown[name]; !ok {
			shown[name] = &item{path: join(d.path, name), dir: -1, name: name, from: id, lower: f.lowerAt(d.lower, name)}
		}
	}
}

// hiddenIn lists the lower names at the same path that no longer show.
func (f *FS) hiddenIn(d *item, shown map[string]*item) []*item {
	if d.lower == 0 {
		return nil
	}
	var list []*item
	for name, id := range f.tree().Children(d.lower) {
		it, touched := shown[name]
		if it == nil && (touched || d.through != d.lower) {
			list = append(list, &item{path: join(d.path, name), dir: -1, name: name, whiteout: true, lower: id})
		}
	}
	return list
}

func (f *FS) walkItem(ctx context.Context, d, it *item, visit func(*item) error) error {
	if it.dir < 0 {
		return f.walkThrough(ctx, it, visit)
	}
	if it.st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return visit(it)
	}
	fd, err := openAt(it.dir, it.name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open /%s in the upper directory: %w", it.path, err)
	}
	defer unix.Close(fd)
	it.through = f.showsThrough(d, it)
	if err := visit(it); err != nil {
		return err
	}
	return f.walkDir(ctx, fd, f.asDir(it), visit)
}

// sentAs tells whether the tree below has an upper file, at the same path, as it is:
// it stayed because it was open when a commit went on.
func (f *FS) sentAs(it *item) bool {
	if it.dir < 0 || f.epoch.Load() == 0 || it.lower == 0 {
		return false
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	n := f.byIno[it.st.Ino]
	return n != nil && n.id == it.lower && n.sent != Time{} && n.sent == statTime(it.st.Ctim)
}

// asDir is a directory for the sake of what is in it: a lower entry that is none has nothing to compare with.
func (f *FS) asDir(it *item) *item {
	d := *it
	if d.lower != 0 && !f.tree().IsDir(d.lower) {
		d.lower = 0
	}
	return &d
}

// showsThrough is the lower directory that shows through an upper one in d.
func (f *FS) showsThrough(d, it *item) ID {
	if f.up.isOpaque(it.dir, it.name) {
		return 0
	}
	if to, err := lgetxattrAt(it.dir, it.name, f.up.prefix+xattrRedirect); err == nil {
		return f.redirected(d.through, string(to))
	}
	if it.below != 0 && f.tree().IsDir(it.below) {
		return it.below
	}
	return 0
}

// walkThrough visits a lower node that shows at a new path, and all below it.
func (f *FS) walkThrough(ctx context.Context, it *item, visit func(*item) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := visit(it); err != nil || !f.tree().IsDir(it.from) {
		return err
	}
	d := f.asDir(it)
	shown := map[string]*item{}
	for name, id := range f.tree().Children(it.from) {
		shown[name] = &item{path: join(it.path, name), dir: -1, name: name, from: id, lower: f.lowerAt(d.lower, name)}
	}
	for _, w := range f.hiddenIn(d, shown) {
		if err := visit(w); err != nil {
			return err
		}
	}
	for name := range f.tree().Children(it.from) {
		if err := f.walkThrough(ctx, shown[name], visit); err != nil {
			return err
		}
	}
	return nil
}

func (f *FS) lowerAt(dir ID, name string) ID {
	if dir == 0 {
		return 0
	}
	id, _ := f.tree().Lookup(dir, name)
	return id
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// itemAttr is what the item looks like through the union.
func (f *FS) itemAttr(it *item) Attr {
	if it.dir < 0 {
		return f.tree().Attr(it.from)
	}
	return f.ids.inImage(f.statAttr(&node{ino: it.st.Ino}, &it.st))
}

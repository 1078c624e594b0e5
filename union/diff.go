package union

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// DiffOptions of Diff.
type DiffOptions struct {
	// Content has files of the same size compared byte by byte, unless it is known without
	// that whether they are the same. Without it, files of the same size are the same when
	// they have the same time of change, as rsync has it.
	Content bool
}

// Diff lists what leads from a to b, sorted by the bytes of the paths, as Changes does it
// for what is above a tree. Compared are type, mode, owner, device, link target, extended
// attributes, size, time of change, and which names are links of one another: a name is
// listed when the first of the names that both have of its node is another one in b. A
// directory whose time changed because names in it came or went is not listed for that.
//
// What the same layers have is not looked at, and nothing of a file's content is fetched
// that layers and entries, or the digests of an index, can tell. Of an FS with an upper
// directory it is the state at the beginning, without content that changes meanwhile.
func Diff(ctx context.Context, a, b *FS, o DiffOptions) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		list, err := diff(ctx, a, b, o)
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

func diff(ctx context.Context, a, b *FS, o DiffOptions) ([]Change, error) {
	d := &differ{o: o, seen: map[string]bool{}, names: map[string]bool{}}
	d.firstA, d.firstB = map[nodeKey]string{}, map[nodeKey]string{}
	was, err := a.Mark(ctx)
	if err != nil {
		return nil, err
	}
	defer was.Close()
	now, err := b.Mark(ctx)
	if err != nil {
		return nil, err
	}
	defer now.Close()
	d.a, d.b = was.snapshot(), now.snapshot()
	d.pair("", d.a.rootSpot(), d.b.rootSpot())
	if err := d.dir(ctx, "", d.a.rootSpot(), d.b.rootSpot(), touches(d.a, d.b)); err != nil {
		return nil, err
	}
	d.pairLinked()
	if err := d.readUndecided(ctx); err != nil {
		return nil, err
	}
	return d.changes(), nil
}

// A differ is a call of Diff under way.
type differ struct {
	a, b   *snapshot
	o      DiffOptions
	found  []*finding
	linked []string        // paths of nodes with several names, to be looked at with these
	seen   map[string]bool // which of linked were looked at

	firstA, firstB map[nodeKey]string // of nodes with several names: the first that both sides have

	names map[string]bool // directories in which names came, went or became another thing
}

// A finding is a path that may differ.
type finding struct {
	Change
	a, b      spot
	meta      bool // all but time and content differ in something
	time      bool // the time differs
	data      bool // the content differs
	undecided bool // data is to be found out by reading
}

// dir compares what is in two directories, as far as it is touched.
func (d *differ) dir(ctx context.Context, path string, a, b spot, t *touch) error {
	if err := ctx.Err(); err != nil || t == nil {
		return err
	}
	for name := range d.namesIn(a, b, t) {
		p, x, y := join(path, name), d.a.child(a, name), d.b.child(b, name)
		d.pair(p, x, y)
		if x.none() || y.none() || !d.a.isDir(x) || !d.b.isDir(y) {
			continue
		}
		if err := d.dir(ctx, p, x, y, t.below(name)); err != nil {
			return err
		}
	}
	return nil
}

// namesIn are the touched names of two directories.
func (d *differ) namesIn(a, b spot, t *touch) iter.Seq[string] {
	return func(yield func(string) bool) {
		if !t.all {
			for _, name := range slices.Sorted(maps.Keys(t.kids)) {
				if !yield(name) {
					return
				}
			}
			return
		}
		for name := range d.a.children(a) {
			if !yield(name) {
				return
			}
		}
		for name := range d.b.children(b) {
			if d.a.child(a, name).none() && !yield(name) {
				return
			}
		}
	}
}

// pair compares what stands at a path.
func (d *differ) pair(path string, a, b spot) {
	switch {
	case a.none() && b.none(), d.sameNode(a, b) && !d.isLinked(a, b):
	case a.none():
		d.added(path, b)
	case b.none():
		d.list('D', path, d.a.look(a))
	case d.a.typ(a) != d.b.typ(b):
		d.list('T', path, d.b.look(b))
		d.addedIn(path, b)
	default:
		d.both(path, a, b)
	}
}

// sameNode tells whether two lower nodes are one entry of one layer.
func (d *differ) sameNode(a, b spot) bool {
	if a.up != nil || b.up != nil || a.none() || b.none() {
		return false
	}
	la, ea := d.a.fs.tree().Origin(a.lower)
	lb, eb := d.b.fs.tree().Origin(b.lower)
	if la < 0 || lb < 0 {
		return la == lb
	}
	return ea == eb && d.a.fs.tree().layers[la].Same(d.b.fs.tree().layers[lb])
}

func (d *differ) isLinked(a, b spot) bool {
	return !d.a.isDir(a) && (d.a.nlink(a) > 1 || d.b.nlink(b) > 1)
}

func (d *differ) list(kind byte, path string, r *record) {
	d.names[parentPath(path)] = true
	d.found = append(d.found, &finding{Change: Change{Kind: kind, Path: path, Mode: r.mode, Size: r.size}})
}

func (d *differ) added(path string, n spot) {
	d.list('A', path, d.b.look(n))
	d.addedIn(path, n)
}

func (d *differ) addedIn(path string, n spot) {
	if !d.b.isDir(n) {
		return
	}
	for name, k := range d.b.children(n) {
		d.added(join(path, name), k)
	}
}

// both compares two nodes of one type.
func (d *differ) both(path string, a, b spot) {
	was, now := d.a.look(a), d.b.look(b)
	f := &finding{Change: Change{Kind: 'M', Path: path, Mode: now.mode, Size: now.size}, a: a, b: b}
	f.meta = was.mode != now.mode || was.uid != now.uid || was.gid != now.gid || !sameXattrs(was.xattrs(), now.xattrs())
	f.time = was.mtime != now.mtime
	switch now.typ() {
	case unix.S_IFREG:
		f.data, f.undecided = d.content(a, b, was, now)
	case unix.S_IFLNK:
		f.data = was.link() != now.link()
	case unix.S_IFCHR, unix.S_IFBLK:
		f.data = was.rdev != now.rdev
	}
	if d.isLinked(a, b) {
		d.seen[path] = true
		f.meta = d.firstName(path, d.a, a) != d.firstName(path, d.b, b) || f.meta
	}
	if f.meta || f.time || f.data || f.undecided {
		d.found = append(d.found, f)
	}
}

// pairLinked looks at the other names of nodes with several: a link more or less concerns them all.
func (d *differ) pairLinked() {
	for len(d.linked) > 0 {
		list := d.linked
		d.linked = nil
		for _, p := range list {
			a, b := d.a.resolve(p), d.b.resolve(p)
			if !d.seen[p] && !a.none() && !b.none() && d.a.typ(a) == d.b.typ(b) {
				d.both(p, a, b)
			}
		}
	}
}

// firstName is the first name of a node that the other side has as something of its type too.
func (d *differ) firstName(path string, s *snapshot, n spot) string {
	other, known := d.b, d.firstA
	if s == d.b {
		other, known = d.a, d.firstB
	}
	id := s.key(n)
	first, ok := known[id]
	if ok {
		return first
	}
	names, typ := s.names(n), s.typ(n)
	if len(names) == 0 {
		return path
	}
	d.linked = append(d.linked, names...)
	for _, p := range names {
		if o := other.resolve(p); !o.none() && other.typ(o) == typ {
			first = p
			break
		}
	}
	known[id] = first
	return first
}

// changes are the findings that are differences.
func (d *differ) changes() []Change {
	var list []Change
	for _, f := range d.found {
		onlyTime := !f.meta && !f.data
		if f.Kind == 'M' && onlyTime && (!f.time || f.Mode&unix.S_IFMT == unix.S_IFDIR && d.names[f.Path]) {
			continue
		}
		f.Meta = f.Kind == 'M' && !f.data
		list = append(list, f.Change)
	}
	slices.SortFunc(list, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return list
}

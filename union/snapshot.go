package union

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// A snapshot is what an FS showed at a Moment, all paths of it: the list of the Moment is a
// layer above the tree, as records in place of headers. Content is read from where it is.
type snapshot struct {
	fs     *FS
	m      *Moment
	root   *upperNode           // nil: nothing but the tree
	linked map[nodeKey][]string // paths of noted nodes with several names
}

// An upperNode is a path that the list of the Moment has.
type upperNode struct {
	rec   *record // nil: a root that is as in the tree
	lower ID      // of directories: the lower one at the same path, which has what kids has not; 0: none
	kids  map[string]*upperNode
}

// A spot is one path of a snapshot: a noted node or a lower one. The zero value is nothing.
type spot struct {
	up    *upperNode
	lower ID
}

func (s spot) none() bool { return s == spot{} }

// snapshot makes the tree of the list. It is used up to the Moment's Close.
func (m *Moment) snapshot() *snapshot {
	s := &snapshot{fs: m.fs, m: m, linked: map[nodeKey][]string{}}
	if m.fs.up == nil {
		return s
	}
	s.root = &upperNode{lower: Root, kids: map[string]*upperNode{}}
	dirs := map[string]*upperNode{"": s.root}
	for r := range m.records() {
		if r.dir == nil {
			s.root.rec = r
			continue
		}
		p := r.path()
		if r.kind != recordWhiteout && r.typ() != unix.S_IFDIR && r.nlink > 1 {
			s.linked[r.key()] = append(s.linked[r.key()], p)
		}
		d := dirs[r.dir.path]
		if d == nil {
			continue // below a lower directory that shows at a new path: the tree has it all
		}
		n := &upperNode{rec: r}
		d.kids[r.name] = n
		if r.kind == recordUpper && r.typ() == unix.S_IFDIR {
			n.lower, n.kids = s.fs.lowerDir(d.lower, r.name), map[string]*upperNode{}
			dirs[p] = n
		}
	}
	return s
}

// lowerDir is the directory that a lower one has at a name; 0: none.
func (f *FS) lowerDir(dir ID, name string) ID {
	if id := f.lowerAt(dir, name); id != 0 && f.tree().IsDir(id) {
		return id
	}
	return 0
}

func (s *snapshot) rootSpot() spot {
	if s.root == nil {
		return spot{lower: Root}
	}
	return spot{up: s.root}
}

// child is a name in a directory.
func (s *snapshot) child(d spot, name string) spot {
	if d.up == nil {
		return spot{lower: s.fs.lowerAt(d.lower, name)}
	}
	n := d.up.kids[name]
	switch {
	case n == nil:
		return spot{lower: s.fs.lowerAt(d.up.lower, name)}
	case n.rec.kind == recordWhiteout:
		return spot{}
	case n.rec.kind == recordLower:
		return spot{lower: ID(n.rec.num)}
	}
	return spot{up: n}
}

// children lists a directory in the order of the bytes of the names.
func (s *snapshot) children(d spot) iter.Seq2[string, spot] {
	if d.up == nil {
		return s.lowerChildren(d.lower)
	}
	names := slices.Collect(maps.Keys(d.up.kids))
	if d.up.lower != 0 {
		for name := range s.fs.tree().Children(d.up.lower) {
			if d.up.kids[name] == nil {
				names = append(names, name)
			}
		}
	}
	sort.Strings(names)
	return func(yield func(string, spot) bool) {
		for _, name := range names {
			if c := s.child(d, name); !c.none() && !yield(name, c) {
				return
			}
		}
	}
}

func (s *snapshot) lowerChildren(d ID) iter.Seq2[string, spot] {
	return func(yield func(string, spot) bool) {
		for name, id := range s.fs.tree().Children(d) {
			if !yield(name, spot{lower: id}) {
				return
			}
		}
	}
}

// record is the node of a path as a list would have it.
func (s *snapshot) record(dir *markedDir, name string, n spot) *record {
	if n.up != nil && n.up.rec != nil {
		return n.up.rec
	}
	id := n.lower
	if n.up != nil {
		id = Root
	}
	a := s.fs.tree().Attr(id)
	r := &record{dir: dir, name: name, kind: recordLower, num: uint64(id), mode: a.Mode, uid: a.UID, gid: a.GID, nlink: a.Nlink, rdev: a.Rdev, size: a.Size, mtime: a.Mtime}
	if e := s.fs.tree().entry(id); len(e.Xattrs) > 0 || e.Link != "" {
		r.more = &recordMore{link: e.Link, xattrs: e.Xattrs}
	}
	return r
}

// look is record for who does not need the path.
func (s *snapshot) look(n spot) *record { return s.record(nil, "", n) }

func (s *snapshot) typ(n spot) uint32 {
	if n.up != nil && n.up.rec != nil {
		return n.up.rec.typ()
	}
	if n.up != nil {
		return unix.S_IFDIR
	}
	return s.fs.tree().Mode(n.lower) & unix.S_IFMT
}

func (s *snapshot) nlink(n spot) uint32 {
	if n.up != nil && n.up.rec != nil {
		return n.up.rec.nlink
	}
	return s.fs.tree().nodes[max(n.lower, Root)-1].nlink
}

func (s *snapshot) isDir(n spot) bool { return s.typ(n) == unix.S_IFDIR }

func (s *snapshot) key(n spot) nodeKey {
	if n.up != nil && n.up.rec != nil {
		return n.up.rec.key()
	}
	return nodeKey{false, uint64(n.lower)}
}

// resolve finds a path, symlinks not followed.
func (s *snapshot) resolve(path string) spot {
	n := s.rootSpot()
	for name := range strings.SplitSeq(path, "/") {
		if n.none() || name == "" {
			return n
		}
		n = s.child(n, name)
	}
	return n
}

// names lists the paths at which a node that is no directory shows, sorted, if there may be several.
func (s *snapshot) names(n spot) []string {
	paths := slices.Clone(s.linked[s.key(n)])
	if n.up == nil {
		for _, l := range s.fs.tree().links[n.lower] {
			p := join(s.fs.tree().Path(l.dir), s.fs.tree().name(l.dirent))
			if s.root == nil || s.resolve(p) == n {
				paths = append(paths, p)
			}
		}
	}
	sort.Strings(paths)
	return slices.Compact(paths)
}

// open opens a regular file. The error is isGone when another one stands at an upper path
// by now, and nobody kept this one.
func (s *snapshot) open(ctx context.Context, n spot) (c content, done func(), err error) {
	if n.up == nil {
		return &lowerContent{ctx, s.fs.tree(), n.lower}, func() {}, nil
	}
	fd, kept, err := s.m.open(n.up.rec)
	if err != nil {
		return nil, nil, err
	}
	done = func() { _ = unix.Close(fd) }
	if err := sameFile(fd, n.up.rec); err != nil {
		done()
		return nil, nil, err
	}
	if kept != nil {
		return keptContent{kept, fd}, done, nil
	}
	return upperContent(fd), done, nil
}

// isGone tells whether an error of open says that another file, or none, stands at the path by now.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO)
}

func (s *snapshot) sums(n spot) ([]layer.Sum, bool) {
	if n.up != nil {
		return nil, false
	}
	lay, entry := s.fs.tree().Origin(n.lower)
	return s.fs.tree().layers[lay].Sums(entry)
}

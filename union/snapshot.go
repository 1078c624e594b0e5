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

// A snapshot is what an FS shows, all paths of it: the tree, and above it what a
// walk found in the upper directory, as metadata in memory. It needs no table and no lock.
// Content is read from where it is.
type snapshot struct {
	fs     *FS
	root   *upperNode         // nil: nothing but the tree
	linked map[inode][]string // paths of upper nodes with several names, and of lower ones that were renamed
}

// An upperNode is a path of which the upper directory has something to say.
type upperNode struct {
	hidden  bool
	attr    Attr
	ino     uint64 // in the upper directory; 0: a lower node that shows at a new path
	link    string
	xattrs  []layer.Xattr
	through ID // of directories: where names come from that kids has not; 0: kids has all
	kids    map[string]*upperNode
}

// A spot is one path of a snapshot: an upper node or a lower one. The zero value is nothing.
type spot struct {
	up    *upperNode
	lower ID
}

// An inode tells the nodes of a snapshot apart.
type inode struct {
	upper bool
	num   uint64
}

func (s spot) none() bool { return s == spot{} }

// takeSnapshot walks the upper directory.
func (f *FS) takeSnapshot(ctx context.Context) (*snapshot, error) {
	s := &snapshot{fs: f, linked: map[inode][]string{}}
	if f.up == nil {
		return s, nil
	}
	dirs := map[string]*upperNode{}
	err := f.walk(ctx, func(it *item) error {
		n, err := s.upperNode(it)
		if err != nil {
			return err
		}
		d := dirs[parentPath(it.path)]
		switch {
		case it.path == "":
			s.root = n
		case d == nil: // below a lower directory that shows at a new path: the tree has it all
			return nil
		default:
			d.kids[it.name] = n
		}
		if n.kids != nil {
			dirs[it.path] = n
		}
		return nil
	})
	return s, err
}

// upperNode is an item of the walk as the snapshot keeps it.
func (s *snapshot) upperNode(it *item) (n *upperNode, err error) {
	if it.whiteout {
		return &upperNode{hidden: true}, nil
	}
	if it.dir < 0 {
		s.noteMoved(it)
		return &upperNode{through: it.from, attr: s.fs.tree.Attr(it.from)}, nil
	}
	n = &upperNode{attr: s.fs.itemAttr(it), ino: it.st.Ino}
	if n.attr.Type() == unix.S_IFLNK {
		if n.link, err = s.fs.itemLink(it); err != nil {
			return nil, err
		}
	}
	if n.attr.IsDir() {
		n.kids = map[string]*upperNode{}
		if it.through == it.lower {
			n.through = it.through
		}
	} else if n.attr.Nlink > 1 {
		id := inode{true, n.ino}
		s.linked[id] = append(s.linked[id], it.path)
	}
	n.xattrs, err = s.fs.itemXattrs(it)
	return n, err
}

// noteMoved notes the paths of hardlinked lower nodes that the tree does not know.
func (s *snapshot) noteMoved(it *item) {
	if it.whiteout || it.from == 0 || s.fs.tree.links[it.from] == nil {
		return
	}
	id := inode{false, uint64(it.from)}
	s.linked[id] = append(s.linked[id], it.path)
}

func (s *snapshot) rootSpot() spot {
	if s.root == nil {
		return spot{lower: Root}
	}
	return spot{up: s.root}
}

// moved is a lower node that shows at a new path as the lower node that it is.
func moved(n *upperNode) spot {
	if n.ino == 0 {
		return spot{lower: n.through}
	}
	return spot{up: n}
}

// child is a name in a directory.
func (s *snapshot) child(d spot, name string) spot {
	lower := d.lower
	if d.up != nil {
		if n := d.up.kids[name]; n != nil {
			if n.hidden {
				return spot{}
			}
			return moved(n)
		}
		lower = d.up.through
	}
	return spot{lower: s.fs.lowerAt(lower, name)}
}

// children lists a directory in the order of the bytes of the names.
func (s *snapshot) children(d spot) iter.Seq2[string, spot] {
	if d.up == nil {
		return s.lowerChildren(d.lower)
	}
	names := slices.Collect(maps.Keys(d.up.kids))
	if d.up.through != 0 {
		for name := range s.fs.tree.Children(d.up.through) {
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
		for name, id := range s.fs.tree.Children(d) {
			if !yield(name, spot{lower: id}) {
				return
			}
		}
	}
}

func (s *snapshot) attr(n spot) Attr {
	if n.up != nil {
		return n.up.attr
	}
	return s.fs.tree.Attr(n.lower)
}

func (s *snapshot) xattrs(n spot) []layer.Xattr {
	if n.up != nil {
		return n.up.xattrs
	}
	return s.fs.tree.Xattrs(n.lower)
}

func (s *snapshot) readlink(n spot) string {
	if n.up != nil {
		return n.up.link
	}
	return s.fs.tree.Readlink(n.lower)
}

func (s *snapshot) inode(n spot) inode {
	if n.up != nil {
		return inode{true, n.up.ino}
	}
	return inode{false, uint64(n.lower)}
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
	id := s.inode(n)
	paths := slices.Clone(s.linked[id])
	if n.up == nil {
		for _, l := range s.fs.tree.links[n.lower] {
			p := join(s.fs.tree.Path(l.dir), s.fs.tree.name(l.dirent))
			if s.root == nil || s.resolve(p) == n {
				paths = append(paths, p)
			}
		}
	}
	sort.Strings(paths)
	return slices.Compact(paths)
}

// An openContent is the content of a file, until it is closed.
type openContent struct {
	content
	fd int // of the upper file; -1: a lower one
}

func (c *openContent) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
	}
}

// open opens a regular file of the snapshot. The error is ENOENT when another one
// stands at an upper path by now.
func (s *snapshot) open(ctx context.Context, path string, n spot) (*openContent, error) {
	if n.up == nil {
		return &openContent{&lowerContent{ctx, s.fs.tree, n.lower}, -1}, nil
	}
	fd, err := s.fs.openUpperPath(path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (st.Ino != n.up.ino || st.Mode&unix.S_IFMT != unix.S_IFREG) {
		err = unix.ENOENT
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &openContent{upperContent(fd), fd}, nil
}

// openUpperPath opens a file of the upper directory to read it, name by name.
func (f *FS) openUpperPath(path string) (int, error) {
	dir, name := f.up.root, ""
	for more := true; more; {
		name, path, more = strings.Cut(path, "/")
		flags := unix.O_RDONLY | unix.O_NONBLOCK
		if more {
			flags = unix.O_PATH | unix.O_DIRECTORY
		}
		fd, err := openAt(dir, name, flags, 0)
		if dir != f.up.root {
			_ = unix.Close(dir)
		}
		if err != nil {
			return -1, err
		}
		dir = fd
	}
	return dir, nil
}

// isGone tells whether an error of open says that another file, or none, stands at the path by now.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOTDIR)
}

func unlessGone(err error) error {
	if isGone(err) {
		return nil
	}
	return err
}

package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// maxPath is the longest path that a system call takes, without its NUL.
const maxPath = 4095

// A dirScan reads the names and metadata of an unpacked layer.
type dirScan struct {
	dir    *os.File
	o      DirOptions
	b      *builder
	sum    hash.Hash
	inodes map[fileID]int32 // nodes of files with several names
	found  map[int32]dirFile
	queue  []scanDir

	files  map[ID]dirFile // of the finished tree
	size   int64
	root   fileID
	marked bool
}

// A scanDir is a directory that is to be read.
type scanDir struct {
	path string
	node int32
}

func newDirScan(dir *os.File, o DirOptions) *dirScan {
	return &dirScan{
		dir: dir, o: o, b: newBuilder(o.Limits), sum: sha256.New(),
		inodes: map[fileID]int32{}, found: map[int32]dirFile{}, files: map[ID]dirFile{},
	}
}

func (s *dirScan) run(ctx context.Context) (*tree, error) {
	if err := s.start(); err != nil {
		return nil, err
	}
	for len(s.queue) > 0 {
		d := s.queue[0]
		s.queue = s.queue[1:]
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := s.readDir(d); err != nil {
			return nil, err
		}
	}
	t := s.b.finish()
	for i, f := range s.found {
		if n := s.b.nodes.at(i); n.placed {
			s.files[n.id] = f
		}
	}
	return t, nil
}

func (s *dirScan) fingerprint() digest.Digest { return digest.NewDigest(digest.SHA256, s.sum) }

// start takes up the root.
func (s *dirScan) start() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.dir.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	s.root = fileID{st.Dev, st.Ino}
	n := statNode(&st)
	attrs, err := readMarks(fmt.Sprintf("/proc/self/fd/%d/.", s.dir.Fd()), s.o.namespaces())
	if err != nil {
		return err
	}
	n.xattrs = attrs.plain
	s.note("", &st, attrs)
	s.b.update(0, n)
	s.markOpaque("", 0, attrs)
	s.queue = []scanDir{{"", 0}}
	return nil
}

// readDir takes up what is in a directory, in the order of the names.
func (s *dirScan) readDir(d scanDir) error {
	f, err := openBeneath(s.dir, d.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.EACCES) && d.path != "" {
		s.b.defect(d.path, "what is in it is not shown: the directory may not be read")
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := s.entry(f, d, name); err != nil {
			return err
		}
	}
	return nil
}

// entry takes up one name.
func (s *dirScan) entry(dir *os.File, d scanDir, name string) error {
	full := path.Join(d.path, name)
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: full, Err: err}
	}
	if s.whiteout(d, name, &st) {
		return s.b.limit(len(name))
	}
	attrs, err := readMarks(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), s.o.namespaces())
	if err != nil {
		return fmt.Errorf("read attributes of %s: %w", full, err)
	}
	if attrs.whiteout && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
		s.hide(d, name)
		return s.b.limit(len(name))
	}
	s.note(full, &st, attrs)
	if known, ok := s.inodes[fileID{st.Dev, st.Ino}]; ok && st.Nlink > 1 {
		s.b.link(d.node, name, known)
		return s.b.limit(len(name))
	}
	n, err := s.node(dir, full, name, &st, attrs)
	if err != nil {
		return err
	}
	return s.attach(d, full, name, n, &st, attrs)
}

// attach makes the node of an entry.
func (s *dirScan) attach(d scanDir, full, name string, n node, st *unix.Stat_t, attrs marks) error {
	if len(full) > maxPath || int64(s.b.nodes.at(d.node).depth) >= s.o.Limits.Depth {
		s.b.defect(full, "deeper than a path can name")
		return nil
	}
	n.flags |= explicit
	i := s.b.attach(d.node, name, n)
	switch n.mode & modeFormat {
	case modeDir:
		s.markOpaque(full, i, attrs)
		s.queue = append(s.queue, scanDir{full, i})
	case modeReg:
		if err := s.regular(full, i, st, attrs); err != nil {
			return err
		}
	}
	if st.Nlink > 1 && n.mode&modeFormat != modeDir {
		s.inodes[fileID{st.Dev, st.Ino}] = i
	}
	return s.b.limit(len(name) + len(n.target))
}

// regular notes where the content of a file is.
func (s *dirScan) regular(full string, i int32, st *unix.Stat_t, attrs marks) error {
	f := newDirFile(full, 0, st)
	if attrs.metacopy {
		var err error
		if f, err = s.contentBelow(full, attrs.redirect); err != nil {
			return err
		}
		s.b.nodes.at(i).size = f.size
	}
	if f.size > 0 {
		s.b.nodes.at(i).extents = []extent{{0, f.size, 0}}
	}
	s.found[i] = f
	s.size += f.size
	return nil
}

// contentBelow finds the content of a file of which the layer has the metadata alone: in
// the topmost layer below that has a file there with content of its own.
func (s *dirScan) contentBelow(full, redirect string) (dirFile, error) {
	at := redirected(full, redirect)
	for i, dir := range s.o.Below {
		st, attrs, err := statBelow(dir, at, s.o.namespaces())
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			continue
		case err != nil:
			return dirFile{}, err
		case st.Mode&unix.S_IFMT == unix.S_IFREG && !attrs.metacopy:
			return newDirFile(at, i+1, st), nil
		}
		at = redirected(at, attrs.redirect)
	}
	return dirFile{}, fmt.Errorf("%w: %s: its content is in the layers below (metacopy), which do not have it", ErrFormat, full)
}

// statBelow says what is at a path below dir.
func statBelow(dir *os.File, at string, namespaces []string) (*unix.Stat_t, marks, error) {
	parent, err := openBeneath(dir, path.Dir(at), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, marks{}, err
	}
	defer parent.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(parent.Fd()), path.Base(at), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, marks{}, err
	}
	attrs, err := readMarks(fmt.Sprintf("/proc/self/fd/%d/%s", parent.Fd(), path.Base(at)), namespaces)
	return &st, attrs, err
}

// redirected is the path that a redirect attribute sends to (overlayfs.rst, "Redirects"): from
// the root, or another name in the same directory.
func redirected(full, redirect string) string {
	switch {
	case redirect == "":
		return full
	case strings.HasPrefix(redirect, "/"):
		return clean(redirect)
	}
	return clean(path.Join(path.Dir("/"+full), redirect))
}

// node makes a node of what stat says.
func (s *dirScan) node(dir *os.File, full, name string, st *unix.Stat_t, attrs marks) (n node, err error) {
	n = statNode(st)
	n.xattrs = attrs.plain
	switch n.mode & modeFormat {
	case modeLink:
		buf := make([]byte, maxPath+1)
		k, err := unix.Readlinkat(int(dir.Fd()), name, buf)
		if err != nil {
			return n, &os.PathError{Op: "readlink", Path: full, Err: err}
		}
		n.target = string(buf[:k])
	case modeDir:
		n.target = attrs.redirect
	}
	return n, nil
}

func statNode(st *unix.Stat_t) node {
	n := node{inode: inode{mode: st.Mode, uid: st.Uid, gid: st.Gid, sec: st.Mtim.Sec, nsec: uint32(st.Mtim.Nsec)}}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		n.rdev = st.Rdev
	}
	return n
}

// whiteout takes up an entry that says what the layers below do not show.
func (s *dirScan) whiteout(d scanDir, name string, st *unix.Stat_t) bool {
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		s.hide(d, name)
		return true
	}
	hidden, ok := strings.CutPrefix(name, whiteoutPrefix)
	if !ok || !s.o.DotWh || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false
	}
	if strings.HasPrefix(name, metaPrefix) && name != opaqueMarker || hidden == "" || hidden == "." || hidden == ".." {
		return true
	}
	s.hide(d, hidden)
	return true
}

func (s *dirScan) hide(d scanDir, name string) {
	fmt.Fprintf(s.sum, "whiteout %q\n", path.Join(d.path, name))
	s.b.whiteout(d.node, name)
}

func (s *dirScan) markOpaque(full string, i int32, attrs marks) {
	if attrs.opaque || s.o.Opaque[full] {
		s.b.nodes.at(i).flags |= opaque
	}
}

// note puts an entry's metadata into the fingerprint.
func (s *dirScan) note(full string, st *unix.Stat_t, attrs marks) {
	s.marked = s.marked || attrs.own
	fmt.Fprintf(s.sum, "%q %o %d %d %d %d %d.%d %t %q\n", full, st.Mode, st.Uid, st.Gid, st.Rdev, st.Size, st.Mtim.Sec, st.Mtim.Nsec, attrs.opaque || s.o.Opaque[full], attrs.redirect)
	for _, x := range attrs.plain {
		_, _ = io.WriteString(s.sum, fmt.Sprintf(" %q=%q\n", x.Name, x.Value)) // a hash takes everything
	}
}

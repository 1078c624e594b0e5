package integration

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A node is all that a tree can be compared by: what lstat, readlink, listxattr
// and read say of one path.
type node struct {
	mode     uint32
	uid, gid uint32
	size     int64 // not of directories
	mtime    int64 // nanoseconds
	rdev     uint64
	link     string
	first    string // the first path, in order, of the same inode
	xattrs   string
	sum      [sha256.Size]byte
}

// tree walks dir without following a link and without leaving its file system.
func tree(t *testing.T, dir string) map[string]node {
	t.Helper()
	nodes := map[string]node{}
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		n, ino, err := readNode(path)
		if err != nil {
			return err
		}
		if _, ok := first[ino]; !ok {
			first[ino] = rel
		}
		n.first = first[ino]
		nodes[rel] = n
		return nil
	})
	if err != nil {
		t.Fatalf("walk %s: %v", dir, err)
	}
	return nodes
}

func readNode(path string) (node, uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return node{}, 0, fmt.Errorf("lstat %s: %w", path, err)
	}
	n := node{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: st.Mtim.Nano()}
	var err error
	if n.xattrs, err = xattrs(path); err != nil {
		return n, 0, err
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		n.size = st.Size
		n.sum, err = sum(path)
	case syscall.S_IFLNK:
		n.size = st.Size
		n.link, err = os.Readlink(path)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		n.rdev = st.Rdev
	}
	return n, st.Ino, err
}

func sum(path string) (s [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return s, fmt.Errorf("read %s: %w", path, err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// xattrs returns the sorted extended attributes of path, less those that
// belong to the host's security modules.
func xattrs(path string) (string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return "", fmt.Errorf("listxattr %s: %w", path, err)
	}
	var out []string
	for _, name := range strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 }) {
		if name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("getxattr %s %s: %w", path, name, err)
		}
		out = append(out, fmt.Sprintf("%s=%x", name, value[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, " "), nil
}

// sameTree fails the test with the first differences between two trees.
func sameTree(t *testing.T, wantName string, want map[string]node, gotName string, got map[string]node) {
	t.Helper()
	var diffs []string
	for path, w := range want {
		g, ok := got[path]
		switch {
		case !ok:
			diffs = append(diffs, fmt.Sprintf("%q: only in %s", path, wantName))
		case g != w:
			diffs = append(diffs, fmt.Sprintf("%q:\n\t%s %+v\n\t%s %+v", path, wantName, w, gotName, g))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			diffs = append(diffs, fmt.Sprintf("%q: only in %s", path, gotName))
		}
	}
	sort.Strings(diffs)
	if len(diffs) > 0 {
		t.Errorf("%d differences:\n%s", len(diffs), strings.Join(diffs[:min(len(diffs), 20)], "\n"))
	}
}

package union_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/layerfs/layerfs/union"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// The same random calls go to a union and to a plain directory of the host.
// Both must answer alike and look alike: right after it, after the upper
// directory was opened again, and after a commit, as a layer on top.
func TestAgainstKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: copy-up keeps owners")
	}
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, seed)
			for round := range 4 {
				m.calls(60)
				m.compare("live")
				m.w = m.w.reopen(t)
				m.compare(fmt.Sprintf("opened again, round %d", round))
				m.compareCommit()
			}
			m.w.close(t)
		})
	}
}

var modelLayers = []string{
	"file d1/a \"one\"\nfile d1/b \"two\"\ndir d2\nfile d2/x/y \"deep\"\nfile top \"t\" user.k=\"v\"\nlink d2/la d1/a\nsymlink s d1\ndir empty 0711",
	"file d1/c \"three\" 0600\nwhiteout d2/x\nfile d2/x2/z \"z\"\nsparse holes 1MiB 65536:\"data\"",
}

type model struct {
	t    *testing.T
	r    *rand.Rand
	w    *writable
	host string
	log  []string
}

func newModel(t *testing.T, seed uint64) *model {
	tree := mergeText(t, modelLayers...)
	m := &model{t: t, r: rand.New(rand.NewPCG(seed, 1)), host: t.TempDir()}
	m.copyOut(tree, union.Root, m.host)
	m.w = openWritable(t, tree, t.TempDir())
	return m
}

// copyOut makes the host's copy of the tree.
func (m *model) copyOut(tree *union.Tree, dir union.ID, host string) {
	first := map[union.ID]string{}
	var copyDir func(dir union.ID, host string)
	copyDir = func(dir union.ID, host string) {
		for name, id := range tree.Children(dir) {
			p, a := filepath.Join(host, name), tree.Attr(id)
			if old, ok := first[id]; ok && !a.IsDir() {
				must(m.t, os.Link(old, p))
				continue
			}
			first[id] = p
			switch a.Type() {
			case unix.S_IFDIR:
				must(m.t, os.Mkdir(p, 0o700))
				copyDir(id, p)
				must(m.t, os.Chmod(p, fs.FileMode(a.Mode&0o777)))
			case unix.S_IFLNK:
				must(m.t, os.Symlink(tree.Readlink(id), p))
			default:
				b := make([]byte, a.Size)
				_, err := tree.ReadAt(ctx, id, b, 0)
				must(m.t, err)
				must(m.t, os.WriteFile(p, b, 0o600))
				must(m.t, os.Chmod(p, fs.FileMode(a.Mode&0o777)))
				for _, x := range tree.Xattrs(id) {
					must(m.t, unix.Setxattr(p, x.Name, x.Value, 0))
				}
			}
		}
	}
	copyDir(dir, host)
}

// some path: one that is there, mostly, or a new name somewhere.
func (m *model) some() string {
	var all []string
	must(m.t, filepath.WalkDir(m.host, func(p string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(m.host, p); rel != "." {
			all = append(all, rel)
		}
		return err
	}))
	if len(all) == 0 || m.r.IntN(5) == 0 {
		return string(rune('p' + m.r.IntN(4)))
	}
	p := all[m.r.IntN(len(all))]
	st, err := os.Lstat(filepath.Join(m.host, p))
	must(m.t, err)
	if m.r.IntN(4) == 0 && st.Mode()&fs.ModeSymlink == 0 { // the host would follow it
		p = path.Join(p, string(rune('p'+m.r.IntN(4))))
	}
	return p
}

func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	if err != nil && !errors.As(err, &e) {
		return syscall.Errno(9999)
	}
	return e
}

func (m *model) calls(n int) {
	for range n {
		c := modelCalls[m.r.IntN(len(modelCalls))]
		a, b, salt := m.some(), m.some(), m.r.IntN(1000)
		want := errnoOf(c.host(m.host, a, b, salt))
		got := errnoOf(c.union(m.w.FS, a, b, salt))
		m.log = append(m.log, fmt.Sprintf("%s %s %s %d: %v", c.name, a, b, salt, want))
		if got != want {
			m.fail(fmt.Sprintf("the union says %v", got))
		}
	}
}

func (m *model) fail(what string) {
	m.t.Helper()
	m.t.Fatalf("%s\nafter:\n%s", what, strings.Join(m.log, "\n"))
}

type modelCall struct {
	name  string
	host  func(root, a, b string, salt int) error
	union func(f *union.FS, a, b string, salt int) error
}

var me = union.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}

// inParent runs a call on the directory and the last name of a path.
func inParent(f *union.FS, p string, call func(dir union.ID, name string) error) error {
	dir, name, err := parent(f, p)
	if err != nil {
		return err
	}
	return call(dir, name)
}

func onNode(f *union.FS, p string, call func(id union.ID) error) error {
	id, err := at(f, p)
	if err != nil {
		return err
	}
	return call(id)
}

var modelCalls = []modelCall{
	{"create", func(root, a, _ string, salt int) error {
		return hostWrite(filepath.Join(root, a), os.O_CREATE|os.O_EXCL, salt)
	}, func(f *union.FS, a, _ string, salt int) error {
		return inParent(f, a, func(dir union.ID, name string) error {
			_, _, h, err := f.Create(ctx, me, dir, name, os.O_WRONLY, 0o644)
			return unionWrite(h, err, salt)
		})
	}},
	{"write", func(root, a, _ string, salt int) error {
		return hostWrite(filepath.Join(root, a), 0, salt)
	}, func(f *union.FS, a, _ string, salt int) error {
		return onRegular(f, a, func(id union.ID) error {
			h, err := f.Open(ctx, id, os.O_WRONLY)
			return unionWrite(h, err, salt)
		})
	}},
	{"rewrite", func(root, a, _ string, salt int) error {
		return hostWrite(filepath.Join(root, a), os.O_TRUNC, salt)
	}, func(f *union.FS, a, _ string, salt int) error {
		return onRegular(f, a, func(id union.ID) error {
			h, err := f.Open(ctx, id, os.O_WRONLY|os.O_TRUNC)
			return unionWrite(h, err, salt)
		})
	}},
	{"truncate", func(root, a, _ string, salt int) error {
		f, err := hostOpen(filepath.Join(root, a), os.O_WRONLY)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Truncate(int64(salt))
	}, func(f *union.FS, a, _ string, salt int) error {
		return onRegular(f, a, func(id union.ID) error {
			size := int64(salt)
			_, err := f.Setattr(ctx, id, nil, union.SetAttr{Size: &size})
			return err
		})
	}},
	{"mkdir", func(root, a, _ string, _ int) error { return os.Mkdir(filepath.Join(root, a), 0o755) },
		func(f *union.FS, a, _ string, _ int) error {
			return inParent(f, a, func(dir union.ID, name string) error {
				_, _, err := f.Mkdir(ctx, me, dir, name, 0o755)
				return err
			})
		}},
	{"unlink", func(root, a, _ string, _ int) error { return unix.Unlink(filepath.Join(root, a)) },
		func(f *union.FS, a, _ string, _ int) error {
			return inParent(f, a, func(dir union.ID, name string) error { return f.Unlink(ctx, dir, name) })
		}},
	{"rmdir", func(root, a, _ string, _ int) error { return unix.Rmdir(filepath.Join(root, a)) },
		func(f *union.FS, a, _ string, _ int) error {
			return inParent(f, a, func(dir union.ID, name string) error { return f.Rmdir(ctx, dir, name) })
		}},
	{"rename", func(root, a, b string, _ int) error { return hostRename(root, a, b, 0) },
		func(f *union.FS, a, b string, _ int) error { return unionRename(f, a, b, 0) }},
	{"exchange", func(root, a, b string, _ int) error { return hostRename(root, a, b, unix.RENAME_EXCHANGE) },
		func(f *union.FS, a, b string, _ int) error { return unionRename(f, a, b, unix.RENAME_EXCHANGE) }},
	{"noreplace", func(root, a, b string, _ int) error { return hostRename(root, a, b, unix.RENAME_NOREPLACE) },
		func(f *union.FS, a, b string, _ int) error { return unionRename(f, a, b, unix.RENAME_NOREPLACE) }},
	{"link", func(root, a, b string, _ int) error { return unix.Link(filepath.Join(root, a), filepath.Join(root, b)) },
		func(f *union.FS, a, b string, _ int) error {
			return onNode(f, a, func(id union.ID) error {
				return inParent(f, b, func(dir union.ID, name string) error {
					if _, _, err := f.Lookup(ctx, dir, name); err == nil {
						return unix.EEXIST // the kernel asks before it calls
					}
					_, _, err := f.Link(ctx, id, dir, name)
					return err
				})
			})
		}},
	{"symlink", func(root, a, b string, _ int) error { return os.Symlink(b, filepath.Join(root, a)) },
		func(f *union.FS, a, b string, _ int) error {
			return inParent(f, a, func(dir union.ID, name string) error {
				_, _, err := f.Symlink(ctx, me, dir, name, b)
				return err
			})
		}},
	{"chmod", func(root, a, _ string, salt int) error {
		p := filepath.Join(root, a)
		if st, err := os.Lstat(p); err != nil || st.Mode()&fs.ModeSymlink != 0 {
			return err
		}
		return unix.Chmod(p, 0o700|uint32(salt)&0o77)
	}, func(f *union.FS, a, _ string, salt int) error {
		return onNode(f, a, func(id union.ID) error {
			attr, err := f.Getattr(ctx, id, nil)
			if err != nil || attr.Type() == unix.S_IFLNK {
				return err
			}
			mode := 0o700 | uint32(salt)&0o77
			_, err = f.Setattr(ctx, id, nil, union.SetAttr{Mode: &mode})
			return err
		})
	}},
	{"setxattr", func(root, a, _ string, salt int) error {
		return unix.Lsetxattr(filepath.Join(root, a), "user.m", fmt.Append(nil, salt), 0)
	}, func(f *union.FS, a, _ string, salt int) error {
		return onNode(f, a, func(id union.ID) error {
			return f.Setxattr(ctx, id, "user.m", fmt.Append(nil, salt), 0)
		})
	}},
}

// onRegular answers as open(2) with O_NOFOLLOW does for what is no regular file.
func onRegular(f *union.FS, p string, call func(id union.ID) error) error {
	return onNode(f, p, func(id union.ID) error {
		a, err := f.Getattr(ctx, id, nil)
		switch {
		case err != nil:
			return err
		case a.IsDir():
			return unix.EISDIR
		case a.Type() == unix.S_IFLNK:
			return unix.ELOOP
		}
		return call(id)
	})
}

func hostOpen(p string, flags int) (*os.File, error) {
	return os.OpenFile(p, flags|unix.O_NOFOLLOW, 0o644)
}

func hostWrite(p string, flags, salt int) error {
	f, err := hostOpen(p, flags|os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(fmt.Appendf(nil, "content %d", salt), int64(salt%7))
	return err
}

func unionWrite(h *union.File, err error, salt int) error {
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.WriteAt(ctx, fmt.Appendf(nil, "content %d", salt), int64(salt%7))
	return err
}

func hostRename(root, a, b string, flags uint) error {
	if err := insideItself(a, b, flags); err != nil {
		return err
	}
	return unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, a), unix.AT_FDCWD, filepath.Join(root, b), flags)
}

func unionRename(f *union.FS, a, b string, flags uint32) error {
	if err := insideItself(a, b, uint(flags)); err != nil {
		return err
	}
	return inParent(f, a, func(dir1 union.ID, name1 string) error {
		return inParent(f, b, func(dir2 union.ID, name2 string) error {
			return f.Rename(ctx, dir1, name1, dir2, name2, flags)
		})
	})
}

// insideItself: the kernel refuses these before it asks a file system, in an order of its own.
func insideItself(a, b string, _ uint) error {
	if strings.HasPrefix(b+"/", a+"/") || strings.HasPrefix(a+"/", b+"/") {
		return unix.EINVAL
	}
	return nil
}

func (m *model) compare(when string) {
	m.t.Helper()
	got, want := dump(m.t, m.w.FS), m.dumpHost()
	if d := diffLines(got, want); d != "" {
		m.fail(when + ": " + d)
	}
}

// dumpHost prints the host's directory as dump does.
func (m *model) dumpHost() string {
	inodes, buf := map[uint64]int{}, bytes.Buffer{}
	var walk func(dir, rel string)
	walk = func(dir, rel string) {
		names, err := os.ReadDir(dir)
		must(m.t, err)
		for _, n := range names {
			p := filepath.Join(dir, n.Name())
			var st unix.Stat_t
			must(m.t, unix.Lstat(p, &st))
			fmt.Fprintf(&buf, "%s %o %d:%d", path.Join(rel, n.Name()), st.Mode, st.Uid, st.Gid)
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				b, err := os.ReadFile(p)
				must(m.t, err)
				if inodes[st.Ino] == 0 {
					inodes[st.Ino] = len(inodes) + 1
				}
				fmt.Fprintf(&buf, " links=%d inode=%d %s", st.Nlink, inodes[st.Ino], digest.FromBytes(b).Encoded()[:12])
			case unix.S_IFDIR:
				fmt.Fprintf(&buf, " links=%d", m.dirLinks(p, &st))
			case unix.S_IFLNK:
				target, err := os.Readlink(p)
				must(m.t, err)
				fmt.Fprintf(&buf, " -> %s", target)
			}
			buf.WriteString(m.hostXattrs(p) + "\n")
			if n.IsDir() {
				walk(p, path.Join(rel, n.Name()))
			}
		}
	}
	walk(m.host, "")
	return buf.String()
}

// dirLinks is st_nlink, or what it should be where the host's file system does not count.
func (m *model) dirLinks(p string, st *unix.Stat_t) uint64 {
	if st.Nlink > 1 {
		return uint64(st.Nlink)
	}
	names, err := os.ReadDir(p)
	must(m.t, err)
	n := uint64(2)
	for _, e := range names {
		if e.IsDir() {
			n++
		}
	}
	return n
}

func (m *model) hostXattrs(p string) string {
	b := make([]byte, 4096)
	n, err := unix.Llistxattr(p, b)
	must(m.t, err)
	names := strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		if !strings.HasPrefix(name, "user.") {
			continue // a security module's
		}
		v := make([]byte, 256)
		n, err := unix.Lgetxattr(p, name, v)
		must(m.t, err)
		fmt.Fprintf(&out, " %s=%q", name, v[:n])
	}
	return out.String()
}

// compareCommit writes the changes as a layer, puts it on top and looks at what all layers then show.
func (m *model) compareCommit() {
	m.t.Helper()
	var tar bytes.Buffer
	result, err := writeTar(m.w.FS, &tar, union.TarOptions{})
	must(m.t, err)
	if len(result.Losses) > 0 {
		m.fail(fmt.Sprintf("losses: %v", result.Losses))
	}
	s := openStore(m.t)
	layers := layersOf(m.t, modelLayers...)
	committed := merge(m.t, append(layers, openTar(m.t, s, tar.Bytes())))
	if len(committed.Defects()) > 0 {
		m.fail(fmt.Sprintf("the layer has defects: %v", committed.Defects()))
	}
	if d := diffLines(dump(m.t, union.New(committed, nil)), m.dumpHost()); d != "" {
		m.fail("committed: " + d)
	}
	m.compareChanges(committed)
	m.compareDiff(committed)
	if d := compareSquashed(m.t, m.w.FS); d != "" {
		m.fail("squashed: " + d)
	}
}

// compareChanges holds the list of changes against the two trees.
func (m *model) compareChanges(now *union.Tree) {
	kinds := map[string]byte{}
	for c, err := range m.w.Changes(ctx) {
		must(m.t, err)
		kinds[c.Path] = c.Kind
	}
	was := m.w.tree
	for p, kind := range kinds {
		_, errWas := was.Resolve(p)
		_, errNow := now.Resolve(p)
		want := map[byte][2]bool{'A': {false, true}, 'D': {true, false}, 'M': {true, true}, 'T': {true, true}}[kind]
		if got := [2]bool{errWas == nil, errNow == nil}; got != want {
			m.fail(fmt.Sprintf("%c %s: there before and now: %v", kind, p, got))
		}
	}
	for id := union.Root + 1; int(id) <= now.Len(); id++ {
		for _, n := range now.Names(id) {
			p := path.Join(now.Path(n.Dir), n.Name)
			if _, err := was.Resolve(p); err != nil && kinds[p] != 'A' {
				m.fail("not listed as added: " + p)
			}
		}
	}
}

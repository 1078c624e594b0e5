package union_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var ctx = context.Background()

func TestMain(m *testing.M) {
	if os.Getenv(crashVar) != "" {
		if err := runCrashing(); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	unix.Umask(0) // as New wants it
	os.Exit(m.Run())
}

// A blob is bytes in memory as a layer.Ranger.
type blob []byte

func (b blob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

func openStore(t testing.TB) *cache.Store {
	t.Helper()
	s, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

// layersOf opens one layer for each text archive, the base first.
func layersOf(t testing.TB, texts ...string) []*layer.Layer {
	t.Helper()
	s := openStore(t)
	var list []*layer.Layer
	for _, text := range texts {
		list = append(list, openTar(t, s, layertest.Tar(text)))
	}
	return list
}

func openTar(t testing.TB, s *cache.Store, tar []byte) *layer.Layer {
	t.Helper()
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar))}
	l, err := layer.Open(ctx, d, blob(tar), s, layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, l.Close()) })
	return l
}

func merge(t testing.TB, layers []*layer.Layer) *union.Tree {
	t.Helper()
	tree, err := union.Merge(ctx, layers)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func mergeText(t testing.TB, texts ...string) *union.Tree {
	t.Helper()
	return merge(t, layersOf(t, texts...))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A writable is a tree with an upper directory that can be opened again.
type writable struct {
	*union.FS
	upper *union.Upper
	tree  *union.Tree
	dir   string
}

func openWritable(t testing.TB, tree *union.Tree, dir string) *writable {
	t.Helper()
	u, err := union.OpenUpper(filepath.Join(dir, "upper"), filepath.Join(dir, "work"), union.UpperOptions{Create: true, Base: tree.Digest(), BaseRef: "test", Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	return &writable{union.New(tree, u), u, tree, dir}
}

func (w *writable) close(t testing.TB) {
	t.Helper()
	check(t, w.FS.Close())
	check(t, w.upper.Close())
}

func (w *writable) reopen(t testing.TB) *writable {
	t.Helper()
	w.close(t)
	return openWritable(t, w.tree, w.dir)
}

// at resolves a path, symlinks not followed.
func at(f *union.FS, p string) (union.ID, error) {
	id := union.Root
	for name := range strings.SplitSeq(p, "/") {
		if name == "" {
			continue
		}
		next, _, err := f.Lookup(ctx, id, name)
		if err != nil {
			return 0, err
		}
		id = next
	}
	return id, nil
}

// parent resolves the directory of a path.
func parent(f *union.FS, p string) (union.ID, string, error) {
	id, err := at(f, path.Dir(p))
	if err != nil {
		return 0, "", err
	}
	a, err := f.Getattr(ctx, id, nil)
	if err == nil && !a.IsDir() {
		err = unix.ENOTDIR
	}
	return id, path.Base(p), err
}

// dump prints everything there is to see of an FS, one line a name, with the
// inodes numbered in the order of their first name.
func dump(t testing.TB, f *union.FS) string {
	t.Helper()
	d := &dumper{t: t, f: f, inodes: map[uint64]int{}}
	d.dir(union.Root, "")
	return d.b.String()
}

type dumper struct {
	t      testing.TB
	f      *union.FS
	b      strings.Builder
	inodes map[uint64]int
}

func (d *dumper) dir(id union.ID, p string) {
	h, err := d.f.OpenDir(ctx, id)
	must(d.t, err)
	defer h.Close()
	must(d.t, h.Read(0, func(_ uint64, e union.Dirent) bool {
		if e.Name != "." && e.Name != ".." {
			d.entry(id, path.Join(p, e.Name), e)
		}
		return true
	}))
}

func (d *dumper) entry(dir union.ID, p string, e union.Dirent) {
	id, a, err := d.f.Lookup(ctx, dir, e.Name)
	must(d.t, err)
	if a.Ino != e.Ino || a.Type() != e.Mode {
		d.t.Errorf("%s: readdir says inode %d type %o, lookup %d %o", p, e.Ino, e.Mode, a.Ino, a.Type())
	}
	fmt.Fprintf(&d.b, "%s %o %d:%d", p, a.Mode, a.UID, a.GID)
	switch a.Type() {
	case unix.S_IFREG:
		if d.inodes[a.Ino] == 0 {
			d.inodes[a.Ino] = len(d.inodes) + 1
		}
		fmt.Fprintf(&d.b, " links=%d inode=%d %s", a.Nlink, d.inodes[a.Ino], digest.FromBytes(content(d.t, d.f, id, a.Size)).Encoded()[:12])
	case unix.S_IFDIR:
		fmt.Fprintf(&d.b, " links=%d", a.Nlink)
	case unix.S_IFLNK:
		target, err := d.f.Readlink(ctx, id)
		must(d.t, err)
		fmt.Fprintf(&d.b, " -> %s", target)
	}
	names, err := d.f.Listxattr(ctx, id)
	must(d.t, err)
	slices.Sort(names)
	for _, n := range names {
		v, err := d.f.Getxattr(ctx, id, n)
		must(d.t, err)
		fmt.Fprintf(&d.b, " %s=%q", n, v)
	}
	d.b.WriteString("\n")
	if a.IsDir() {
		d.dir(id, p)
	}
}

func content(t testing.TB, f *union.FS, id union.ID, size int64) []byte {
	t.Helper()
	b := make([]byte, size+1)
	n, err := f.ReadAt(ctx, id, b, 0)
	must(t, err)
	if int64(n) != size {
		t.Errorf("node %d: read %d bytes, stat says %d", id, n, size)
	}
	return b[:n]
}

// diffLines says where two dumps part.
func diffLines(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			return fmt.Sprintf("line %d:\n got %s\nwant %s", i+1, a, b)
		}
	}
	return ""
}

// writeTar writes the changes of this moment.
func writeTar(f *union.FS, w io.Writer, o union.TarOptions) (union.TarResult, error) {
	m, err := f.Mark(ctx)
	if err != nil {
		return union.TarResult{}, err
	}
	defer m.Close()
	return m.WriteTar(ctx, w, o)
}

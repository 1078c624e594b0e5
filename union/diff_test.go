package union_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"golang.org/x/sys/unix"
)

// diffOf prints a Diff: "A new", "m meta" for what has other metadata alone.
func diffOf(t testing.TB, a, b *union.FS, o union.DiffOptions) string {
	t.Helper()
	var lines []string
	for c, err := range union.Diff(ctx, a, b, o) {
		must(t, err)
		lines = append(lines, changeLine(c))
	}
	return strings.Join(lines, "\n")
}

func changeLine(c union.Change) string {
	kind := string(c.Kind)
	if c.Meta {
		kind = strings.ToLower(kind)
	}
	return kind + " " + c.Path
}

const diffBase = `
dir d
file d/a "one"
file d/b "two"
link d/c d/b
dir e
file e/x "x"
dir e/y
file e/y/z "z"
symlink s d
file top "top" user.k="v"
char dev 1:3
sparse holes 1MiB 65536:"data"`

func TestDiffOfLayers(t *testing.T) {
	for _, c := range []struct {
		name       string
		a, b       []string // layers above the base
		want       string
		wantByRead string // with Content, where that is another thing
	}{
		{name: "nothing", a: nil, b: nil, want: ""},
		{name: "added", b: []string{"file d/n \"new\"\nfile f/g/h \"h\""}, want: "A d/n\nA f\nA f/g\nA f/g/h"},
		{name: "deleted, with all below", b: []string{"whiteout e\nwhiteout d/a"}, want: "D d/a\nD e"},
		{name: "deleted and there again", a: []string{"whiteout e\nwhiteout d/a"}, want: "A d/a\nA e\nA e/x\nA e/y\nA e/y/z"},
		{name: "opaque", b: []string{"dir e\nopaque e\nfile e/x \"x\""}, want: "D e/y"},
		{name: "a file where a directory was", b: []string{"file e \"now a file\""}, want: "T e"},
		{name: "a directory where a file was", b: []string{"dir d/a\nfile d/a/k \"k\""}, want: "T d/a\nA d/a/k"},
		{name: "a directory, a file, a directory again", b: []string{"file e \"\"", "dir e\nfile e/x \"x\""}, want: "D e/y"},
		{name: "mode, owner, xattr, target, device", b: []string{"file d/a \"one\" 0600\nfile top \"top\" user.k=\"w\"\nsymlink s e\nchar dev 1:5\ndir e 0:7"},
			want: "m d/a\nM dev\nm e\nM s\nm top"},
		{name: "size", b: []string{"file d/a \"four\""}, want: "M d/a"},
		{name: "other content, the same size and time", b: []string{"file d/a \"ONE\""}, want: "", wantByRead: "M d/a"},
		{name: "the same content, another time", b: []string{"file d/a \"one\" @1800000000"}, want: "M d/a", wantByRead: "m d/a"},
		{name: "both sides", a: []string{"file d/a \"here\"\ndir only\nfile only/a \"\""}, b: []string{"file d/a \"there!\"\ndir only\nfile only/b \"\""},
			want: "M d/a\nD only/a\nA only/b"},
		{name: "a time alone, of a directory", b: []string{"dir e @1800000000"}, want: "m e"},
		{name: "a time alone, because a name came", b: []string{"dir e @1800000000\nfile e/new \"\""}, want: "A e/new"},
		{name: "a link cut", b: []string{"file d/b \"two\""}, want: "m d/c"},
		{name: "a link more, into the layer below", b: []string{"link e/b d/a"}, want: "A e/b"},
		{name: "linked anew", b: []string{"file d/a \"one\"\nlink d/b d/a\nlink d/c d/a"}, want: "m d/b\nm d/c", wantByRead: "M d/b\nM d/c"},
		{name: "the holes written out", b: []string{"file zeros \"\"\nrandom holes 1MiB"}, want: "A zeros", wantByRead: "M holes\nA zeros"},
		{name: "the same data, without a hole", b: []string{"file holes \"" + strings.Repeat(`\x00`, 65536) + "data" + strings.Repeat(`\x00`, 1<<20-65540) + "\""}, want: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := union.New(mergeText(t, append([]string{diffBase}, c.a...)...), nil), union.New(mergeText(t, append([]string{diffBase}, c.b...)...), nil)
			if got := diffOf(t, a, b, union.DiffOptions{}); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if c.wantByRead == "" {
				c.wantByRead = c.want
			}
			if got := diffOf(t, a, b, union.DiffOptions{Content: true}); got != c.wantByRead {
				t.Errorf("with content: got\n%s\nwant\n%s", got, c.wantByRead)
			}
			// Where no layer is common, all paths are looked at, and the answer is the same.
			other := append([]string{"# another digest\ndir gone\n" + diffBase, "whiteout gone"}, c.b...)
			if got := diffOf(t, a, union.New(mergeText(t, other...), nil), union.DiffOptions{Content: true}); got != c.wantByRead {
				t.Errorf("without a common layer: got\n%s\nwant\n%s", got, c.wantByRead)
			}
			if got := diffOf(t, b, b, union.DiffOptions{Content: true}); got != "" {
				t.Errorf("with itself: %s", got)
			}
		})
	}
}

// What the digests of two indexes tell is not fetched, and what only the bytes tell is.
func TestDiffFetchesWhatItMust(t *testing.T) {
	const base = "random same 300KiB\nrandom other 200KiB @1800000000\ntext size 100KiB"
	a, blobsA := lazyTree(t, base)
	b, blobsB := lazyTree(t, "# another layer\ndir d\nrandom same 300KiB\ntext other 200KiB\ntext size 90KiB")
	for _, blobs := range [][]*countedBlob{blobsA, blobsB} {
		for _, blob := range blobs {
			blob.reset()
		}
	}
	for _, o := range []union.DiffOptions{{}, {Content: true}} {
		if got, want := diffOf(t, union.New(a, nil), union.New(b, nil), o), "A d\nM other\nM size"; got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	for _, blob := range append(blobsA, blobsB...) {
		if requests, bytes := blob.sum(); requests != 0 {
			t.Errorf("%d requests fetched %d bytes", requests, bytes)
		}
	}
}

func TestDiffReports(t *testing.T) {
	broken := errorTree(t)
	_, err := collect(union.Diff(ctx, union.New(mergeText(t, "text f 100KiB"), nil), union.New(broken, nil), union.DiffOptions{Content: true}))
	if err == nil || !strings.Contains(err.Error(), "/f") {
		t.Errorf("a file that cannot be read: %v", err)
	}
	if _, err := collect(union.Diff(ctx, union.New(broken, nil), union.New(broken, nil), union.DiffOptions{Content: true})); err != nil {
		t.Errorf("the same file on both sides needs no read: %v", err)
	}
}

func collect(seq func(func(union.Change, error) bool)) (list []union.Change, err error) {
	for c, e := range seq {
		if e != nil {
			return list, e
		}
		list = append(list, c)
	}
	return list, nil
}

// errorTree is a tree of a file whose content cannot be read any more.
func errorTree(t *testing.T) *union.Tree {
	s := openStore(t)
	l := openTar(t, s, layertest.Tar("dir other\ntext f 100KiB"))
	tree := merge(t, []*layer.Layer{l})
	must(t, l.Close())
	return tree
}

func TestDiffOfUppers(t *testing.T) {
	tree := mergeText(t, diffBase)
	one, two := openWritable(t, tree, t.TempDir()), openWritable(t, tree, t.TempDir())
	t.Cleanup(func() { one.close(t); two.close(t) })
	write := func(w *writable, p, text string) {
		dir, name, err := parent(w.FS, p)
		must(t, err)
		var h *union.File
		if id, err := at(w.FS, p); err == nil {
			h, err = w.Open(ctx, id, unix.O_WRONLY|unix.O_TRUNC)
			must(t, err)
		} else {
			_, _, h, err = w.Create(ctx, union.Caller{}, dir, name, unix.O_WRONLY, unix.S_IFREG|0o644)
			must(t, err)
		}
		_, err = h.WriteAt(ctx, []byte(text), 0)
		must(t, err)
		must(t, h.Close())
	}
	for _, w := range []*writable{one, two} {
		write(w, "d/a", "changed alike")
	}
	write(one, "e/only", "1")
	must(t, two.Rename(ctx, union.Root, "e", union.Root, "renamed", 0))
	for _, c := range []struct {
		name string
		a, b *union.FS
		want string
	}{
		{"against the tree", union.New(tree, nil), one.FS, "M d/a\nA e/only"},
		{"renamed", union.New(tree, nil), two.FS, "M d/a\nD e\nA renamed\nA renamed/x\nA renamed/y\nA renamed/y/z"},
		{"two uppers", one.FS, two.FS, "m d/a\nD e\nA renamed\nA renamed/x\nA renamed/y\nA renamed/y/z"},
		{"and back", two.FS, one.FS, "m d/a\nA e\nA e/only\nA e/x\nA e/y\nA e/y/z\nD renamed"},
	} {
		if got := diffOf(t, c.a, c.b, union.DiffOptions{Content: true}); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

// compareDiff holds Diff against Changes, and against what the layer of the commit shows.
func (m *model) compareDiff(committed *union.Tree) {
	m.t.Helper()
	was, now := union.New(m.w.tree, nil), union.New(committed, nil)
	var changes []string
	links := map[string]bool{} // Changes does not compare them
	for c, err := range m.w.Changes(ctx) {
		must(m.t, err)
		changes = append(changes, string(c.Kind)+" "+c.Path)
	}
	for _, other := range []*union.FS{m.w.FS, now} {
		var got []string
		for c, err := range union.Diff(ctx, was, other, union.DiffOptions{}) {
			must(m.t, err)
			line := string(c.Kind) + " " + c.Path
			if c.Kind == 'M' && c.Meta && !slices.Contains(changes, line) {
				links[c.Path] = true
				continue
			}
			got = append(got, line)
		}
		if d := diffLines(strings.Join(got, "\n"), strings.Join(changes, "\n")); d != "" {
			m.fail("Diff is not what Changes says: " + d)
		}
	}
	for p := range links {
		if id, err := now.Tree().Resolve(p); err == nil && !m.wasLinked(p) && len(now.Tree().Names(id)) < 2 {
			m.fail("Diff lists what Changes does not, and it is no link: " + p)
		}
	}
	for _, pair := range [][2]*union.FS{{m.w.FS, now}, {now, m.w.FS}} {
		if d := diffOf(m.t, pair[0], pair[1], union.DiffOptions{Content: true}); d != "" {
			m.fail("the mount and its commit differ:\n" + d)
		}
	}
}

func (m *model) wasLinked(p string) bool {
	id, err := m.w.tree.Resolve(p)
	return err == nil && len(m.w.tree.Names(id)) > 1
}

// Two images with the same base of 50,000 files: the base costs nothing.
func TestDiffSkipsWhatIsCommon(t *testing.T) {
	layers := layersOf(t, manyFilesText(50_000), "file dir1/new \"\"")
	a, b := merge(t, layers[:1]), merge(t, layers)
	allocs := testing.AllocsPerRun(5, func() {
		if got := diffOf(t, union.New(a, nil), union.New(b, nil), union.DiffOptions{Content: true}); got != "A dir1/new" {
			t.Errorf("got %s", got)
		}
	})
	if allocs > 500 { // a look at every file takes some of each
		t.Errorf("%v allocations", allocs)
	}
}

func manyFilesText(n int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "file dir%d/f%d \"%d\"\n", i%500, i, i)
	}
	return b.String()
}

func BenchmarkDiff(b *testing.B) {
	base := manyFilesText(50_000)
	same := layersOf(b, base, "file dir1/new \"\"")
	x, y := merge(b, same[:1]), merge(b, same)
	z := merge(b, layersOf(b, "dir another\n"+base))
	for _, c := range []struct {
		name string
		tree *union.Tree
	}{{"same-base", y}, {"other-base", z}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				_, err := collect(union.Diff(ctx, union.New(x, nil), union.New(c.tree, nil), union.DiffOptions{}))
				must(b, err)
			}
		})
	}
}

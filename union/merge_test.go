package union_test

import (
	"slices"
	"testing"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// paths lists a tree: every path with a slash after directories, and = with the content of small files.
func paths(t *testing.T, tree *union.Tree) []string {
	t.Helper()
	var list []string
	var walk func(id union.ID, p string)
	walk = func(id union.ID, p string) {
		for name, child := range tree.Children(id) {
			switch tree.Mode(child) & unix.S_IFMT {
			case unix.S_IFDIR:
				list = append(list, p+name+"/")
				walk(child, p+name+"/")
			case unix.S_IFREG:
				b := make([]byte, tree.Attr(child).Size)
				_, err := tree.ReadAt(ctx, child, b, 0)
				must(t, err)
				list = append(list, p+name+"="+string(b))
			default:
				list = append(list, p+name)
			}
		}
	}
	walk(union.Root, "")
	return list
}

func TestMerge(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers []string
		want   []string
	}{
		{"one layer", []string{`file a/b "1"`}, []string{"a/", "a/b=1"}},
		{"directories merge", []string{`file d/x "1"`, `file d/y "2"`}, []string{"d/", "d/x=1", "d/y=2"}},
		{"the topmost file wins", []string{`file f "1"`, `file f "2"`, `dir d`}, []string{"d/", "f=2"}},
		{"whiteout", []string{"file f \"1\"\nfile g \"1\"", `whiteout f`}, []string{"g=1"}},
		{"whiteout of a directory", []string{`file d/e/f "1"`, `whiteout d/e`}, []string{"d/"}},
		{"whiteout of nothing", []string{`file f "1"`, `whiteout g`}, []string{"f=1"}},
		{"whiteout spares its own layer", []string{`file f "1"`, "file f \"2\"\nwhiteout f"}, []string{"f=2"}},
		{"whiteout first spares its own layer", []string{`file f "1"`, "whiteout f\nfile f \"2\""}, []string{"f=2"}},
		{"whiteout cuts a directory's merge", []string{`file d/x "1"`, "whiteout d\nfile d/y \"2\""}, []string{"d/", "d/y=2"}},
		{"whiteout does not reach up", []string{`file f "1"`, `whiteout f`, `file f "3"`}, []string{"f=3"}},
		{"opaque", []string{`file d/x "1"`, "file d/y \"2\"\nopaque d"}, []string{"d/", "d/y=2"}},
		{"opaque, then more", []string{`file d/x "1"`, `opaque d`, `file d/z "3"`}, []string{"d/", "d/z=3"}},
		{"opaque root", []string{`file x "1"`, "opaque .\nfile y \"2\""}, []string{"y=2"}},
		{"directory over file", []string{`file a "1"`, `file a/b "2"`}, []string{"a/", "a/b=2"}},
		{"file over directory", []string{`file a/b "1"`, `file a "2"`}, []string{"a=2"}},
		{"a file in between ends the merge", []string{`file a/x "1"`, `file a "2"`, `file a/z "3"`}, []string{"a/", "a/z=3"}},
		{"symlink over directory", []string{`file a/x "1"`, `symlink a b`}, []string{"a"}},
		{"link into the layer below", []string{`file x "1"`, `link y x`}, []string{"x=1", "y=1"}},
		{"link to what its layer hides", []string{`file x "1"`, "link y x\nwhiteout x"}, []string{"y=1"}},
		{"link to what a layer above replaces", []string{`file x "1"`, `link y x`, `file x "3"`}, []string{"x=3", "y=1"}},
		{"link to a link below", []string{`file x "1"`, `link y x`, "link z y\nwhiteout y"}, []string{"x=1", "z=1"}},
		{"link to nothing", []string{`file x "1"`, `link y nothing`}, []string{"x=1"}},
		{"link to what was deleted", []string{`file x "1"`, `whiteout x`, `link y x`}, nil},
		{"no layers", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree := mergeText(t, tt.layers...)
			if got := paths(t, tree); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestMergeAttributes(t *testing.T) {
	tree := mergeText(t,
		"dir d 0700 user.a=\"1\"\nfile d/f \"x\"\nlink d/g d/f\nlink h d/f\nchar c 1:3",
		"file d/new \"y\"",
		"dir e 0711\nlink e/far d/f\nwhiteout h",
	)
	attr := func(p string) (union.ID, union.Attr) {
		id, err := tree.Resolve(p)
		must(t, err)
		return id, tree.Attr(id)
	}
	if _, a := attr("d"); a.Mode != unix.S_IFDIR|0o700 {
		t.Errorf("the mode of d comes from an entry it only implies: %o", a.Mode)
	}
	f, a := attr("d/f")
	if g, _ := attr("d/g"); g != f || a.Nlink != 3 {
		t.Errorf("d/f and d/g: nodes %d and %d, %d links, want one node with 3", f, g, a.Nlink)
	}
	if far, _ := attr("e/far"); far != f {
		t.Errorf("e/far is node %d, d/f %d", far, f)
	}
	if _, a := attr("c"); a.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("device %x", a.Rdev)
	}
	names := tree.Names(f)
	var got []string
	for _, n := range names {
		got = append(got, tree.Path(n.Dir)+"/"+n.Name)
	}
	if slices.Sort(got); !slices.Equal(got, []string{"d/f", "d/g", "e/far"}) {
		t.Errorf("names %q", got)
	}
}

func TestMergeIsDeterministic(t *testing.T) {
	texts := []string{"file b/x \"1\"\nfile a/y \"2\"\nlink c b/x", "file a/z \"3\"\nwhiteout b/x"}
	one, two := mergeText(t, texts...), mergeText(t, texts...)
	if one.Len() != two.Len() || one.Digest() != two.Digest() {
		t.Fatalf("%d nodes %s, then %d nodes %s", one.Len(), one.Digest(), two.Len(), two.Digest())
	}
	for id := union.Root; int(id) <= one.Len(); id++ {
		if one.Path(id) != two.Path(id) {
			t.Errorf("node %d is %q, then %q", id, one.Path(id), two.Path(id))
		}
		if id != union.Root {
			if back, err := one.Resolve(one.Path(id)); back != id || err != nil {
				t.Errorf("path %q of node %d leads to %d, %v", one.Path(id), id, back, err)
			}
		}
	}
}

func TestResolve(t *testing.T) {
	tree := mergeText(t, `
file usr/bin/env "x"
symlink bin usr/bin
symlink abs /usr/bin/env
symlink up usr/../../../bin/env
symlink loop loop
symlink dangling nowhere`)
	for _, tt := range []struct {
		path   string
		follow bool
		want   string
		err    error
	}{
		{"usr//bin/./env", false, "usr/bin/env", nil},
		{"", false, "", nil},
		{"/", false, "", nil},
		{"../usr/bin/..", false, "usr", nil},
		{"bin/env", false, "", unix.ENOTDIR},
		{"usr/bin/env/x", false, "", unix.ENOTDIR},
		{"usr/x/y", false, "", unix.ENOENT},
		{"bin", false, "bin", nil},
		{"bin/env", true, "usr/bin/env", nil},
		{"abs", true, "usr/bin/env", nil},
		{"up", true, "usr/bin/env", nil},
		{"loop", true, "", unix.ELOOP},
		{"dangling", true, "", unix.ENOENT},
	} {
		resolve := tree.Resolve
		if tt.follow {
			resolve = tree.ResolveFollow
		}
		id, err := resolve(tt.path)
		if err != tt.err || err == nil && tree.Path(id) != tt.want {
			t.Errorf("%q (follow %t): node %d, %v; want %q, %v", tt.path, tt.follow, id, err, tt.want, tt.err)
		}
	}
}

func TestVersions(t *testing.T) {
	layers := layersOf(t, "file etc/a \"1\"\nfile etc/b \"1\"", "whiteout etc/a\nfile etc/b \"22\"", `file etc/a "333"`, "opaque etc\nfile etc/b \"4\"")
	type row struct {
		layer    int
		whiteout bool
		size     int64
		visible  bool
	}
	for path, want := range map[string][]row{
		"etc/a":  {{3, true, 0, false}, {2, false, 3, false}, {1, true, 0, false}, {0, false, 1, false}},
		"/etc/b": {{3, false, 1, true}, {3, true, 0, false}, {1, false, 2, false}, {0, false, 1, false}},
		"none":   nil,
	} {
		var got []row
		for _, v := range union.Versions(layers, path) {
			got = append(got, row{v.Layer, v.Whiteout, v.Entry.Size, v.Visible})
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
	}
}

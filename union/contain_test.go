package union_test

import (
	"testing"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// containText has directories, files, and links among them.
const containText = `
dir etc
file etc/passwd "p"
dir usr
dir usr/lib
dir usr/lib/deep
symlink lib usr/lib
symlink usr/lib/abs /etc
`

// TestContain reads links, each in a tree of its own.
func TestContain(t *testing.T) {
	for _, tt := range []struct {
		link, target string
		want         string
		err          error
	}{
		{link: "l", target: "etc/passwd", want: "etc/passwd"},
		{link: "l", target: "/etc/passwd", want: "etc/passwd"},
		{link: "l", target: "/", want: "./"},
		{link: "l", target: "//etc/./passwd", want: "etc/passwd"},
		{link: "l", target: "/etc/", want: "etc/"},
		{link: "l", target: "..", want: "."},
		{link: "l", target: "../../etc/passwd", want: "etc/passwd"},
		{link: "usr/lib/deep/l", target: "/etc/passwd", want: "../../../etc/passwd"},
		{link: "usr/lib/deep/l", target: "/", want: "../../../"},
		{link: "usr/lib/deep/l", target: "../../../etc", want: "../../../etc"},
		{link: "usr/lib/deep/l", target: "../../../../etc", want: "../../../etc"},
		{link: "usr/lib/deep/l", target: "../x", want: "../x"},
		{link: "usr/l", target: "lib/../../../etc", want: "../etc"},
		{link: "usr/l", target: "lib/abs/../../etc", want: "../etc"},
		{link: "l", target: "lib/../etc", want: "usr/etc"}, // lib is usr/lib
		{link: "l", target: "lib/abs/../x", want: "x"},
		{link: "l", target: "/missing", want: "missing"},
		{link: "l", target: "missing/../../etc", want: "missing/./etc"},
		{link: "l", target: "etc/passwd/../../..", want: "etc/passwd/."},
		{link: "l", target: "/l", want: "l"},
		{link: "l", target: "l/..", err: unix.ELOOP},
	} {
		tree := mergeText(t, containText+"symlink "+tt.link+" "+tt.target)
		f := union.New(tree, nil)
		f.Contain()
		id, err := at(f, tt.link)
		must(t, err)
		got, err := f.Readlink(ctx, id)
		if got != tt.want || err != tt.err {
			t.Errorf("%s -> %s reads as %q, %v; want %q, %v", tt.link, tt.target, got, err, tt.want, tt.err)
		}
		if raw := tree.Readlink(id); raw != tt.target {
			t.Errorf("the tree has %q", raw)
		}
		check(t, f.Close())
	}
}

// TestContainHardlinks: one link in directories of different depth cannot be right for both.
func TestContainHardlinks(t *testing.T) {
	f := union.New(mergeText(t, containText+"symlink a /etc\nlink usr/b a\nsymlink c x\nlink usr/c c"), nil)
	f.Contain()
	for path, want := range map[string]error{"a": unix.EACCES, "usr/b": unix.EACCES, "c": nil, "usr/c": nil} {
		id, err := at(f, path)
		must(t, err)
		if _, err := f.Readlink(ctx, id); err != want {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

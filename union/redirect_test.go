package union_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// dirLayer is an unpacked layer of files, and directories with a redirect: "a/b" or "a>/old".
func dirLayer(t *testing.T, names ...string) *layer.Layer {
	t.Helper()
	root := t.TempDir()
	for _, name := range names {
		name, target, renamed := strings.Cut(name, ">")
		p := filepath.Join(root, name)
		if !renamed {
			check(t, os.MkdirAll(filepath.Dir(p), 0o755))
			check(t, os.WriteFile(p, []byte(name), 0o644))
			continue
		}
		check(t, os.MkdirAll(p, 0o755))
		err := unix.Setxattr(p, "user.overlay.redirect", []byte(target), 0)
		if errors.Is(err, unix.ENOTSUP) {
			t.Skip("needs extended attributes of users")
		}
		check(t, err)
	}
	dir, err := os.Open(root)
	check(t, err)
	l, err := layer.OpenDir(ctx, dir, layer.DirOptions{})
	check(t, err)
	t.Cleanup(func() { check(t, l.Close()) })
	return l
}

// TestRedirect: a renamed directory shows what the layers below have under its old name.
func TestRedirect(t *testing.T) {
	for _, test := range []struct {
		name   string
		layers [][]string // the base first
		want   string
	}{
		{"absolute", [][]string{{"a/b/x"}, {"c/d>/a/b", "c/d/y"}}, "a a/b a/b/x c c/d c/d/x c/d/y"},
		{"beside", [][]string{{"a/b/x"}, {"a/d>b"}}, "a a/b a/b/x a/d a/d/x"},
		{"twice", [][]string{{"a/x"}, {"b>/a"}, {"c>/b"}}, "a a/x b b/x c c/x"},
		{"through a redirect", [][]string{{"a/b/x"}, {"n>/a"}, {"m>/n/b"}}, "a a/b a/b/x m m/x n n/b n/b/x"},
		{"not what is called so below", [][]string{{"a/x", "c/old"}, {"c>/a"}}, "a a/x c c/x"},
		{"to nothing", [][]string{{"x"}, {"c>/a"}}, "c x"},
		{"to itself", [][]string{{"c/x"}, {"c>/c"}}, "c c/x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var layers []*layer.Layer
			for _, names := range test.layers {
				layers = append(layers, dirLayer(t, names...))
			}
			tree, err := union.Merge(ctx, layers)
			check(t, err)
			var got []string
			var walk func(string, union.ID)
			walk = func(p string, dir union.ID) {
				for name, id := range tree.Children(dir) {
					got = append(got, p+name)
					if tree.IsDir(id) {
						walk(p+name+"/", id)
					}
				}
			}
			walk("", union.Root)
			slices.Sort(got)
			if s := strings.Join(got, " "); s != test.want {
				t.Errorf("got  %s\nwant %s", s, test.want)
			}
			if (test.name == "to nothing") != (len(tree.Defects()) > 0) {
				t.Errorf("defects: %v", tree.Defects())
			}
		})
	}
}

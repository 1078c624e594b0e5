package meta_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic/meta"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type blob []byte

func (b blob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

func openLayers(t *testing.T, texts ...string) (list []*layer.Layer, tree *union.Tree) {
	t.Helper()
	s, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for _, text := range texts {
		tar := layertest.Tar(text)
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar))}
		l, err := layer.Open(t.Context(), d, blob(tar), s, layer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		list = append(list, l)
	}
	if tree, err = union.Merge(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	return list, tree
}

var texts = []string{
	"file a \"one\" user.x=\"1\"\nfile d/e/f \"deep\"\nfile gone \"old\" 04711 7:8\nlink hard a\nsymlink s a\nfile n/1 \"kid\"",
	"file a \"two\"\nwhiteout gone\nopaque d\nfile n \"file\"\nfile gone2/x \"x\"",
	"file d \"no directory\"\nwhiteout gone2",
}

func newFolder(t *testing.T, state *string) (*meta.Folder, []*layer.Layer, *union.Tree) {
	list, tree := openLayers(t, texts...)
	return meta.New(meta.Options{
		Layers: list[:2], Tree: tree, Steps: []string{"RUN one", ""}, Time: time.Unix(5, 0), First: 0,
		Files: []meta.File{{Name: "state", Data: func() ([]byte, error) { return []byte(*state), nil }}},
	}), list, tree
}

// all walks the folder, and checks on the way that listings, names and attributes agree and that a listing can be left and gone on with anywhere.
func all(t *testing.T, f *meta.Folder, dir union.ID, path string, found map[string]union.ID) {
	t.Helper()
	var list []union.Dirent
	var next []uint64
	take := func(n uint64, e union.Dirent) bool {
		list, next = append(list, e), append(next, n)
		return true
	}
	if err := f.ReadDir(dir, 0, take); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	whole := slices.Clone(list)
	for i := range whole {
		list = nil
		if err := f.ReadDir(dir, next[i], take); err != nil || !slices.Equal(list, whole[i+1:]) {
			t.Errorf("%s: after %d: %v, %v", path, i, list, err)
		}
	}
	for _, e := range whole[2:] {
		id, a, err := f.Lookup(dir, e.Name)
		if err != nil || a.Type() != e.Mode || a.Ino != e.Ino || f.TTL(id) > 0 && id != e.ID {
			t.Errorf("%s/%s: %+v, but %d %+v %v", path, e.Name, e, id, a, err)
		}
		p := strings.TrimPrefix(path+"/"+e.Name, "/")
		if found[p] != 0 {
			t.Errorf("%s is there twice", p)
		}
		found[p] = id
		if a.IsDir() {
			all(t, f, id, p, found)
		} else if err := f.ReadDir(id, 0, take); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("listing of %s: %v", p, err)
		}
	}
}

func TestFolder(t *testing.T) {
	state := "one"
	f, _, _ := newFolder(t, &state)
	found := map[string]union.ID{}
	all(t, f, f.Root(), "", found)
	read := func(p string) string {
		b := make([]byte, 100)
		n, err := f.ReadAt(t.Context(), found[p], b, 0)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	for p, want := range map[string]string{
		"state": "one", "layers/1/hard": "one", "layers/2/d/.wh..wh..opq": "", "layers/2/.wh.gone": "", "deleted/gone": "old", "deleted/d/e/f": "deep",
		"versions/a/1": "one", "versions/a/2": "two", "versions/n/1": syscall.EISDIR.Error(), "versions/n/1/1": "kid", "versions/n/2": "file", "deleted": syscall.EISDIR.Error(),
	} {
		if got := read(p); got != want || found[p] == 0 {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
	if a, err := f.Getattr(found["deleted/gone"]); err != nil || a.Mode != syscall.S_IFREG|0o4711 || a.UID != 7 || a.GID != 8 {
		t.Errorf("deleted/gone: %+v, %v", a, err)
	}
	if names := f.Listxattr(found["versions/a/1"]); !slices.Equal(names, []string{"user.x"}) {
		t.Errorf("attributes: %q", names)
	}
	if v, err := f.Getxattr(found["versions/a/1"], "user.layerfs.created_by"); string(v) != "RUN one" || err != nil {
		t.Errorf("created by %q, %v", v, err)
	}
	if v, err := f.Getxattr(found["versions/a/2"], "user.layerfs.created_by"); err != syscall.ENODATA {
		t.Errorf("a step that nobody knows: %q, %v", v, err)
	}
}

// TestStates: what a file held when it was opened stays until the last one has forgotten it.
func TestStates(t *testing.T) {
	state := "one"
	f, _, _ := newFolder(t, &state)
	look := func() union.ID {
		id, _, err := f.Lookup(f.Root(), "state")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, again := look(), look()
	state = "two"
	second := look()
	if first != again || first == second {
		t.Errorf("nodes %d, %d, then %d", first, again, second)
	}
	f.Forget(first, 1)
	if a, err := f.Getattr(first); err != nil || a.Size != 3 {
		t.Errorf("one reference is left: %+v, %v", a, err)
	}
	f.Forget(first, 1)
	if _, err := f.Getattr(first); err != syscall.ESTALE {
		t.Errorf("forgotten: %v", err)
	}
	f.Forget(second, 1)
	if third := look(); third == second {
		t.Error("a number came back for a node that was forgotten")
	}
}

// TestShow: after a commit the folder has the new layer, and nodes of before are what they were.
func TestShow(t *testing.T) {
	state := ""
	f, list, tree := newFolder(t, &state)
	before := map[string]union.ID{}
	all(t, f, f.Root(), "", before)
	f.Show(list, tree, []string{"RUN one", "", "commit"})
	after := map[string]union.ID{}
	all(t, f, f.Root(), "", after)
	if after["layers/3/d"] == 0 || after["deleted/gone2/x"] == 0 || before["deleted/gone2/x"] != 0 {
		t.Errorf("the new layer is not there: %v", after)
	}
	if before["layers/1/a"] != after["layers/1/a"] {
		t.Error("a layer's node has another number")
	}
	b := make([]byte, 9)
	if n, err := f.ReadAt(t.Context(), before["deleted/gone"], b, 0); err != nil || string(b[:n]) != "old" {
		t.Errorf("a node of before: %q, %v", b[:n], err)
	}
}

// TestForeignNumbers: numbers that nobody gave out are stale, whatever they look like.
func TestForeignNumbers(t *testing.T) {
	state := ""
	f, _, _ := newFolder(t, &state)
	for kind := range union.ID(16) {
		for _, rest := range []union.ID{1, 77, 1 << 31, 1 << 32, 0xfffff << 32, 1<<52 - 1} {
			id := meta.Base | kind<<52 | rest
			a, err := f.Getattr(id)
			if _, _, lerr := f.Lookup(id, "a"); err != nil && lerr == nil {
				t.Errorf("%x: a name below what is not there", id)
			}
			_, _ = f.ReadAt(t.Context(), id, make([]byte, 1), 0)
			_ = f.ReadDir(id, 0, func(uint64, union.Dirent) bool { return true })
			_, _ = f.Getxattr(id, "user.layerfs.layer")
			if err == nil && a.Ino == 0 {
				t.Errorf("%x: %+v", id, a)
			}
		}
	}
}

package union_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

func TestParseIDRange(t *testing.T) {
	for _, tt := range []struct {
		text string
		want union.IDRange
		ok   bool
	}{
		{"0:1000:1", union.IDRange{C: 0, H: 1000, N: 1}, true},
		{"1:100000:65536", union.IDRange{C: 1, H: 100000, N: 65536}, true},
		{text: "0:1000"}, {text: "0:1000:0"}, {text: "0:-1:1"}, {text: "a:b:c"}, {text: "0:1:2:3"}, {text: "0:4294967295:1"}, {text: ""},
	} {
		got, err := union.ParseIDRange(tt.text)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q: %v, %v", tt.text, got, err)
		}
	}
	for _, ids := range []union.IDs{{{0, 1000, 10}, {5, 2000, 1}}, {{0, 1000, 10}, {50, 1009, 1}}} {
		if ids.Check() == nil {
			t.Errorf("%v does not overlap", ids)
		}
	}
	if err := (union.IDs{{0, 1000, 10}, {10, 1010, 1}}).Check(); err != nil {
		t.Error(err)
	}
}

func FuzzIDRange(f *testing.F) {
	f.Add("0:1000:1")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := union.ParseIDRange(s)
		if err != nil {
			return
		}
		if again, err := union.ParseIDRange(r.String()); again != r || err != nil {
			t.Errorf("%q: %v, again %v, %v", s, r, again, err)
		}
	})
}

func mapped(t *testing.T, dir string, tree *union.Tree, ids union.IDMap) (*writable, error) {
	t.Helper()
	u, err := union.OpenUpper(filepath.Join(dir, "upper"), filepath.Join(dir, "work"),
		union.UpperOptions{Create: true, Base: tree.Digest(), Volatile: true, IDs: ids})
	if err != nil {
		return nil, err
	}
	return &writable{union.New(tree, u), u, tree, dir}, nil
}

// TestIDMap: the mount and the upper directory have the host's IDs, the layer the image's.
func TestIDMap(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners")
	}
	tree := mergeText(t, "dir d 0:0\nfile d/root \"r\" 0:0\nfile d/user \"u\" 33:34\nfile d/stranger \"s\" 5000:5000\ndir moved 0:0\nfile moved/stranger \"m\" 5000:5000")
	ids := union.IDMap{UIDs: union.IDs{{0, 1000, 1}, {1, 100000, 100}}, GIDs: union.IDs{{0, 1000, 1}, {1, 200000, 100}}}
	dir := t.TempDir()
	w, err := mapped(t, dir, tree, ids)
	must(t, err)
	for name, want := range map[string][2]uint32{"d/root": {1000, 1000}, "d/user": {100032, 200033}, "d/stranger": {65534, 65534}} {
		id, err := at(w.FS, name)
		must(t, err)
		a, err := w.Getattr(ctx, id, nil)
		if must(t, err); [2]uint32{a.UID, a.GID} != want {
			t.Errorf("%s belongs to %d:%d, want %v", name, a.UID, a.GID, want)
		}
		mode := uint32(0o600)
		_, err = w.Setattr(ctx, id, nil, union.SetAttr{Mode: &mode})
		if want[0] == 65534 {
			if !errors.Is(err, unix.EPERM) {
				t.Errorf("%s, whose owner has no place, was copied up: %v", name, err)
			}
			continue
		}
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, "upper", name), &st))
		if [2]uint32{st.Uid, st.Gid} != want {
			t.Errorf("%s in the upper directory belongs to %d:%d, want %v", name, st.Uid, st.Gid, want)
		}
	}
	root, err := at(w.FS, "d/root")
	must(t, err)
	alien, mine := uint32(7), uint32(100009)
	if _, err := w.Setattr(ctx, root, nil, union.SetAttr{UID: &alien}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("chown to somebody without a place: %v", err)
	}
	_, err = w.Setattr(ctx, root, nil, union.SetAttr{UID: &mine})
	must(t, err)
	if _, _, err := w.Mkdir(ctx, union.Caller{UID: 7, GID: 1000}, union.Root, "n", 0o755); !errors.Is(err, unix.EOVERFLOW) {
		t.Errorf("mkdir by somebody without a place: %v", err)
	}
	_, _, err = w.Mkdir(ctx, union.Caller{UID: 1000, GID: 1000}, union.Root, "new", 0o755)
	must(t, err)
	must(t, w.Rename(ctx, union.Root, "moved", union.Root, "there", 0))
	layerHasIDs(t, w, map[string][2]int{"d/root": {10, 0}, "d/user": {33, 34}, "new/": {0, 0}, "there/stranger": {5000, 5000}})
	w.close(t)
	if _, err := mapped(t, dir, tree, union.IDMap{UIDs: union.IDs{{0, 5, 1}}}); !errors.Is(err, union.ErrOtherIDs) {
		t.Errorf("another map: %v", err)
	}
	w, err = mapped(t, dir, tree, union.IDMap{}) // its own
	must(t, err)
	defer w.close(t)
	layerHasIDs(t, w, map[string][2]int{"d/root": {10, 0}})
}

func layerHasIDs(t *testing.T, w *writable, want map[string][2]int) {
	t.Helper()
	var b bytes.Buffer
	result, err := writeTar(w.FS, &b, union.TarOptions{})
	must(t, err)
	if len(result.Losses) > 0 {
		t.Errorf("losses: %v", result.Losses)
	}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if ids, ok := want[h.Name]; ok && ids != [2]int{h.Uid, h.Gid} {
			t.Errorf("%s in the layer belongs to %d:%d, want %v", h.Name, h.Uid, h.Gid, ids)
		}
		delete(want, h.Name)
	}
	if len(want) > 0 {
		t.Errorf("not in the layer: %v", want)
	}
}

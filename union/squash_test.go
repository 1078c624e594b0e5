package union_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// squash writes an FS as one layer, and holds the archive to what it promises.
func squash(t testing.TB, f *union.FS, o union.TarOptions) ([]byte, union.TarResult) {
	t.Helper()
	var b bytes.Buffer
	o.Squash = true
	result, err := writeTar(f, &b, o)
	must(t, err)
	checkSquashed(t, b.Bytes())
	return b.Bytes(), result
}

// checkSquashed: no path twice, parents first, links to what was there, no whiteouts.
func checkSquashed(t testing.TB, b []byte) {
	t.Helper()
	seen := map[string]byte{"": tar.TypeDir, ".": tar.TypeDir}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		must(t, err)
		p := path.Clean(strings.TrimSuffix(h.Name, "/"))
		if _, ok := seen[p]; ok && p != "." {
			t.Errorf("%s stands there twice", p)
		}
		if seen[path.Dir(p)] != tar.TypeDir {
			t.Errorf("%s stands before its directory", p)
		}
		if typ, ok := seen[h.Linkname]; h.Typeflag == tar.TypeLink && (!ok || typ == tar.TypeDir) {
			t.Errorf("%s links to %s, which is not there", p, h.Linkname)
		}
		if strings.HasPrefix(path.Base(p), ".wh.") {
			t.Errorf("%s is a whiteout", p)
		}
		seen[p] = h.Typeflag
	}
}

// compareSquashed holds what one layer alone shows against an FS.
func compareSquashed(t testing.TB, f *union.FS) string {
	t.Helper()
	b, result := squash(t, f, union.TarOptions{})
	if len(result.Losses) > 0 {
		return fmt.Sprintf("losses: %v", result.Losses)
	}
	alone := merge(t, []*layer.Layer{openTar(t, openStore(t), b)})
	if len(alone.Defects()) > 0 {
		return fmt.Sprintf("defects: %v", alone.Defects())
	}
	return diffOf(t, f, union.New(alone, nil), union.DiffOptions{Content: true}) + diffLines(dump(t, union.New(alone, nil)), dump(t, f))
}

func TestSquashLayers(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers []string
	}{
		{"nothing", nil},
		{"one layer", []string{diffBase}},
		{"all that a tree has", []string{
			diffBase,
			"whiteout d/a\nopaque e\nfile e/new \"n\" 04755 7:8 @1700000000.123456789\nblock b 8:1\nfifo p\nfile ümläut\xff \"bytes\"",
			"link l/one d/b\nlink l/two d/c\nfile f \"x\" user.a=\"b\" security.capability=\"cap\" trusted.t=\"kept\" security.selinux=\"kept\"\ndir empty 01777",
		}},
		{"links over layers, the first name deleted", []string{"file a \"data\"\nlink b a", "link c b", "whiteout a"}},
		{"a root of its own", []string{"dir . 0700 3:4 @5 user.k=\"v\"\nfile x \"\""}},
		{"names that are long", []string{"file " + strings.Repeat(strings.Repeat("n", 250)+"/", 12) + "f \"deep\"\nsymlink s " + strings.Repeat("t", 300)}},
		{"numbers that are large", []string{"file f \"x\" 4000000000:4000000001 @-5.5"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := compareSquashed(t, union.New(mergeText(t, c.layers...), nil)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSquashUpper(t *testing.T) {
	w := openWritable(t, mergeText(t, diffBase), t.TempDir())
	t.Cleanup(func() { w.close(t) })
	must(t, w.Rename(ctx, union.Root, "e", union.Root, "moved", 0))
	must(t, w.Unlink(ctx, mustAt(t, w.FS, "d"), "a"))
	_, _, err := w.Link(ctx, mustAt(t, w.FS, "d/c"), mustAt(t, w.FS, "moved"), "linked")
	must(t, err)
	_, _, err = w.Mknod(ctx, union.Caller{}, union.Root, "socket", unix.S_IFSOCK|0o600, 0)
	must(t, err)
	b, result := squash(t, w.FS, union.TarOptions{})
	if len(result.Losses) != 1 || result.Losses[0].Path != "socket" {
		t.Errorf("losses: %v", result.Losses)
	}
	again, _ := squash(t, w.FS, union.TarOptions{})
	if !bytes.Equal(b, again) {
		t.Error("the same state gives two archives")
	}
	must(t, w.Unlink(ctx, union.Root, "socket"))
	if d := compareSquashed(t, w.FS); d != "" {
		t.Error(d)
	}
	b, _ = squash(t, w.FS, union.TarOptions{Epoch: new(int64)})
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if h.ModTime.Unix() > 0 {
			t.Errorf("%s has the time %v, later than the epoch", h.Name, h.ModTime)
		}
	}
}

func mustAt(t testing.TB, f *union.FS, p string) union.ID {
	t.Helper()
	id, err := at(f, p)
	must(t, err)
	return id
}

// What the layers have is kept, also of a root that a mount has a copy of.
func TestSquashRoot(t *testing.T) {
	for _, root := range []string{"", "dir . 0700 3:4 @5 user.k=\"v\" trusted.t=\"kept\" security.selinux=\"kept\"\n"} {
		w := openWritable(t, mergeText(t, root+"file x \"\" trusted.t=\"kept\""), t.TempDir())
		before := compareSquashed(t, w.FS)
		mode := uint32(0o711)
		_, err := w.Setattr(ctx, union.Root, nil, union.SetAttr{Mode: &mode})
		must(t, err)
		b, result := squash(t, w.FS, union.TarOptions{})
		h, err := tar.NewReader(bytes.NewReader(b)).Next()
		must(t, err)
		if before != "" && root == "" || len(result.Losses) > 0 || h.Name != "./" || h.Mode != 0o711 {
			t.Errorf("%q: %s; losses %v, first entry %+v", root, before, result.Losses, h)
		}
		w.close(t)
	}
}

// Every file of many in several layers comes by large requests, and each byte once.
func TestSquashFetches(t *testing.T) {
	var texts [3]strings.Builder
	for i := range 600 {
		fmt.Fprintf(&texts[i%3], "random d%02d/f%03d %dKiB\n", i/90, i, 20+i%90)
	}
	tree, blobs := lazyTree(t, texts[0].String(), texts[1].String(), texts[2].String())
	for _, b := range blobs {
		b.reset()
	}
	if d := compareSquashed(t, union.New(tree, nil)); d != "" {
		t.Error(d)
	}
	var requests int
	var size, fetched int64
	for _, b := range blobs {
		n, bytes := b.sum()
		requests, fetched, size = requests+n, fetched+bytes, size+int64(len(b.blob))
	}
	if fetched > size*11/10 || requests > 100 {
		t.Errorf("%d requests fetched %d bytes of blobs of %d", requests, fetched, size)
	}
}

func TestSquashBreaksOff(t *testing.T) {
	o := union.TarOptions{Squash: true}
	if _, err := writeTar(union.New(errorTree(t), nil), io.Discard, o); err == nil || !strings.Contains(err.Error(), "/f") {
		t.Errorf("a file that cannot be read: %v", err)
	}
	f := union.New(mergeText(t, diffBase), nil)
	m, err := f.Mark(ctx)
	must(t, err)
	defer m.Close()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := m.WriteTar(ended, io.Discard, o); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
	full := errors.New("full")
	if _, err := m.WriteTar(ctx, fullWriter{full}, o); !errors.Is(err, full) {
		t.Errorf("a writer that fails: %v", err)
	}
}

type fullWriter struct{ err error }

func (w fullWriter) Write([]byte) (int, error) { return 0, w.err }

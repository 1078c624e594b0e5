package union_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// A continued is a writable whose mount goes on from what was committed.
type continued struct {
	t      *testing.T
	s      *cache.Store
	layers []*layer.Layer
}

// commit marks the moment, has others write, writes the layer and goes on from it.
func (c *continued) commit(w *writable, between func()) {
	c.t.Helper()
	m, err := w.Mark(ctx)
	must(c.t, err)
	defer m.Close()
	between()
	var tar bytes.Buffer
	result, err := m.WriteTar(ctx, &tar, union.TarOptions{})
	must(c.t, err)
	if len(result.Losses) > 0 {
		c.t.Fatalf("losses: %v", result.Losses)
	}
	c.layers = append(c.layers, openTar(c.t, c.s, tar.Bytes()))
	between()
	w.tree = merge(c.t, c.layers)
	must(c.t, m.Continue(ctx, w.tree, "next", ""))
}

// inos are the inode numbers and IDs that an FS shows, by path.
func inos(t *testing.T, f *union.FS, dir union.ID, p string, all map[string][2]uint64) map[string][2]uint64 {
	t.Helper()
	h, err := f.OpenDir(ctx, dir)
	must(t, err)
	defer h.Close()
	must(t, h.Read(0, func(_ uint64, e union.Dirent) bool {
		if e.Name == "." || e.Name == ".." {
			return true
		}
		id, a, err := f.Lookup(ctx, dir, e.Name)
		must(t, err)
		all[path.Join(p, e.Name)] = [2]uint64{uint64(id), a.Ino}
		if a.IsDir() {
			inos(t, f, id, path.Join(p, e.Name), all)
		}
		return true
	}))
	return all
}

// Random calls, a commit in the middle of them that goes on from its layer, and so on:
// the mount looks at every point as the host's directory does, with the IDs and inode numbers
// that it had; so does what is mounted of the last tree and the upper directory that is left.
func TestContinueModel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: copy-up keeps owners")
	}
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, seed+1000)
			c := &continued{t: t, s: openStore(t), layers: layersOf(t, modelLayers...)}
			m.w.close(t)
			m.w = openWritable(t, merge(t, c.layers), t.TempDir())
			for round := range 5 {
				m.calls(30)
				var before map[string][2]uint64
				c.commit(m.w, func() {
					m.calls(m.r.IntN(10))
					m.compare("between")
					before = inos(t, m.w.FS, union.Root, "", map[string][2]uint64{})
				})
				m.compare(fmt.Sprintf("gone on, round %d", round))
				for p, now := range inos(t, m.w.FS, union.Root, "", map[string][2]uint64{}) {
					if before[p] != now {
						m.fail(fmt.Sprintf("round %d: %s has ID and inode number %v, not %v", round, p, now, before[p]))
					}
				}
				if round%2 == 1 {
					m.w = m.w.reopen(t)
					m.compare(fmt.Sprintf("opened again, round %d", round))
				}
			}
			c.commit(m.w, func() {})
			upperIsEmpty(t, m.w)
			m.compare("emptied")
			m.w = m.w.reopen(t)
			m.compare("at last")
			m.w.close(t)
		})
	}
}

func upperIsEmpty(t *testing.T, w *writable) {
	t.Helper()
	names, err := os.ReadDir(filepath.Join(w.dir, "upper"))
	must(t, err)
	if len(names) > 0 {
		t.Errorf("the upper directory still has %v", names)
	}
	for c, err := range w.Changes(ctx) {
		must(t, err)
		t.Errorf("still a change: %c %s", c.Kind, c.Path)
	}
}

// What is open goes on, and is in the next layer only if it was written to.
func TestContinueOpenFiles(t *testing.T) {
	c := &continued{t: t, s: openStore(t), layers: layersOf(t, "file a \"aaa\"\nfile d/b \"bbb\"\nfile d/c \"ccc\"")}
	w := openWritable(t, merge(t, c.layers), t.TempDir())
	defer func() { w.close(t) }()
	open := func(p string, flags int) *union.File {
		h, err := w.Open(ctx, lookup(t, w, p), flags)
		must(t, err)
		return h
	}
	lower := open("d/c", unix.O_RDONLY)
	defer lower.Close()
	a, b := open("a", unix.O_RDWR), open("d/b", unix.O_RDWR)
	for _, h := range []*union.File{a, b} {
		_, err := h.WriteAt(ctx, []byte("XY"), 0)
		must(t, err)
	}
	must(t, w.Unlink(ctx, lookup(t, w, "d"), "c"))
	c.commit(w, func() {})
	_, err := a.WriteAt(ctx, []byte("Z"), 1)
	must(t, err)
	for p, want := range map[*union.File]string{a: "XZa", b: "XYb", lower: "ccc"} {
		got := make([]byte, 9)
		n, err := p.ReadAt(ctx, got, 0)
		must(t, err)
		if string(got[:n]) != want {
			t.Errorf("read %q, not %q", got[:n], want)
		}
	}
	var changes []string
	for c, err := range w.Changes(ctx) {
		must(t, err)
		changes = append(changes, string(c.Kind)+" "+c.Path)
	}
	if fmt.Sprint(changes) != "[M a]" {
		t.Errorf("changes: %v", changes)
	}
	var tar bytes.Buffer
	result, err := writeTar(w.FS, &tar, union.TarOptions{})
	must(t, err)
	if result.Bytes != 3 {
		t.Errorf("the next layer has %d bytes of content: what was not written to is in it", result.Bytes)
	}
	must(t, errors.Join(a.Close(), b.Close()))
	c.commit(w, func() {})
	upperIsEmpty(t, w)
}

// A tree that is not that of the mount and one layer is refused, and nothing happens.
func TestContinueElsewhere(t *testing.T) {
	w := openWritable(t, mergeText(t, "file a \"a\""), t.TempDir())
	defer w.close(t)
	must(t, unionWriteNew(w, "new", "text"))
	before := dump(t, w.FS)
	m, err := w.Mark(ctx)
	must(t, err)
	defer m.Close()
	for _, other := range []*union.Tree{mergeText(t, "file b \"b\""), mergeText(t, "file b \"b\"", "file a \"a\"")} {
		if err := m.Continue(ctx, other, "other", ""); !errors.Is(err, union.ErrNoContinue) {
			t.Errorf("the error is %v", err)
		}
	}
	if d := diffLines(dump(t, w.FS), before); d != "" {
		t.Error(d)
	}
}

func unionWriteNew(w *writable, name, text string) error {
	_, _, h, err := w.Create(ctx, union.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}, union.Root, name, unix.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	_, err = h.WriteAt(ctx, []byte(text), 0)
	return errors.Join(err, h.Close())
}

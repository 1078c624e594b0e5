package union_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// A tamper does something before its first write.
type tamper struct {
	io.Writer
	do func()
}

func (d *tamper) Write(p []byte) (int, error) {
	if d.do != nil {
		d.do()
		d.do = nil
	}
	return d.Writer.Write(p)
}

// disturbances change the upper directory of checkedUpper while it is committed; path is what a commit beside it must name.
var disturbances = []struct {
	name, path string
	do         func(w *writable) error
}{
	{"append", "new", writeAt("new", 8, "more")},
	{"overwrite", "new", writeAt("new", 0, "NEW")},
	{"truncate", "new", func(w *writable) error {
		return onNode(w.FS, "new", func(id union.ID) error {
			size := int64(2)
			_, err := w.Setattr(ctx, id, nil, union.SetAttr{Size: &size})
			return err
		})
	}},
	{"rewrite", "new", func(w *writable) error {
		return onNode(w.FS, "new", func(id union.ID) error {
			h, err := w.Open(ctx, id, os.O_WRONLY|os.O_TRUNC)
			return unionWrite(h, err, 1)
		})
	}},
	{"punch", "new", func(w *writable) error {
		return onNode(w.FS, "new", func(id union.ID) error {
			h, err := w.Open(ctx, id, os.O_WRONLY)
			if err != nil {
				return err
			}
			return errors.Join(h.Allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4), h.Close())
		})
	}},
	{"overwrite the other name", "dir/l", writeAt("linked", 0, "LINKED")},
	{"unlink", "new", unlink("new")},
	{"unlink one of two names", "dir/l", unlink("dir/l")},
	{"unlink of a renamed directory", "there/g", unlink("there/g")},
	{"rename", "new", rename("new", "newer")},
	{"rename and overwrite", "new", func(w *writable) error {
		return errors.Join(rename("new", "dir/n")(w), writeAt("dir/n", 0, "NEW")(w))
	}},
	{"rename over", "new", rename("dir/f", "new")},
	{"rename the directory", "dir/f", rename("dir", "elsewhere")},
	{"rename the directory and unlink", "dir/f", func(w *writable) error {
		return errors.Join(rename("dir", "elsewhere")(w), unlink("elsewhere/f")(w))
	}},
	{"create", "late", func(w *writable) error {
		_, _, err := w.Mkdir(ctx, me, union.Root, "late", 0o700)
		return err
	}},
	{"chmod", "dir/f", func(w *writable) error {
		return onNode(w.FS, "dir/f", func(id union.ID) error {
			mode := uint32(0o600)
			_, err := w.Setattr(ctx, id, nil, union.SetAttr{Mode: &mode})
			return err
		})
	}},
	{"xattr", "dir/f", func(w *writable) error {
		return onNode(w.FS, "dir/f", func(id union.ID) error { return w.Setxattr(ctx, id, "user.late", nil, 0) })
	}},
}

func writeAt(p string, off int64, text string) func(*writable) error {
	return func(w *writable) error {
		return onNode(w.FS, p, func(id union.ID) error {
			h, err := w.Open(ctx, id, os.O_WRONLY)
			if err != nil {
				return err
			}
			_, err = h.WriteAt(ctx, []byte(text), off)
			return errors.Join(err, h.Close())
		})
	}
}

func unlink(p string) func(*writable) error {
	return func(w *writable) error {
		return inParent(w.FS, p, func(dir union.ID, name string) error { return w.Unlink(ctx, dir, name) })
	}
}

func rename(from, to string) func(*writable) error {
	return func(w *writable) error {
		return inParent(w.FS, from, func(oldDir union.ID, oldName string) error {
			return inParent(w.FS, to, func(newDir union.ID, newName string) error {
				return w.Rename(ctx, oldDir, oldName, newDir, newName, 0)
			})
		})
	}
}

// TestMomentBeside: nobody keeps what changes beside a commit, so it is named.
func TestMomentBeside(t *testing.T) {
	for _, d := range disturbances {
		t.Run(d.name, func(t *testing.T) {
			w := checkedUpper(t)
			up, err := union.OpenUpper(filepath.Join(w.dir, "upper"), "", union.UpperOptions{ReadOnly: true})
			must(t, err)
			defer up.Close()
			beside := union.New(w.tree, up)
			defer func() { check(t, beside.Close()) }()
			var tar bytes.Buffer
			result, err := writeTar(beside, &tamper{&tar, func() { must(t, d.do(w)) }}, union.TarOptions{})
			must(t, err)
			if !slices.ContainsFunc(result.Losses, func(l union.Loss) bool { return l.Path == d.path }) {
				t.Errorf("losses: %v", result.Losses)
			}
			readMembers(t, tar.Bytes())
		})
	}
}

// TestMoment: an FS that takes part gives the tar of the moment, whatever happens after it.
func TestMoment(t *testing.T) {
	for _, d := range disturbances {
		t.Run(d.name, func(t *testing.T) {
			w := checkedUpper(t)
			var before, after bytes.Buffer
			_, err := writeTar(w.FS, &before, union.TarOptions{})
			must(t, err)
			result, err := writeTar(w.FS, &tamper{&after, func() { must(t, d.do(w)) }}, union.TarOptions{})
			must(t, err)
			if len(result.Losses) > 0 {
				t.Errorf("losses: %v", result.Losses)
			}
			if !bytes.Equal(before.Bytes(), after.Bytes()) {
				t.Error("what happened after the moment is in the tar, or something is missing")
			}
			nothingLeft(t, w)
		})
	}
}

// nothingLeft looks for what a moment left in the work directory.
func nothingLeft(t *testing.T, w *writable) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(w.dir, "work", "#*"))
	must(t, err)
	if len(names) > 0 {
		t.Errorf("left in the work directory: %v", names)
	}
}

func TestMomentIsOne(t *testing.T) {
	w := checkedUpper(t)
	m, err := w.Mark(ctx)
	must(t, err)
	if _, err := w.Mark(ctx); !errors.Is(err, union.ErrMarked) {
		t.Errorf("a second one: %v", err)
	}
	must(t, unlink("new")(w))
	m.Close()
	nothingLeft(t, w)
	m, err = w.Mark(ctx)
	must(t, err)
	m.Close()
}

// TestMomentHidesItsLinks: an open file that lost its name has no links, whatever the moment keeps.
func TestMomentHidesItsLinks(t *testing.T) {
	w := checkedUpper(t)
	id, err := at(w.FS, "new")
	must(t, err)
	m, err := w.Mark(ctx)
	must(t, err)
	defer m.Close()
	must(t, unlink("new")(w))
	a, err := w.Getattr(ctx, id, nil)
	must(t, err)
	if a.Nlink != 0 {
		t.Errorf("%d links", a.Nlink)
	}
}

// TestMomentKeepsBlocks overwrites blocks of a large file in several places, before and while it is read.
func TestMomentKeepsBlocks(t *testing.T) {
	w := openWritable(t, mergeText(t, "dir d"), t.TempDir())
	defer w.close(t)
	const size = 3<<20 + 12345
	text := make([]byte, size)
	for i := range text {
		text[i] = byte(i / 4096)
	}
	copy(text[1<<20:2<<20], make([]byte, 1<<20)) // a hole
	_, _, h, err := w.Create(ctx, me, union.Root, "big", os.O_RDWR, 0o600)
	must(t, err)
	defer h.Close()
	for _, span := range [][2]int{{0, 1 << 20}, {2 << 20, size}} {
		_, err = h.WriteAt(ctx, text[span[0]:span[1]], int64(span[0]))
		must(t, err)
	}
	for i, off := range []int64{0, 4095, 1 << 20, 1<<20 + 300000, size - 1, size, size + 1<<20} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			m, err := w.Mark(ctx)
			must(t, err)
			defer m.Close()
			old := content(t, w.FS, lookup(t, w, "big"), sizeOf(t, w, "big"))
			_, err = h.WriteAt(ctx, []byte("overwritten"), off)
			must(t, err)
			var tar bytes.Buffer
			again := &tamper{&tar, nil}
			again.do = func() { // the header comes first
				_, err := h.WriteAt(ctx, bytes.Repeat([]byte{byte(i)}, 700000), off/2)
				must(t, err)
			}
			_, err = m.WriteTar(ctx, again, union.TarOptions{})
			must(t, err)
			if got := find(readMembers(t, tar.Bytes()), "big").body; !bytes.Equal(got, old) {
				t.Error("other content than at the moment")
			}
		})
	}
}

func lookup(t *testing.T, w *writable, p string) union.ID {
	t.Helper()
	id, err := at(w.FS, p)
	must(t, err)
	return id
}

func sizeOf(t *testing.T, w *writable, p string) int64 {
	t.Helper()
	a, err := w.Getattr(ctx, lookup(t, w, p), nil)
	must(t, err)
	return a.Size
}

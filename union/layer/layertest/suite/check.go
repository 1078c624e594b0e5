package suite

import (
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/union/layer"
)

// sparseText has files with a hole first, last, throughout, everywhere, and none.
func sparseText(format string) string {
	text := ""
	for i, file := range []string{
		`2MiB 1MiB:"in the middle"`,
		`1MiB 0:"at the start"`,
		`1048576 1048573:"end"`,
		`1MiB`,
		`6 0:"nohole"`,
		many,
	} {
		text += fmt.Sprintf("sparse d/%d %s sparse=%s\n", i, file, format)
	}
	return text + "dir d\nfile e \"behind them\""
}

// checkSparse compares as other cases do, and wants to see the holes.
func checkSparse(format string) func(*testing.T, Layer) {
	return func(t *testing.T, l Layer) {
		c := testCase{want: sparseText(format)}
		compare(t, c.expected(t), dump(t, l))
		dir, _ := l.Lookup(layer.Root, "d")
		for name, id := range l.Children(dir) {
			size := l.Entry(id).Size
			if data := dataBytes(l, id); name != "4" && data > size/2 {
				t.Errorf("d/%s: %d of %d bytes are said to be data", name, data, size)
			}
		}
	}
}

// dataBytes is how much of a file NextData calls data.
func dataBytes(l Layer, id layer.ID) (n int64) {
	for at := int64(0); at < l.Entry(id).Size; {
		start, end := l.NextData(id, at)
		if end <= start {
			break
		}
		n += end - start
		at = end
	}
	return n
}

// checkBelowSymlink holds an entry below a symlink of its own layer to what is
// certain: its content is shown once, inside the layer, and nothing that was
// there is lost. Extractors follow the symlink within the root; a reader may
// put a directory in its place, or leave the entry out and say so.
func checkBelowSymlink(t *testing.T, l Layer) {
	dump(t, l)
	found := 0
	for _, dir := range []string{"", "d", "l"} {
		id, ok := layer.Root, true
		if dir != "" {
			id, ok = l.Lookup(layer.Root, dir)
		}
		if ok && l.Entry(id).Mode&unix.S_IFMT == unix.S_IFDIR {
			found += wantContent(t, l, id, "g", "new")
		}
	}
	if found == 0 && len(l.Defects()) == 0 || found > 1 {
		t.Errorf("l/g is shown %d times, defects %v", found, l.Defects())
	}
	if d, ok := l.Lookup(layer.Root, "d"); ok && wantContent(t, l, d, "f", "old") != 1 {
		t.Error("d/f is lost")
	}
}

// wantContent counts 1 when dir has a file of the name, and checks what is in it.
func wantContent(t *testing.T, l Layer, dir layer.ID, name, want string) int {
	t.Helper()
	id, ok := l.Lookup(dir, name)
	if !ok {
		return 0
	}
	b, err := io.ReadAll(io.NewSectionReader(reader{l, id}, 0, l.Entry(id).Size))
	if string(b) != want || err != nil {
		t.Errorf("%s has %q, %v, want %q", name, b, err, want)
	}
	return 1
}

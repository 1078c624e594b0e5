package union_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/layerfs/layerfs/union"
)

// TestBusyUpper: another user of the work directory is refused, one that is about to end is waited for.
func TestBusyUpper(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: copy-up keeps owners")
	}
	tree := mergeText(t, "dir d")
	w := openWritable(t, tree, t.TempDir())
	open := func() (*union.Upper, error) {
		return union.OpenUpper(filepath.Join(w.dir, "upper"), filepath.Join(w.dir, "work"), union.UpperOptions{Base: tree.Digest()})
	}
	if _, err := open(); !errors.Is(err, union.ErrBusy) {
		t.Errorf("two at once: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { w.close(t) })
	u, err := open()
	must(t, err)
	must(t, u.Close())
}

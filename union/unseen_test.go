package union_test

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// unseenFile creates a file that is written to without the FS: through its descriptor.
func unseenFile(t *testing.T, w *writable, name string) (id union.ID, fd int) {
	t.Helper()
	id, _, h, err := w.Create(ctx, me, union.Root, name, os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	if !h.WriteUnseen(false) {
		t.Fatal("refused with no commit under way")
	}
	fd, _ = h.Fd()
	pwrite(t, fd, "as it was")
	return id, fd
}

func pwrite(t *testing.T, fd int, text string) {
	t.Helper()
	if _, err := unix.Pwrite(fd, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// tarOf is what a commit has at a path, and what it lost.
func tarOf(t *testing.T, m *union.Moment, name string) (string, []union.Loss) {
	t.Helper()
	var tar bytes.Buffer
	result, err := m.WriteTar(ctx, &tar, union.TarOptions{})
	must(t, err)
	if len(result.Losses) > 0 {
		return "", result.Losses
	}
	return string(find(readMembers(t, tar.Bytes()), name).body), nil
}

// TestUnseenWrites: a file that is written to without a call of ours after the marking is as it was.
func TestUnseenWrites(t *testing.T) {
	w := checkedUpper(t)
	_, fd := unseenFile(t, w, "log")
	m, err := w.Mark(ctx)
	must(t, err)
	defer m.Close()
	pwrite(t, fd, "LATER, AND LONGER")
	if got, lost := tarOf(t, m, "log"); got != "as it was" || lost != nil {
		t.Errorf("%q, losses %v", got, lost)
	}
	m.Close()
	nothingLeft(t, w)
}

// TestUnseenMoves: a file that changed after it was copied makes a marking fail, and the last one name it.
func TestUnseenMoves(t *testing.T) {
	w := checkedUpper(t)
	id, fd := unseenFile(t, w, "log")
	move := func() { pwrite(t, fd, "other") }
	if m, err := w.MarkAfter(ctx, move, false); err == nil {
		m.Close()
		t.Fatal("marked as if it had held still")
	}
	m, err := w.MarkAfter(ctx, move, true)
	must(t, err)
	if _, lost := tarOf(t, m, "log"); len(lost) != 1 || lost[0].Path != "log" {
		t.Errorf("losses: %v", lost)
	}
	m.Close()
	w.SeenAgain(id)
	m, err = w.MarkAfter(ctx, move, false)
	must(t, err)
	defer m.Close()
	if got, lost := tarOf(t, m, "log"); got != "other was" || lost != nil {
		t.Errorf("seen again: %q, losses %v", got, lost)
	}
}

// TestUnseenInCommit: during a commit a file becomes unseen only if there is no choice, and is kept then.
func TestUnseenInCommit(t *testing.T) {
	w := checkedUpper(t)
	m, err := w.Mark(ctx)
	must(t, err)
	defer m.Close()
	h, err := w.Open(ctx, lookup(t, w, "new"), os.O_WRONLY)
	must(t, err)
	defer h.Close()
	old := string(content(t, w.FS, lookup(t, w, "new"), sizeOf(t, w, "new")))
	if h.WriteUnseen(false) {
		t.Error("not refused")
	}
	if !h.WriteUnseen(true) {
		t.Error("refused, though there was no choice")
	}
	fd, _ := h.Fd()
	pwrite(t, fd, "NEW")
	if got, lost := tarOf(t, m, "new"); got != old || lost != nil {
		t.Errorf("%q, not %q; losses %v", got, old, lost)
	}
}

// TestUnseenGone: a file without a name is in no commit, and in nobody's way.
func TestUnseenGone(t *testing.T) {
	w := checkedUpper(t)
	unseenFile(t, w, "gone")
	must(t, unlink("gone")(w))
	w.StillUnseen(1 << 40) // of a server before this one, and gone since
	m, err := w.Mark(ctx)
	must(t, err)
	defer m.Close()
	var tar bytes.Buffer
	_, err = m.WriteTar(ctx, &tar, union.TarOptions{})
	must(t, err)
	if slices.ContainsFunc(readMembers(t, tar.Bytes()), named("gone")) {
		t.Error("it is in the layer")
	}
}

package fuse

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// A fakeFile is an opened file; fd -1: lower.
type fakeFile struct {
	fd     int
	commit bool // is under way
	must   int  // WriteUnseen calls that left no choice
}

func (f *fakeFile) Fd() (int, bool) { return f.fd, f.fd >= 0 }

func (f *fakeFile) WriteUnseen(must bool) bool {
	if must {
		f.must++
	}
	return must || !f.commit
}

// fakeKernel gives out backing IDs.
type fakeKernel struct {
	last  int32
	ids   map[int32]bool
	seen  int
	errno syscall.Errno
}

func newFakeModes(kept *os.File) (*modes, *fakeKernel) {
	k := &fakeKernel{ids: map[int32]bool{}}
	log := slog.New(slog.DiscardHandler)
	m := newModes(newModeTable(kept, log), log)
	m.register = func(int) (int32, syscall.Errno) {
		if k.errno != 0 {
			return 0, k.errno
		}
		k.last++
		k.ids[k.last] = true
		return k.last, 0
	}
	m.unregister = func(id int32) syscall.Errno { delete(k.ids, id); return 0 }
	m.seen = func(uint64) { k.seen++ }
	return m, k
}

func tempFile(t *testing.T, mode os.FileMode) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Chmod(mode); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFirstMode checks how an inode that nobody has open is opened.
func TestFirstMode(t *testing.T) {
	plain, setuid := int(tempFile(t, 0o644).Fd()), int(tempFile(t, 0o755|os.ModeSetuid).Fd())
	for _, c := range []struct {
		name  string
		file  fakeFile
		flags uint32
		fresh bool
		want  uint32
	}{
		{"lower", fakeFile{fd: -1}, syscall.O_RDONLY, false, cached},
		{"upper, to read", fakeFile{fd: plain}, syscall.O_RDONLY, false, gofuse.FOPEN_PASSTHROUGH},
		{"to read in a commit", fakeFile{fd: plain, commit: true}, syscall.O_RDONLY, false, gofuse.FOPEN_PASSTHROUGH},
		{"new", fakeFile{fd: plain}, syscall.O_WRONLY, true, gofuse.FOPEN_PASSTHROUGH},
		{"new, to read too", fakeFile{fd: plain}, syscall.O_RDWR, true, gofuse.FOPEN_PASSTHROUGH},
		{"new in a commit", fakeFile{fd: plain, commit: true}, syscall.O_WRONLY, true, 0},
		{"new, to append", fakeFile{fd: plain}, syscall.O_WRONLY | syscall.O_APPEND, true, 0},
		{"in place", fakeFile{fd: plain}, syscall.O_RDWR, false, 0},
		{"setuid", fakeFile{fd: setuid}, syscall.O_WRONLY, true, 0},
	} {
		m, k := newFakeModes(nil)
		flags, id := m.enter(7, &c.file, c.flags, c.fresh)
		if flags != c.want || (id != 0) != (c.want == gofuse.FOPEN_PASSTHROUGH) {
			t.Errorf("%s: flags %#x, backing %d; want %#x", c.name, flags, id, c.want)
		}
		m.leave(7, false)
		if len(k.ids) != 0 || len(m.open) != 0 {
			t.Errorf("%s: %v, %v left", c.name, k.ids, m.open)
		}
	}
}

// TestModesDoNotMix checks that an inode has one mode while it is open.
func TestModesDoNotMix(t *testing.T) {
	f := &fakeFile{fd: int(tempFile(t, 0o644).Fd())}
	m, k := newFakeModes(nil)
	m.enter(7, f, syscall.O_RDONLY, false)
	f.commit = true
	flags, id := m.enter(7, f, syscall.O_RDWR|syscall.O_APPEND, false)
	if flags != gofuse.FOPEN_PASSTHROUGH || id != k.last || f.must != 1 || !m.mayBeMapped(7) {
		t.Errorf("a writer of what is passed through: flags %#x, id %d of %d, must %d", flags, id, k.last, f.must)
	}
	m.leave(7, false)
	m.leave(7, true)
	if len(k.ids) != 1 {
		t.Error("the ID went before the last handle")
	}
	m.leave(7, false)
	if len(k.ids) != 0 || k.seen != 0 {
		t.Errorf("at the end: ids %v; seen %d times, though it may be mapped", k.ids, k.seen)
	}
	if m.forget(7); k.seen != 1 || m.mayBeMapped(7) {
		t.Error("a node that was forgotten is still mapped")
	}
	m.enter(8, &fakeFile{fd: -1}, syscall.O_RDONLY, false)
	if flags, id := m.enter(8, f, syscall.O_RDONLY, false); flags != 0 || id != 0 {
		t.Errorf("copied up while it was open cached: flags %#x, id %d", flags, id)
	}
}

func TestNoPassthrough(t *testing.T) {
	m, k := newFakeModes(nil)
	k.errno = syscall.EPERM
	f := &fakeFile{fd: int(tempFile(t, 0o644).Fd())}
	for node := range uint64(2) {
		if flags, _ := m.enter(node+2, f, syscall.O_RDONLY, false); flags != cached {
			t.Errorf("flags %#x", flags)
		}
	}
	if !m.off {
		t.Error("it would be tried again and again")
	}
}

// TestModesKept checks what a later server knows.
func TestModesKept(t *testing.T) {
	table := tempFile(t, 0o600)
	f := &fakeFile{fd: int(tempFile(t, 0o644).Fd())}
	m, _ := newFakeModes(table)
	m.enter(6, f, syscall.O_RDONLY, false)
	_, id := m.enter(7, f, syscall.O_WRONLY, true)
	m.enter(7, f, syscall.O_RDONLY, false)
	m.enter(8, &fakeFile{fd: -1}, syscall.O_RDONLY, false)
	m.leave(6, false)

	later, k := newFakeModes(table)
	if direct := later.restore(); len(direct) != 1 || direct[0] != 7 {
		t.Fatalf("in passthrough: %v", direct)
	}
	k.last = 100
	if flags, got := later.enter(7, f, syscall.O_RDONLY, false); flags != gofuse.FOPEN_PASSTHROUGH || got != id {
		t.Errorf("flags %#x, id %d, not %d", flags, got, id)
	}
	if flags, _ := later.enter(8, f, syscall.O_RDONLY, false); flags != 0 {
		t.Errorf("of a cached one: flags %#x", flags)
	}
	if later.enter(9, f, syscall.O_RDONLY, false); later.open[9].slot != 0 {
		t.Errorf("slot %d, not the free one", later.open[9].slot)
	}
	for range 3 {
		later.leave(7, false)
	}
	if later.open[7] != nil {
		t.Errorf("%+v is still open", later.open[7])
	}
}

// FuzzModeTable: what is read is what a table with the same slots would write.
// The file is ours alone; it need only not be trusted to be whole.
func FuzzModeTable(f *testing.F) {
	f.Add([]byte("0123456789abcdef0123"))
	f.Add(make([]byte, 3*slotSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<12 { // slots are alike: more say nothing more
			return
		}
		file := tempFile(t, 0o600)
		if _, err := file.Write(b); err != nil {
			t.Fatal(err)
		}
		table := newModeTable(file, slog.New(slog.DiscardHandler))
		for node, o := range table.load() {
			table.put(node, o)
		}
		if table.end != int64(len(b)/slotSize*slotSize) {
			t.Errorf("end %d of %d bytes", table.end, len(b))
		}
		if got, err := os.ReadFile(file.Name()); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%x became %x, %v", b, got, err)
		}
	})
}

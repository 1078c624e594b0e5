package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// A faultyDisk fails where told. Operations are "open", "temp", "load", "rename", "syncdir", "read", "write",
// "truncate" and "sync".
type faultyDisk struct {
	disk
	fail func(op, path string, off int64) error // nil: work
	// short: half of a write is done before it fails.
	short  bool
	failed atomic.Int64
}

func (d *faultyDisk) try(op, path string, off int64) error {
	err := d.fail(op, path, off)
	if err != nil {
		d.failed.Add(1)
	}
	return err
}

func (d *faultyDisk) temp(dir string) (file, error) {
	if err := d.try("temp", dir, 0); err != nil {
		return nil, err
	}
	return d.wrap(d.disk.temp(dir))
}

func (d *faultyDisk) open(path string) (file, error) {
	if err := d.try("open", path, 0); err != nil {
		return nil, err
	}
	return d.wrap(d.disk.open(path))
}

func (d *faultyDisk) wrap(f file, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return &faultyFile{f, d}, nil
}

func (d *faultyDisk) readFile(path string) ([]byte, error) {
	if err := d.try("load", path, 0); err != nil {
		return nil, err
	}
	return d.disk.readFile(path)
}

func (d *faultyDisk) rename(from, to string) error {
	if err := d.try("rename", to, 0); err != nil {
		return err
	}
	return d.disk.rename(from, to)
}

func (d *faultyDisk) sync(dir string) error {
	if err := d.try("syncdir", dir, 0); err != nil {
		return err
	}
	return d.disk.sync(dir)
}

type faultyFile struct {
	file
	d *faultyDisk
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.d.try("read", f.Name(), off); err != nil {
		return 0, err
	}
	return f.file.ReadAt(b, off)
}

func (f *faultyFile) WriteAt(b []byte, off int64) (n int, err error) {
	if err := f.d.try("write", f.Name(), off); err != nil {
		if f.d.short {
			n, _ = f.file.WriteAt(b[:len(b)/2], off)
		}
		return n, err
	}
	return f.file.WriteAt(b, off)
}

func (f *faultyFile) Write(b []byte) (n int, err error) {
	if err := f.d.try("write", f.Name(), -1); err != nil {
		if f.d.short {
			n, _ = f.file.Write(b[:len(b)/2])
		}
		return n, err
	}
	return f.file.Write(b)
}

func (f *faultyFile) Truncate(n int64) error {
	if err := f.d.try("truncate", f.Name(), 0); err != nil {
		return err
	}
	return f.file.Truncate(n)
}

func (f *faultyFile) Sync() error {
	if err := f.d.try("sync", f.Name(), 0); err != nil {
		return err
	}
	return f.file.Sync()
}

// A place is where a fault happens: an operation, and offsets of a pack's file where that matters.
type place struct {
	name     string
	op       string
	from, to int64
	suffix   string // of the path; "": any
}

func places(h header) []place {
	const all = 1 << 60
	list := []place{
		{name: "temp", op: "temp", to: all}, {name: "truncate", op: "truncate", to: all}, {name: "fsync", op: "sync", to: all},
		{name: "fsync of the directory", op: "syncdir", to: all}, {name: "open", op: "open", to: all},
		{name: "load", op: "load", to: all}, {name: "sealed", op: "write", from: -1},
		{name: "rename pack", op: "rename", to: all, suffix: "pack"}, {name: "rename index", op: "rename", to: all, suffix: "index"},
		{name: "rename", op: "rename", to: all},
	}
	for _, op := range []string{"read", "write"} {
		list = append(list, place{name: op + " data", op: op, to: h.size}, place{name: op + " late data", op: op, from: h.size / 2, to: h.size},
			place{name: op + " map", op: op, from: h.mapOff(), to: h.genOff()}, place{name: op + " generations", op: op, from: h.genOff(), to: h.usedOff()},
			place{name: op + " times", op: op, from: h.usedOff(), to: h.headerOff()}, place{name: op + " header", op: op, from: h.headerOff(), to: h.fileSize()})
	}
	return list
}

func (p place) is(op, path string, off int64) bool {
	return op == p.op && off >= p.from && (off < p.to || p.from < 0 && off == p.from) && strings.HasSuffix(path, p.suffix)
}

// TestDiskFaults: whatever fails on the cache's disk, and whenever, readers get the right bytes, and what is left
// behind is right when the disk works again.
func TestDiskFaults(t *testing.T) {
	b := evenBlob(700, 50, 50000)
	h := header{size: int64(len(b.data)), units: int64(len(b.units))}
	fired := map[string]int64{}
	for _, fault := range []struct {
		err   error
		short bool
	}{{syscall.ENOSPC, false}, {syscall.EIO, false}, {syscall.EDQUOT, false}, {syscall.ENOSPC, true}} {
		for _, p := range places(h) {
			for _, when := range []string{"always", "opened", "sometimes"} {
				t.Run(fmt.Sprintf("%s/%v/short=%v/%s", p.name, fault.err, fault.short, when), func(t *testing.T) {
					fired[p.name] += faultyRound(t, b, p, fault.err, fault.short, when)
				})
			}
		}
	}
	for _, p := range places(h) {
		if fired[p.name] == 0 {
			t.Errorf("%s: no fault happened", p.name)
		}
	}
}

func faultyRound(t *testing.T, b *blob, p place, fault error, short bool, when string) (faults int64) {
	dir := t.TempDir()
	var on atomic.Bool
	r := rand.New(rand.NewPCG(7, 7))
	s := openStore(t, dir, Options{MaxBytes: 1 << 20})
	d := &faultyDisk{disk: osDisk{}, short: short, fail: func(op, path string, off int64) error {
		if on.Load() && p.is(op, path, off) && (when != "sometimes" || off/blockSize%3 == 0) {
			return &fs.PathError{Op: op, Path: path, Err: fault}
		}
		return nil
	}}
	s.disk = d
	if err := errors.Join(s.Save("old", []byte("old")), s.PutIndex(b.d, []byte("old"))); err != nil {
		t.Fatal(err)
	}
	on.Store(when != "opened")
	pack := openPack(t, s, b)
	faultyReads(t, r, b, pack)
	on.Store(true)
	faultyReads(t, r, b, pack)
	putErr, saveErr := s.PutIndex(b.d, []byte("new")), s.Save("old", []byte("new"))
	for _, err := range []error{putErr, saveErr} {
		if err != nil && (!errors.Is(err, fault) || !Refused(err)) {
			t.Errorf("save: %v", err)
		}
	}
	letGo(pack)
	s.bg.Wait()
	on.Store(false)

	s = openStore(t, dir, Options{}) // and the disk works again
	pack = openPack(t, s, b)
	b.check(t, pack, 0, pack.Size(), b.fill)
	index, err := s.Index(b.d)
	checkKept(t, "index", string(index), err, putErr)
	record, err := s.Load("old")
	checkKept(t, "record", string(record), err, saveErr)
	if list, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(list) != 0 {
		t.Errorf("left behind: %v", list)
	}
	if _, err := s.Verify(t.Context(), func(d Damage) error { t.Errorf("damaged: %+v", d); return nil }); err != nil {
		t.Error(err)
	}
	return d.failed.Load()
}

// checkKept: what could not be replaced is still there.
func checkKept(t *testing.T, what, got string, err, saved error) {
	t.Helper()
	want := "new"
	if saved != nil {
		want = "old"
	}
	if err != nil || got != want {
		t.Errorf("%s: %q, %v; want %q", what, got, err, want)
	}
}

func faultyReads(t *testing.T, r *rand.Rand, b *blob, p *Pack) {
	t.Helper()
	for range 60 {
		off := r.Int64N(int64(len(b.data)))
		got := make([]byte, min(r.Int64N(200000)+1, int64(len(b.data))-off))
		if _, err := p.Read(t.Context(), got, off, b.fill); err != nil {
			t.Fatalf("Read(%d, %d): %v", off, len(got), err)
		}
		if !bytes.Equal(got, b.data[off:off+int64(len(got))]) {
			t.Fatalf("Read(%d, %d): wrong bytes", off, len(got))
		}
	}
}

// TestDiskFaultsWriter: a layer that is written whole is read right whatever the disk does, if it can be had in parts;
// otherwise it is there or not.
func TestDiskFaultsWriter(t *testing.T) {
	b := evenBlob(701, 40, UnitSize)
	for i := range b.units {
		b.units[i].Sum, b.units[i].Vouched = [32]byte{}, true
	}
	h := header{size: int64(len(b.data)), units: int64(len(b.units))}
	for _, fault := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, p := range places(h) {
			for _, parts := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%v/parts=%v", p.name, fault, parts), func(t *testing.T) {
					s := openStore(t, t.TempDir(), Options{})
					s.disk = &faultyDisk{disk: osDisk{}, fail: func(op, path string, off int64) error {
						if p.is(op, path, off) {
							return fault
						}
						return nil
					}}
					faultyWriter(t, s, b, parts)
				})
			}
		}
	}
}

func faultyWriter(t *testing.T, s *Store, b *blob, parts bool) {
	w, err := s.Create(b.d)
	if err != nil {
		t.Fatal(err)
	}
	w.MayLose(parts)
	_, err = w.Write(b.data)
	var p *Pack
	if err == nil {
		p, err = w.Commit([]byte("index"))
	}
	if err != nil && !Refused(err) {
		t.Fatal(err)
	}
	if p != nil {
		defer letGo(p)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if parts {
		q := openPack(t, s, b)
		got := make([]byte, len(b.data))
		if _, err := q.Read(t.Context(), got, 0, b.fill); err != nil || !bytes.Equal(got, b.data) {
			t.Errorf("Read: %v", err)
		}
		return
	}
	if p == nil {
		return
	}
	got := make([]byte, len(b.data))
	if _, err := p.Read(t.Context(), got, 0, nil); err == nil && !bytes.Equal(got, b.data) {
		t.Error("wrong bytes")
	}
}

package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const baseLayer = `
dir     usr 0755
dir     usr/bin 0755
file    usr/bin/tool "#!/bin/sh\n" 04755 1:2 @1600000000.123456789
link    usr/bin/tool2 usr/bin/tool
file    usr/plain "some text"
symlink usr/here bin/tool
dir     many
sparse  usr/sparse 1MiB 524288:"middle"
random  usr/random 3MiB
fifo    usr/fifo
dir     old
file    old/gone "x"
file    old/kept "old"
`

const topLayer = `
whiteout old/gone
file     old/kept "new"
dir      usr/empty 01777
`

// manyFiles adds a directory with n files.
func manyFiles(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "file many/file%04d %q\n", i, strings.Repeat("x", i))
	}
	return b.String()
}

// walk does what find, ls -l and cat do to every name, and returns how many there are.
func walk(t *testing.T, root string) (n int) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n++
		if _, err := d.Info(); err != nil {
			return err
		}
		switch d.Type() {
		case fs.ModeSymlink:
			_, err = os.Readlink(path)
		case 0:
			_, err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestReadOnlyWarm is what read-only mounts are made for: what was once looked at costs no request.
func TestReadOnlyWarm(t *testing.T) {
	v := readOnly(t, baseLayer+manyFiles(500), topLayer)
	c := start(t, v)
	cold := walk(t, v.Mountpoint)
	requests := c.requests()
	if want := 500 + 14; cold != want {
		t.Errorf("found %d names, want %d", cold, want)
	}
	for _, op := range []string{"OPEN", "OPENDIR"} { // the first answer is the last
		if requests[op] != 1 {
			t.Errorf("%d %s in %v", requests[op], op, requests)
		}
	}
	for _, op := range []string{"RELEASE", "RELEASEDIR", "READDIR", "GETATTR"} {
		if requests[op] > 1 {
			t.Errorf("%d %s in %v", requests[op], op, requests)
		}
	}
	if warm := walk(t, v.Mountpoint); warm != cold {
		t.Errorf("found %d names, then %d", cold, warm)
	}
	if requests := c.requests(); len(requests) != 0 {
		t.Errorf("a warm walk made requests: %v", requests)
	}
}

func TestReadOnlyTree(t *testing.T) {
	v := readOnly(t, baseLayer, topLayer)
	start(t, v)
	at := func(name string) string { return filepath.Join(v.Mountpoint, name) }
	var a, b unix.Stat_t
	if err := errors.Join(unix.Lstat(at("usr/bin/tool"), &a), unix.Stat(at("usr/bin/tool2"), &b)); err != nil {
		t.Fatal(err)
	}
	if a != b || a.Nlink != 2 || a.Mode != unix.S_IFREG|0o4755 || a.Uid != 1 || a.Gid != 2 || a.Mtim != (unix.Timespec{Sec: 1600000000, Nsec: 123456789}) {
		t.Errorf("hardlinks: %+v and %+v", a, b)
	}
	for name, want := range map[string]string{"old/kept": "new", "usr/here": "#!/bin/sh\n", "usr/plain": "some text"} {
		if got, err := os.ReadFile(at(name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := os.Lstat(at("old/gone")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a name under a whiteout: %v", err)
	}
	if b, err := os.ReadFile(at("usr/random")); err != nil || len(b) != 3<<20 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	for name, err := range map[string]error{
		"mkdir": os.Mkdir(at("new"), 0o755), "remove": os.Remove(at("usr/plain")), "chmod": os.Chmod(at("usr"), 0),
		"rename": os.Rename(at("usr"), at("u")), "truncate": os.Truncate(at("usr/plain"), 0),
		"symlink": os.Symlink("x", at("l")), "link": os.Link(at("usr/plain"), at("l")),
	} {
		wantErrno(t, name, err, unix.EROFS)
	}
}

func TestReadOnlyDirents(t *testing.T) {
	v := readOnly(t, baseLayer+manyFiles(2000))
	start(t, v)
	for _, dir := range []string{"", "usr", "many"} {
		entries, err := os.ReadDir(filepath.Join(v.Mountpoint, dir))
		if err != nil {
			t.Fatal(err)
		}
		if dir == "many" && len(entries) != 2000 {
			t.Errorf("%d entries", len(entries))
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			if e.Type() != info.Mode().Type() {
				t.Errorf("%s: listed as %v, is %v", e.Name(), e.Type(), info.Mode())
			}
		}
	}
	checkInodes(t, filepath.Join(v.Mountpoint, "usr"))
}

// checkInodes compares d_ino with st_ino, of "." and ".." too.
func checkInodes(t *testing.T, dir string) {
	t.Helper()
	f := open(t, dir, os.O_RDONLY)
	buf := make([]byte, 64<<10)
	n, err := syscall.Getdents(int(f.Fd()), buf)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for b := buf[:n]; len(b) > 0; seen++ {
		ino, reclen := binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint16(b[16:])
		name, _, _ := strings.Cut(string(b[19:reclen]), "\x00")
		var st unix.Stat_t
		if err := unix.Lstat(dir+"/"+name, &st); err != nil {
			t.Fatal(err)
		}
		if st.Ino != ino {
			t.Errorf("%s: d_ino %d, st_ino %d", name, ino, st.Ino)
		}
		b = b[reclen:]
	}
	if seen < 3 {
		t.Errorf("only %d entries", seen)
	}
}

func TestReadOnlySeek(t *testing.T) {
	v := readOnly(t, baseLayer)
	start(t, v)
	f := open(t, filepath.Join(v.Mountpoint, "usr/sparse"), os.O_RDONLY)
	data, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil || data == 0 || data > 524288 {
		t.Errorf("data at %d, %v", data, err)
	}
	hole, err := unix.Seek(int(f.Fd()), 524288, unix.SEEK_HOLE)
	if err != nil || hole <= 524288 || hole >= 1<<20 {
		t.Errorf("hole at %d, %v", hole, err)
	}
	_, err = unix.Seek(int(f.Fd()), 1<<20, unix.SEEK_DATA)
	wantErrno(t, "data after the end", err, unix.ENXIO)
}

func TestReadOnlyXattrs(t *testing.T) {
	get := func(v served, name string) (string, error) {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(v.Mountpoint, "f"), name, buf)
		return string(buf[:max(n, 0)]), err
	}
	with := readOnly(t, `file f "x" user.a="value" security.b="v2"`)
	start(t, with)
	if got, err := get(with, "user.a"); got != "value" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	_, err := get(with, "user.b")
	wantErrno(t, "no such attribute", err, unix.ENODATA)
	_, err = unix.Lgetxattr(filepath.Join(with.Mountpoint, "f"), "user.a", make([]byte, 2))
	wantErrno(t, "a small buffer", err, unix.ERANGE)
	if n, err := unix.Lgetxattr(filepath.Join(with.Mountpoint, "f"), "user.a", nil); n != 5 || err != nil {
		t.Errorf("the length alone: %d, %v", n, err)
	}
	buf := make([]byte, 100)
	if n, err := unix.Llistxattr(filepath.Join(with.Mountpoint, "f"), buf); err != nil || string(buf[:n]) != "user.a\x00security.b\x00" {
		t.Errorf("list %q, %v", buf[:max(n, 0)], err)
	}
	without := readOnly(t, `file f "x"`)
	c := start(t, without)
	for range 3 {
		_, err = get(without, "user.a")
		wantErrno(t, "a tree without attributes", err, unix.EOPNOTSUPP)
	}
	if n := c.requests()["GETXATTR"]; n != 1 {
		t.Errorf("%d requests for attributes", n)
	}
}

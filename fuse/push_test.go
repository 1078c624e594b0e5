package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestPush: after a listing, small files are in the page cache without a READ, and hold what they should.
func TestPush(t *testing.T) {
	const files = 300
	v := readOnly(t, baseLayer+manyFiles(files), topLayer)
	c := start(t, v)
	dir := filepath.Join(v.Mountpoint, "many")
	if _, err := os.ReadDir(dir); err != nil {
		t.Fatal(err)
	}
	c.requests() // what came until now
	last := filepath.Join(dir, fmt.Sprintf("file%04d", files-1))
	for begun := time.Now(); !resident(t, last) && time.Since(begun) < time.Minute; {
		time.Sleep(10 * time.Millisecond) // nobody says when the last one is there
	}
	for i := range files {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("file%04d", i)))
		if err != nil || string(b) != strings.Repeat("x", i) {
			t.Fatalf("file %d: %d bytes, %v", i, len(b), err)
		}
	}
	if reads := c.requests()["READ"]; reads > files/10 {
		t.Errorf("%d READ for %d files that were pushed", reads, files)
	}
}

// resident tells whether the first page of a file is in the page cache. It reads nothing.
func resident(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(page) }()
	var in [1]byte
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&page[0])), 1, uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		t.Fatal(errno)
	}
	return in[0]&1 != 0
}

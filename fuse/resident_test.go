package fuse

import (
	"bytes"
	"log/slog"
	"os"
	"testing"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestResident finds the library's pool, and what is taken from it in memory.
func TestResident(t *testing.T) {
	const size = 8 << 20
	page := os.Getpagesize()
	s := &gofuse.Server{}
	pool := readPool(s)
	if pool == nil {
		t.Fatal("the library has no pool of read buffers by that name any more")
	}
	pool.New = func() any {
		b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(b) })
		return b
	}
	var logged bytes.Buffer
	keepResident(s, size/2, slog.New(slog.NewTextHandler(&logged, nil)))
	b := pool.New().([]byte)
	in := make([]byte, size/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), size, uintptr(unsafe.Pointer(&in[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for i := range in[:len(in)/2] {
		if in[i]&1 == 0 {
			t.Fatalf("page %d of a buffer is not in memory", i)
		}
	}
	if logged.Len() > 0 {
		t.Error(logged.String())
	}
}

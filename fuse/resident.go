package fuse

import (
	"log/slog"
	"os"
	"reflect"
	"sync"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// keepResident has the library's read buffers in memory before the kernel copies a request there.
//
// A thread of a process that is being killed may still take a request from the kernel. Where the buffer is
// not in memory the kernel will not fault it in for who must die (a fatal signal is pending, mm/gup.c),
// and fails the request with EIO (fuse_dev_do_read, fs/fuse/dev.c): the one that asked sees an error,
// although the next server is on its way. With the buffer there the copy succeeds, and the request comes again.
//
// The pool is not the library's public face. Where it has another shape nothing is done, and TestResident fails.
func keepResident(s *gofuse.Server, size int, log *slog.Logger) {
	pool := readPool(s)
	if pool == nil || pool.New == nil {
		log.Warn("the library's read buffers are not where they were: who asks while this server is killed may get EIO")
		return
	}
	fresh := pool.New
	pool.New = func() any {
		b := fresh()
		if b, ok := b.([]byte); ok {
			touch(b[:min(len(b), size)])
		}
		return b
	}
}

// residentSize is how much of a buffer requests use: only those that write are longer than a page or two.
func residentSize(readOnly bool) int {
	if readOnly {
		return 16 << 10
	}
	return 2 * maxRequest
}

// touch writes to each page.
func touch(b []byte) {
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 0
	}
	if len(b) > 0 {
		b[len(b)-1] = 0
	}
}

// readPool finds the pool of what requests are read into, or nil.
func readPool(s *gofuse.Server) *sync.Pool {
	f := reflect.ValueOf(s).Elem().FieldByName("readPool")
	if !f.IsValid() || f.Type() != reflect.TypeFor[sync.Pool]() {
		return nil
	}
	return (*sync.Pool)(unsafe.Pointer(f.UnsafeAddr()))
}

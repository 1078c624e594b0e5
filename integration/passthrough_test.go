package integration

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openIn opens a file of a mount, for as long as the test.
func openIn(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func writeString(t *testing.T, f *os.File, s string) {
	t.Helper()
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func wantAt(t *testing.T, f *os.File, want string) {
	t.Helper()
	b := make([]byte, len(want)+1)
	n, err := f.ReadAt(b, 0)
	if got := string(b[:n]); got != want {
		t.Errorf("%s: %q, not %q (%v)", f.Name(), got, want, err)
	}
}

// TestOpenFilesServerKilled: what is open, in passthrough or cached, works on
// after the server's death, and so does opening it again in every way.
func TestOpenFilesServerKilled(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--rw")
	made := openIn(t, dir+"/made", os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	writeString(t, made, "one")
	lower := openIn(t, dir+"/etc/motd", os.O_RDONLY)
	log := openIn(t, dir+"/log", os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	writeString(t, log, "a")
	first := h.only().PID
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	writeString(t, made, "two")
	read := openIn(t, dir+"/made", os.O_RDONLY)
	wantAt(t, read, "onetwo")
	change := openIn(t, dir+"/made", os.O_RDWR)
	if _, err := change.WriteAt([]byte("X"), 0); err != nil {
		t.Fatal(err)
	}
	wantAt(t, read, "Xnetwo")
	if err := errors.Join(made.Sync(), change.Truncate(2)); err != nil {
		t.Fatal(err)
	}
	wantAt(t, read, "Xn")
	writeString(t, openIn(t, dir+"/etc/motd", os.O_WRONLY|os.O_TRUNC), "new")
	wantAt(t, lower, "new")
	writeString(t, log, "b")
	wantAt(t, openIn(t, dir+"/log", os.O_RDONLY), "ab")
	if h.only().PID == first {
		t.Error("the server was not killed")
	}
}

// TestMappedServes checks files that are closed and still mapped, the one way to hold a mode without a descriptor.
func TestMappedServes(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--rw")
	lower, err := os.Open(dir + "/etc/motd")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := unix.Mmap(int(lower.Fd()), 0, 3, unix.PROT_READ, unix.MAP_SHARED)
	if err = errors.Join(err, lower.Close()); err != nil {
		t.Fatal(err)
	}
	writeString(t, openIn(t, dir+"/etc/motd", os.O_WRONLY|os.O_TRUNC), "new")
	wantAt(t, openIn(t, dir+"/etc/motd", os.O_RDONLY), "new")
	if string(pages) != "new" {
		t.Errorf("mapped: %q", pages)
	}
	made := openIn(t, dir+"/made", os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	writeString(t, made, "made")
	stored, err := unix.Mmap(int(made.Fd()), 0, 4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err = errors.Join(err, made.Close(), unix.Munmap(pages)); err != nil {
		t.Fatal(err)
	}
	before := modTime(t, dir+"/made")
	time.Sleep(20 * time.Millisecond) // more than a tick
	copy(stored, "M")
	wantAt(t, openIn(t, dir+"/made", os.O_RDONLY), "Made")
	if !modTime(t, dir+"/made").After(before) {
		t.Error("a store to a mapping left the time as it was")
	}
	h.run("commit", dir, "oci:"+t.TempDir()+"/layout:1") // the mapped file holds still
	if err := unix.Munmap(stored); err != nil {
		t.Fatal(err)
	}
}

func modTime(t *testing.T, path string) time.Time {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.ModTime()
}

// TestCommitOpenWriter: a new file that is open and holds still is committed; one that is written to all the time is named.
func TestCommitOpenWriter(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--rw")
	dest := "oci:" + t.TempDir() + "/layout"
	writeString(t, openIn(t, dir+"/still", os.O_WRONLY|os.O_CREATE|os.O_TRUNC), "content")
	h.run("commit", dir, dest+":1")
	if got := readFile(t, h.mount(dest+":1")+"/still"); got != "content" {
		t.Errorf("%q", got)
	}
	busy := openIn(t, dir+"/busy", os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				close(stopped)
				return
			default:
			}
			if _, err := busy.WriteAt([]byte("again"), 0); err != nil {
				stopped <- err
				return
			}
		}
	}()
	r := h.try("commit", dir, dest+":2")
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	// on a busy machine the writer may have had no time to write
	if r.code != 0 && !strings.Contains(r.stderr, "busy") {
		t.Errorf("exit %d does not name it: %s", r.code, r.stderr)
	}
	t.Logf("exit %d: %s", r.code, r.stderr)
}

package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTmpfile opens files without a name in a lower directory and gives one a name.
func TestTmpfile(t *testing.T) {
	v := writable(t, "dir d 0755")
	c := start(t, v)
	dir := filepath.Join(v.Mountpoint, "d")
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tmpfile")
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 || st.Mode != unix.S_IFREG|0o640 || int(st.Uid) != os.Geteuid() {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := f.WriteString("content"); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o600); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("the directory lists %v, %v", names, err)
	}
	self := fmt.Sprintf("/proc/self/fd/%d", fd)
	wantErrno(t, "a whiteout's name", unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, filepath.Join(dir, ".wh.x"), unix.AT_SYMLINK_FOLLOW), unix.EPERM)
	name := filepath.Join(dir, "name")
	if err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	if got := stat(t, name); got.Ino != st.Ino || got.Nlink != 1 || got.Mode != unix.S_IFREG|0o600 {
		t.Errorf("with a name: %+v", got)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 {
		t.Errorf("removed: %+v, %v", st, err)
	}
	if _, err := f.WriteAt([]byte("C"), 0); err != nil {
		t.Error(err)
	}
	excl, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", excl), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
	wantErrno(t, "link of an O_EXCL file", err, unix.ENOENT)
	_ = unix.Close(excl)
	_ = f.Close()
	for wait := time.Millisecond; c.requests()["open files"] != 0; wait *= 2 { // RELEASE comes when it likes
		if wait > 2*time.Second {
			t.Fatal("files stay open")
		}
		time.Sleep(wait)
	}
}

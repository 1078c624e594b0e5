package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot skips what only the superuser can set up.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// asUser runs f on a thread that belongs to an ordinary user. The thread ends with it.
func asUser(t *testing.T, uid int, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not serve others afterwards
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid))
		if errno == 0 {
			_, _, errno = unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		}
		if errno != 0 {
			done <- errno
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestCopyUpCoherent checks that who opened or mapped a lower file before its
// copy-up sees what is written after, and that the inode stays the same.
func TestCopyUpCoherent(t *testing.T) {
	v := writable(t, `file f "before, before"`)
	start(t, v)
	name := filepath.Join(v.Mountpoint, "f")
	before := stat(t, name)
	r := open(t, name, os.O_RDONLY)
	mapped, err := unix.Mmap(int(r.Fd()), 0, 14, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	if string(mapped) != "before, before" {
		t.Fatalf("mapped %q", mapped)
	}
	w := open(t, name, os.O_RDWR)
	if _, err := w.WriteAt([]byte("AFTER!"), 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 14)
	if _, err := r.ReadAt(buf, 0); err != nil || string(buf) != "AFTER!, before" {
		t.Errorf("the old descriptor reads %q, %v", buf, err)
	}
	if string(mapped) != "AFTER!, before" {
		t.Errorf("the old map shows %q", mapped)
	}
	if after := stat(t, name); after.Ino != before.Ino || after.Size != before.Size {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// TestTruncate empties files by opening them.
func TestTruncate(t *testing.T) {
	v := writable(t, "random big 8MiB\nrandom other 1MiB")
	start(t, v)
	name := filepath.Join(v.Mountpoint, "big")
	if err := os.WriteFile(name, []byte("small"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "small" {
		t.Errorf("%q, %v", b, err)
	}
	if st := stat(t, filepath.Join(v.Upper, "big")); st.Size != 5 {
		t.Errorf("%d bytes in the upper directory", st.Size)
	}
	other := filepath.Join(v.Mountpoint, "other")
	open(t, other, os.O_RDONLY|os.O_TRUNC)
	if st := stat(t, other); st.Size != 0 {
		t.Errorf("O_RDONLY|O_TRUNC left %d bytes", st.Size)
	}
}

func TestPrivilegesGo(t *testing.T) {
	needRoot(t)
	const text = `file f "content" 06777`
	for name, change := range map[string]func(f *os.File) error{
		"write":     func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 0); return err },
		"truncate":  func(f *os.File) error { return f.Truncate(3) },
		"fallocate": func(f *os.File) error { return unix.Fallocate(int(f.Fd()), 0, 0, 100) },
		"O_TRUNC": func(f *os.File) error {
			g, err := os.OpenFile(f.Name(), os.O_WRONLY|os.O_TRUNC, 0)
			return errors.Join(err, g.Close())
		},
		"nothing": func(*os.File) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			v := writable(t, text)
			start(t, v)
			makeReachable(t, v.Mountpoint)
			file := filepath.Join(v.Mountpoint, "f")
			want := uint32(0o777)
			if name == "nothing" {
				want = 0o6777
			}
			if st := stat(t, file); st.Mode&0o7777 != 0o6777 {
				t.Fatalf("mode %o at first", st.Mode)
			}
			asUser(t, 1234, func() {
				f, err := os.OpenFile(file, os.O_RDWR, 0)
				if err == nil {
					err = errors.Join(change(f), f.Close())
				}
				if err != nil {
					t.Error(err)
				}
			})
			// asked for alone: what execve(2) goes by, which a change of size or time does not renew
			var st unix.Statx_t
			if err := unix.Statx(unix.AT_FDCWD, file, 0, unix.STATX_MODE, &st); err != nil || uint32(st.Mode)&0o7777 != want {
				t.Errorf("mode %o, want %o; %v", st.Mode&0o7777, want, err)
			}
		})
	}
	v := writable(t, text)
	start(t, v)
	f := open(t, filepath.Join(v.Mountpoint, "f"), os.O_RDWR)
	if _, err := f.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, f.Name()); st.Mode&0o7777 != 0o6777 {
		t.Errorf("mode %o after a write of the superuser", st.Mode&0o7777)
	}
	if err := f.Chown(5, 6); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, f.Name()); st.Mode&0o7777 != 0o777 || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("mode %o, owner %d:%d after chown", st.Mode&0o7777, st.Uid, st.Gid)
	}
}

// makeReachable lets other users through the test's directories.
func makeReachable(t *testing.T, dir string) {
	t.Helper()
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCapabilitiesGo(t *testing.T) {
	needRoot(t)
	v := writable(t, `file f "content" 0777`)
	start(t, v)
	name := filepath.Join(v.Mountpoint, "f")
	// struct vfs_cap_data, revision 2, of linux/capability.h: CAP_NET_RAW
	cap2 := append([]byte{1, 0, 0, 2, 0, 0x20}, make([]byte, 14)...)
	if err := unix.Setxattr(name, "security.capability", cap2, 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(name, "security.capability", buf); err != nil || !bytes.Equal(buf[:n], cap2) {
		t.Fatalf("%x, %v", buf[:max(n, 0)], err)
	}
	if err := os.WriteFile(name, []byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := unix.Getxattr(name, "security.capability", buf)
	wantErrno(t, "capabilities of a file written to", err, unix.ENODATA)
}

// TestWriteRequests counts what small writes in place cost: one request each, without a
// question for capabilities before every one.
func TestWriteRequests(t *testing.T) {
	v := writable(t, `file f "content"`)
	c := start(t, v)
	f := open(t, filepath.Join(v.Mountpoint, "f"), os.O_RDWR)
	c.requests()
	const writes = 50
	for range writes {
		if _, err := f.Write([]byte("some bytes")); err != nil {
			t.Fatal(err)
		}
	}
	requests := c.requests()
	if n := requests["open files"]; n != 1 {
		t.Errorf("%d open files", n)
	}
	if requests["WRITE"] != writes || requests["GETXATTR"] > 1 || len(requests) > 3 {
		t.Errorf("%d writes made %v", writes, requests)
	}
}

// TestPassthroughRequests: a new file is written and read without us.
func TestPassthroughRequests(t *testing.T) {
	needRoot(t)
	v := writable(t)
	c := start(t, v)
	f := open(t, filepath.Join(v.Mountpoint, "f"), os.O_RDWR|os.O_CREATE)
	c.requests()
	buf := make([]byte, 100)
	for i := range int64(50) {
		if _, err := f.WriteAt(buf, i*100); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(buf, i*100); err != nil {
			t.Fatal(err)
		}
	}
	requests := c.requests()
	if requests["WRITE"]+requests["READ"] > 0 {
		t.Skipf("needs passthrough (Linux 6.9, an upper directory that is not stacked): %v", requests)
	}
	if n := stat(t, f.Name()).Size; n != 5000 {
		t.Errorf("%d bytes", n)
	}
}

// TestAttributesFresh checks what the kernel must ask for again although it was told to keep it for long.
func TestAttributesFresh(t *testing.T) {
	v := writable(t, "dir d\nfile d/a \"x\"\nlink d/b d/a\nfile d/c \"y\"\nlink d/e d/c")
	start(t, v)
	at := func(name string) string { return filepath.Join(v.Mountpoint, "d", name) }
	walk(t, v.Mountpoint)
	if n := stat(t, at("a")).Nlink; n != 2 {
		t.Errorf("%d links at first", n)
	}
	dir := stat(t, at(""))
	if err := os.Remove(at("b")); err != nil {
		t.Fatal(err)
	}
	if n := stat(t, at("a")).Nlink; n != 1 {
		t.Errorf("%d links after unlink", n)
	}
	if stat(t, at("")).Mtim == dir.Mtim {
		t.Error("the directory's time has not changed")
	}
	if err := os.Link(at("a"), at("f")); err != nil {
		t.Fatal(err)
	}
	if a, f := stat(t, at("a")), stat(t, at("f")); a != f || a.Nlink != 2 {
		t.Errorf("after link: %+v, %+v", a, f)
	}
	if err := os.Rename(at("a"), at("c")); err != nil {
		t.Fatal(err)
	}
	if n := stat(t, at("e")).Nlink; n != 1 {
		t.Errorf("%d links of a file that was renamed over", n)
	}
	if _, err := os.Lstat(at("a")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the old name: %v", err)
	}
	if err := os.WriteFile(at("a"), []byte("again"), 0o644); err != nil {
		t.Error(err)
	}
}

func TestSetattr(t *testing.T) {
	v := writable(t, "file f \"x\"\nsymlink l f")
	start(t, v)
	for _, name := range []string{"f", "l"} {
		path := filepath.Join(v.Mountpoint, name)
		times := []unix.Timespec{{Sec: -5, Nsec: 7}, {Sec: 1 << 33, Nsec: 999999999}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
		if st := stat(t, path); st.Atim != times[0] || st.Mtim != times[1] {
			t.Errorf("%s: times %v, %v", name, st.Atim, st.Mtim)
		}
		times[0].Nsec, times[1].Nsec = unix.UTIME_OMIT, unix.UTIME_NOW
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
		if st := stat(t, path); st.Atim.Sec != -5 || st.Mtim.Sec == 1<<33 {
			t.Errorf("%s: times %v, %v after UTIME_OMIT and UTIME_NOW", name, st.Atim, st.Mtim)
		}
	}
	path := filepath.Join(v.Mountpoint, "f")
	if err := os.Chmod(path, 0o640); err != nil || stat(t, path).Mode != unix.S_IFREG|0o640 {
		t.Errorf("mode %o, %v", stat(t, path).Mode, err)
	}
}

// TestRemoveWhileListing is rm -r of a directory that is larger than one answer.
func TestRemoveWhileListing(t *testing.T) {
	v := writable(t, "dir many\n"+manyFiles(3000))
	start(t, v)
	dir := filepath.Join(v.Mountpoint, "many")
	for i := range 500 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("new%d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, dir, os.O_RDONLY)
	n := 0
	for {
		names, err := d.Readdirnames(100)
		if err != nil {
			break
		}
		for _, name := range names {
			n++
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n != 3500 {
		t.Errorf("listed %d names", n)
	}
	if err := os.Remove(dir); err != nil {
		t.Error(err)
	}
}

func TestNodes(t *testing.T) {
	needRoot(t)
	v := writable(t)
	v.Flags = []string{"dev"}
	start(t, v)
	at := func(name string) string { return filepath.Join(v.Mountpoint, name) }
	dev := unix.Mkdev(259, 70000)
	for name, mode := range map[string]uint32{"c": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO, "s": unix.S_IFSOCK} {
		if err := unix.Mknod(at(name), mode|0o600, int(dev)); err != nil {
			t.Fatal(name, err)
		}
		st := stat(t, at(name))
		if st.Mode != mode|0o600 || st.Rdev != dev && (name == "c" || name == "b") {
			t.Errorf("%s: mode %o, device %#x", name, st.Mode, st.Rdev)
		}
	}
	wantErrno(t, "a whiteout", unix.Mknod(at("w"), unix.S_IFCHR, 0), unix.EPERM)
	asUser(t, 4321, func() {
		if err := os.Mkdir(at("theirs"), 0o755); !errors.Is(err, unix.EACCES) {
			t.Errorf("mkdir of a user in the superuser's directory: %v", err)
		}
	})
}

func TestCopyFileRange(t *testing.T) {
	v := writable(t, "random lower 200KiB")
	start(t, v)
	want, err := os.ReadFile(filepath.Join(v.Mountpoint, "lower"))
	if err != nil {
		t.Fatal(err)
	}
	for i, from := range []string{"lower", "copy0"} { // out of the tree, then within the upper directory
		in := open(t, filepath.Join(v.Mountpoint, from), os.O_RDONLY)
		out := open(t, filepath.Join(v.Mountpoint, fmt.Sprint("copy", i)), os.O_RDWR|os.O_CREATE)
		for done := 0; done < len(want); {
			n, err := unix.CopyFileRange(int(in.Fd()), nil, int(out.Fd()), nil, len(want)-done, 0)
			if err != nil || n == 0 {
				t.Fatalf("copied %d of %d: %v", done, len(want), err)
			}
			done += n
		}
		if got, err := os.ReadFile(out.Name()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs, %v", out.Name(), err)
		}
	}
}

func TestUnlinkedOpen(t *testing.T) {
	v := writable(t, `file f "content"`)
	start(t, v)
	f := open(t, filepath.Join(v.Mountpoint, "f"), os.O_RDWR)
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	_, err := f.WriteAt([]byte("more"), 7)
	if err := errors.Join(err, f.Chmod(0o600), f.Sync(), f.Truncate(9)); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink != 0 || st.Size != 9 || st.Mode&0o777 != 0o600 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestRenameFlags(t *testing.T) {
	v := writable(t, `file a "A"`, `file b "B"`)
	start(t, v)
	a, b := filepath.Join(v.Mountpoint, "a"), filepath.Join(v.Mountpoint, "b")
	rename := func(flags uint) error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags) }
	wantErrno(t, "RENAME_NOREPLACE", rename(unix.RENAME_NOREPLACE), unix.EEXIST)
	wantErrno(t, "RENAME_WHITEOUT", rename(unix.RENAME_WHITEOUT), unix.EINVAL)
	if err := rename(unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{a: "B", b: "A"} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestLongNames(t *testing.T) {
	v := writable(t)
	start(t, v)
	name := filepath.Join(v.Mountpoint, strings.Repeat("é", 127)+"x")
	if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
	wantErrno(t, "256 bytes", os.WriteFile(name+"y", nil, 0o644), unix.ENAMETOOLONG)
	wantErrno(t, "a whiteout's name", os.WriteFile(filepath.Join(v.Mountpoint, ".wh.x"), nil, 0o644), unix.EPERM)
	if err := unix.Setxattr(name, "user.k", bytes.Repeat([]byte("v"), 2000), 0); err != nil {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(v.Mountpoint, &st); err != nil || st.Namelen != 255 || st.Blocks == 0 || st.Bfree == 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

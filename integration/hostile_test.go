package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A hostile is an image that wants to do harm, and what has to come of it.
type hostile struct {
	name  string
	make  func(f *forged)
	flags []string // of mount
	code  int      // of mount; 0: the image is shown
	says  string   // in its error, or in the server's log
	busy  bool     // a server does a system call per chunk, by the hundred thousand: nothing to trace
	// look looks into the mount; nil: its walk by the harness is enough.
	look func(t *testing.T, dir string)
}

const (
	// most is what a server may take of memory at its peak. Half of it is Go's: it collects when the live bytes have grown by half.
	most = 300 << 20
	// visits is how many names of a mount the harness looks at.
	visits = 20_000
)

// TestHostileImages mounts images that nobody would make by mistake. Each is refused with
// its reason, or shown as it can be; nothing outside of the mountpoint and the cache changes.
func TestHostileImages(t *testing.T) {
	needFUSE(t)
	for _, list := range [][]hostile{hostileNames(), hostileTars(), hostileBombs(), hostileTOCs(), hostileManifests()} {
		for _, h := range list {
			t.Run(h.name, func(t *testing.T) { h.run(t) })
		}
	}
}

func (h *hostile) run(t *testing.T) {
	u := newHost(t)
	f := forge(t)
	h.make(f)
	around := t.TempDir()
	dir := filepath.Join(around, "a", "mnt")
	plantCanary(t, around)
	before := printOf(t, around)
	begun := time.Now()
	r := u.try(append(append([]string{"mount"}, h.flags...), f.ref(), dir)...)
	if r.code != h.code || h.code != 0 && !strings.Contains(r.stderr, h.says) {
		t.Errorf("exit %d, want %d with %q: %s", r.code, h.code, h.says, r.stderr)
	}
	if h.code != 0 && strings.Count(r.stderr, "layerfs: ") != 1 || strings.Contains(r.stderr, "goroutine") {
		t.Errorf("the error is no line: %.2000s", r.stderr)
	}
	if r.code == 0 {
		h.visit(t, u, dir)
	}
	u.run("umount", dir)
	if peak := peakOf(t, u); peak > most {
		t.Errorf("the server took %d MB", peak>>20)
	} else {
		t.Logf("%v, %d MB", time.Since(begun).Round(time.Millisecond), peak>>20)
	}
	if after := printOf(t, around); after != before {
		t.Errorf("outside of the mountpoint something changed:\n%s\nwas\n%s", after, before)
	}
}

func (h *hostile) visit(t *testing.T, u *host, dir string) {
	t.Helper()
	walkMount(t, dir)
	if h.look != nil {
		h.look(t, dir)
	}
	if h.says != "" && !strings.Contains(serverLog(t, u), h.says) {
		t.Errorf("the log does not say %q: %.2000s", h.says, serverLog(t, u))
	}
}

func serverLog(t *testing.T, u *host) string {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(u.root, "log", "*.log"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("logs %v, %v", logs, err)
	}
	b, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// walkMount looks at names, reads the beginning of files, and says what is not as a mount of foreign content has to be.
func walkMount(t *testing.T, dir string) {
	t.Helper()
	seen := 0
	var root unix.Stat_t
	if err := unix.Stat(dir, &root); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if seen++; seen > visits {
			return fs.SkipAll
		}
		if err != nil {
			if errors.Is(err, unix.ENAMETOOLONG) {
				return nil // a path that only openat(2) can reach
			}
			return err
		}
		if name := e.Name(); strings.ContainsAny(name, "/\x00") || name == "." || name == ".." || strings.HasPrefix(name, ".wh.") {
			t.Errorf("%q is shown", path)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %q: %w", path, err)
		}
		if st.Dev != root.Dev {
			t.Errorf("%s lies on another device", path)
		}
		if e.Type().IsRegular() {
			readSome(t, path)
		}
		return nil
	})
	if err != nil && !errors.Is(err, unix.ENAMETOOLONG) {
		t.Error(err)
	}
}

// readSome reads a file's beginning: content that cannot be had is EIO.
func readSome(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		if !errors.Is(err, unix.EACCES) {
			t.Errorf("open: %v", err)
		}
		return
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 4096)); err != nil && err.Error() != "EOF" && !errors.Is(err, unix.EIO) {
		t.Errorf("read %s: %v", path, err)
	}
}

// plantCanary makes files that images try to reach, and the mountpoint a/mnt among them.
func plantCanary(t *testing.T, around string) {
	t.Helper()
	for _, d := range []string{"a/mnt", "a/etc", "etc"} {
		if err := os.MkdirAll(filepath.Join(around, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"x", "a/x", "a/etc/passwd", "etc/passwd"} {
		if err := os.WriteFile(filepath.Join(around, f), []byte("canary "+f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// printOf describes a tree with all that a write to it would change.
func printOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, st.Mode, st.Uid, st.Gid, st.Size, st.Nlink, st.Mtim, st.Ctim)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// peakOf is the most memory that any server of u had. They write it to their log, since
// most of them have ended when anybody could ask.
func peakOf(t *testing.T, u *host) int64 {
	t.Helper()
	_, after, found := strings.Cut(serverLog(t, u), "peak_memory=")
	if !found {
		t.Fatalf("no peak in the log: %.1000s", serverLog(t, u))
	}
	n, err := strconv.ParseInt(strings.TrimSpace(strings.FieldsFunc(after, func(r rune) bool { return r < '0' || r > '9' })[0]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// mountsOf is what "mounts --json" says.
func mountsOf(t *testing.T, u *host) (rows []map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(u.run("mounts", "--json")), &rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestContainedLinks moves links about in a writable mount: whatever their depth, they
// lead where they lead in the image, and a commit has them as they were written.
func TestContainedLinks(t *testing.T) {
	needFUSE(t)
	needRoot(t)
	u, f := newHost(t), forge(t)
	f.text("dir etc\nfile etc/x \"inside\"\ndir a\ndir a/b\nsymlink a/b/abs /etc/x\nsymlink a/b/up ../../../../etc/x", "gzip")
	image := f.ref()
	dir := u.mount(image, "--rw", "--symlinks", "contain")
	leads := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != "inside" {
				link, _ := os.Readlink(filepath.Join(dir, name))
				t.Errorf("%s -> %s: %q, %v", name, link, b, err)
			}
		}
	}
	leads("a/b/abs", "a/b/up")
	for _, err := range []error{
		os.Symlink("/etc/x", filepath.Join(dir, "a/new")),
		os.Mkdir(filepath.Join(dir, "a/c"), 0o755),
		os.Rename(filepath.Join(dir, "a/b"), filepath.Join(dir, "b")),
		os.Rename(filepath.Join(dir, "b/up"), filepath.Join(dir, "a/c/up")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	leads("b/abs", "a/c/up", "a/new")
	dest := "oci:" + filepath.Join(t.TempDir(), "out")
	u.run("commit", "-q", dir, dest)
	again := u.mount(dest)
	for name, want := range map[string]string{"b/abs": "/etc/x", "a/c/up": "../../../../etc/x", "a/new": "/etc/x"} {
		if got, err := os.Readlink(filepath.Join(again, name)); got != want {
			t.Errorf("the commit has %s -> %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestMountFlags finds the kernel doing what the options say.
func TestMountFlags(t *testing.T) {
	needFUSE(t)
	u, f := newHost(t), forge(t)
	f.text("file run 0755 \"#!/bin/sh\\n\"\nsymlink l run", "gzip")
	image := f.ref()
	for _, tt := range []struct {
		flags        []string
		exec, follow bool
	}{
		{nil, true, true},
		{[]string{"--symlinks", "deny"}, true, false},
		{[]string{"-o", "noexec,nosymfollow"}, false, false},
		{[]string{"--symlinks", "contain", "-o", "noexec"}, false, true},
	} {
		dir := u.mount(image, tt.flags...)
		if err := exec.Command(filepath.Join(dir, "run")).Run(); (err == nil) != tt.exec {
			t.Errorf("%q: run: %v", tt.flags, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "l")); (err == nil) != tt.follow {
			t.Errorf("%q: follow: %v", tt.flags, err)
		}
		nodev := unix.Statfs_t{}
		if err := unix.Statfs(dir, &nodev); err != nil || nodev.Flags&(unix.ST_NODEV|unix.ST_NOSUID) != unix.ST_NODEV|unix.ST_NOSUID {
			t.Errorf("%q: flags %x, %v", tt.flags, nodev.Flags, err)
		}
	}
	if r := u.try("mount", "--symlinks", "some", image, t.TempDir()); r.code != 2 {
		t.Errorf("--symlinks some: exit %d: %s", r.code, r.stderr)
	}
}

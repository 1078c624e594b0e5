package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"golang.org/x/sys/unix"
)

// diskForms are the layers that are cached in different ways: read whole and then by sections,
// by a table of contents, and read whole only (zstd in one frame).
var diskForms = []string{"gzip", "estargz", "zstd"}

// diskText is 24 MiB of content.
func diskText() string {
	var b strings.Builder
	for i := range 6 {
		fmt.Fprintf(&b, "random bin/r%d 3MiB\n", i)
	}
	for i := range 60 {
		fmt.Fprintf(&b, "random lib/t%02d 100KiB\n", i)
	}
	return b.String()
}

// diskImage pushes an image of diskText in some form and returns its name and its files.
func diskImage(t *testing.T, form string) (s *registrytest.Server, ref string, want map[string][]byte) {
	t.Helper()
	text := diskText()
	s = registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	s.PushImage("image:latest", registrytest.Image{Layers: []registrytest.Layer{encoded(t, text, form)}})
	want = contents(t, text)
	delete(want, "opt/top") // of readThrough's other layer
	want["bin/r0"] = firstFile(t, text, "bin/r0")
	return s, s.Host() + "/image", want
}

// firstFile is the content of a file of a text archive.
func firstFile(t *testing.T, text, name string) []byte {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(layertest.Tar(text)))
	for {
		h, err := r.Next()
		must(t, err)
		if h.Name == name {
			b, err := io.ReadAll(r)
			must(t, err)
			return b
		}
	}
}

// checkTree reads every file, past the kernel's cache.
func checkTree(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	for name, content := range want {
		path := filepath.Join(dir, name)
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(content), err)
		}
	}
}

// forgetPages drops what the kernel has of a mount, or reads would end there.
func forgetPages(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}))
}

// usageOf is what a directory takes on the disk.
func usageOf(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error { // files come and go
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			n += st.Blocks * 512
		}
		return nil
	})
	return n
}

// watchUsage samples a directory until stop, which returns the most that it took.
func watchUsage(dir string) (stop func() int64) {
	var most atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			most.Store(max(most.Load(), usageOf(dir)))
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return func() int64 {
		close(done)
		wg.Wait()
		return most.Load()
	}
}

// TestCacheBound: while a mount reads more than the cache may hold, the directory stays within
// 5 % of the bound and every byte is right.
func TestCacheBound(t *testing.T) {
	needMount(t)
	const bound = 8_000_000
	for _, form := range diskForms[:2] {
		t.Run(form, func(t *testing.T) {
			_, ref, want := diskImage(t, form)
			h := newHost(t)
			stop := watchUsage(filepath.Join(h.root, "cache"))
			dir := h.mount(ref, "--cache-size", fmt.Sprint(bound))
			for range 2 {
				checkTree(t, dir, want)
				forgetPages(t, dir)
			}
			if most := stop(); most > bound*105/100 || most < bound/2 {
				t.Errorf("%d bytes on the disk at most, the bound is %d", most, bound)
			}
		})
	}
}

// TestPulledLast: what was pulled is there offline though a mount of another image has filled the cache.
func TestPulledLast(t *testing.T) {
	needMount(t)
	_, big, _ := diskImage(t, "estargz")
	small := sampleRegistry(t)
	h := newHost(t)
	const size = "16MB"
	h.run("--cache-size", size, "pull", small.Host()+"/sample")
	want := tree(t, newHost(t).mount(small.Host()+"/sample"))
	dir := h.mount(big, "--cache-size", size)
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			_, err = os.ReadFile(path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	small.Close()
	sameTree(t, "before", want, "offline", tree(t, h.mount(small.Host()+"/sample", "--offline")))
	if r := h.try("--cache-size", size, "pull", big); r.code == 0 || !strings.Contains(r.stderr, "--cache-size") {
		t.Errorf("pull of more than the cache holds: exit %d: %s", r.code, r.stderr)
	}
}

// smallDisk mounts a tmpfs of some bytes at dir.
func smallDisk(t *testing.T, dir string, size int) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("mode=0700,size=%d", size)); err != nil {
		t.Skip("needs to mount a tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestCacheOnFullDisk: the cache's disk holds a sixth of the image, or nothing; every byte is read all the same.
func TestCacheOnFullDisk(t *testing.T) {
	needMount(t)
	for _, room := range []int{4 << 20, 64 << 10} {
		for _, form := range diskForms[:2] {
			t.Run(fmt.Sprintf("%s/%d", form, room), func(t *testing.T) {
				_, ref, want := diskImage(t, form)
				root := t.TempDir()
				smallDisk(t, filepath.Join(root, "cache"), room)
				h := newHost(t) // its mounts end before the disk goes
				h.root = root
				dir := h.mount(ref, "--cache-size", "none")
				for range 2 {
					checkTree(t, dir, want)
					forgetPages(t, dir)
				}
			})
		}
	}
}

// TestUpperOnFullDisk: writes get ENOSPC, what was there stays, and room that is made can be used. A commit to a
// full disk fails and leaves nothing; the same commit elsewhere has everything.
func TestUpperOnFullDisk(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	root := t.TempDir()
	smallDisk(t, filepath.Join(root, "containers"), 2<<20)
	h := newHost(t)
	h.root = root
	rw := h.mount(s.Host()+"/sample", "--rw")
	kept := bytes.Repeat([]byte("kept "), 100_000)
	must(t, os.WriteFile(rw+"/kept", kept, 0o644))
	junk, err := os.Create(rw + "/junk")
	must(t, err)
	for err == nil {
		_, err = junk.Write(make([]byte, 64<<10))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full disk: %v", err)
	}
	_ = junk.Close() // may report the same once more
	if err := os.WriteFile(rw+"/late", kept, 0o644); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("another file: %v", err)
	}
	must(t, os.Remove(rw+"/junk"))
	must(t, os.Remove(rw+"/late"))
	// The kernel does not wait for RELEASE: the room is there a moment after close and unlink have returned.
	eventually(t, "the room that was made", func() bool {
		err := os.WriteFile(rw+"/late", kept, 0o644)
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		return err == nil
	})
	for _, name := range []string{"/kept", "/late"} {
		if got, err := os.ReadFile(rw + name); err != nil || !bytes.Equal(got, kept) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}

	full := t.TempDir()
	smallDisk(t, full, 64<<10)
	must(t, os.WriteFile(rw+"/random", firstFile(t, "random r 300KiB", "r"), 0o644))
	want := tree(t, rw)
	r := h.try("commit", rw, "oci:"+full+"/layout:v1")
	if r.code == 0 || !strings.Contains(r.stderr, "no space left on device") {
		t.Errorf("commit to a full disk: exit %d: %s", r.code, r.stderr)
	}
	if n := usageOf(full); n > 32<<10 {
		t.Errorf("the commit left %d bytes", n)
	}
	name := strings.TrimSpace(h.run("commit", rw, s.Host()+"/next:v1"))
	sameTree(t, "live", want, "committed", tree(t, newHost(t).mount(name)))
}

// TestNothingAgain: what was fetched once is not fetched again, neither after a kill of the server nor after a new mount.
func TestNothingAgain(t *testing.T) {
	needMount(t)
	for _, form := range diskForms {
		t.Run(form, func(t *testing.T) {
			s, ref, want := diskImage(t, form)
			h := newHost(t)
			dir := h.mount(ref)
			checkTree(t, dir, want)
			s.Reset()
			for _, end := range []func(){
				func() { killServer(t, h, dir) },
				func() { h.run("umount", dir) },
			} {
				end()
				h.try("umount", dir)
				h.run("mount", ref, dir)
				checkTree(t, dir, want)
				if n := s.Total("GET", "/blobs/").Out; n != 0 {
					t.Errorf("%d bytes were fetched again", n)
				}
			}
		})
	}
}

// TestPrivate: nobody else can reach the cache, the state, or a server.
func TestPrivate(t *testing.T) {
	needMount(t)
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	s := sampleRegistry(t)
	h := newHost(t)
	h.root = filepath.Join(h.root, "fresh")
	dir := h.mount(s.Host()+"/sample", "--rw")
	tree(t, dir)
	for _, top := range []string{".", "cache", "log", "run", "containers"} {
		checkPrivate(t, filepath.Join(h.root, top))
	}
	must(t, filepath.WalkDir(filepath.Join(h.root, "cache"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			checkPrivate(t, path)
		}
		return err
	}))
	sockets := 0
	must(t, filepath.WalkDir(h.root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&fs.ModeSocket != 0 {
			sockets++
			checkPrivate(t, path)
		}
		return err
	}))
	if sockets == 0 {
		t.Error("no socket was found")
	}
}

func checkPrivate(t *testing.T, path string) {
	t.Helper()
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	must(t, err)
	if st.Mode().Perm()&0o077 != 0 {
		t.Errorf("%s has mode %v", path, st.Mode())
	}
}

// TestForeignCache: a cache of another user is not used, whoever asks.
func TestForeignCache(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	h.run("pull", s.Host()+"/sample")
	cache := filepath.Join(h.root, "cache")
	refused := func(why string) {
		t.Helper()
		r := h.try("mount", s.Host()+"/sample", t.TempDir())
		if r.code == 0 || !strings.Contains(r.stderr, why) || !strings.Contains(r.stderr, "--root") {
			t.Errorf("%s: exit %d: %s", why, r.code, r.stderr)
		}
	}
	must(t, os.Chown(cache, 1234, 1234))
	refused("belongs to user 1234")
	must(t, os.Chown(cache, 0, 0))
	must(t, os.Chmod(cache, 0o777))
	refused("written by others")
	must(t, os.Chmod(cache, 0o700))
	must(t, os.Rename(cache, cache+"2"))
	must(t, os.Symlink("cache2", cache))
	refused("no directory")
}

// TestCacheVerify: a flipped byte is found and dropped, and the next mount fetches it again.
func TestCacheVerify(t *testing.T) {
	needMount(t)
	s, ref, want := diskImage(t, "gzip")
	h := newHost(t)
	h.run("pull", ref)
	if out := h.run("cache", "verify"); !strings.Contains(out, "1 packs") {
		t.Errorf("cache verify: %s", out)
	}
	packs, err := filepath.Glob(h.root + "/cache/layers/*/*/pack")
	must(t, err)
	f, err := os.OpenFile(packs[0], os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 1)
	for _, off := range []int64{1 << 20, 5 << 20} {
		_, err := f.ReadAt(b, off)
		must(t, err)
		b[0] ^= 1
		_, err = f.WriteAt(b, off)
		must(t, err)
	}
	must(t, f.Close())
	r := h.try("cache", "verify")
	if r.code != 6 || strings.Count(r.stdout, "DAMAGED") != 2 || !strings.Contains(r.stderr, "2 damaged parts") {
		t.Errorf("cache verify: exit %d:\n%s%s", r.code, r.stdout, r.stderr)
	}
	h.run("cache", "verify")
	s.Reset()
	checkTree(t, h.mount(ref, "--prefetch", "none"), want)
	if n := s.Total("GET", "/blobs/").Out; n == 0 || n > 8<<20 {
		t.Errorf("%d bytes were fetched to mend two", n)
	}
}

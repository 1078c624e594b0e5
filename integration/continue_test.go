package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestContinue: a mount goes on from what was made of it, and its processes notice nothing.
func TestContinue(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	rw := h.mount(s.Host()+"/sample", "--rw")
	writeChanges(t, rw)
	must(t, os.WriteFile(rw+"/big", []byte(strings.Repeat(randomText, 4096)), 0o644))
	held, err := os.OpenFile(rw+"/held", os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer held.Close()
	must(t, syscall.Mkdir(rw+"/cwd", 0o755))
	cwd, err := os.Open(rw + "/cwd")
	must(t, err)
	before, want := inoOf(t, rw+"/big"), tree(t, rw)

	dest := s.Host() + "/next:v1"
	name := strings.TrimSpace(h.run("commit", "--continue", rw, dest))
	sameTree(t, "before", want, "after", tree(t, rw))
	if got := inoOf(t, rw+"/big"); got != before {
		t.Errorf("inode number %d, not %d", got, before)
	}
	if got := h.run("mounts"); !strings.Contains(got, dest) {
		t.Errorf("mounts does not show %s:\n%s", dest, got)
	}
	if got := h.run("diff", rw); got != "" {
		t.Errorf("changed against the new image:\n%s", got)
	}
	upper, err := filepath.Glob(h.root + "/containers/*/upper/*")
	must(t, err)
	if len(upper) != 1 || filepath.Base(upper[0]) != "held" {
		t.Errorf("left in the upper directory: %v", upper)
	}
	sameTree(t, "live", want, "committed", tree(t, newHost(t).mount(name)))

	// What comes now is in the next layer, and nothing else.
	_, err = held.WriteString("more\n")
	must(t, err)
	must(t, os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/file", cwd.Fd()), []byte("in the working directory"), 0o644))
	must(t, cwd.Close())
	s.Reset()
	name = strings.TrimSpace(h.run("commit", "--continue", rw, s.Host()+"/next:v2"))
	if sent := s.Total("PUT", "").In + s.Total("PATCH", "").In; sent > 16<<10 {
		t.Errorf("the second commit sent %d bytes", sent)
	}
	if got := s.Total("GET", "/blobs/sha256:").Out; got > 16<<10 {
		t.Errorf("the second commit fetched %d bytes", got)
	}
	want = tree(t, rw)
	sameTree(t, "live", want, "committed", tree(t, newHost(t).mount(name)))

	// Without the registry, and after a crash.
	must(t, os.WriteFile(rw+"/late", []byte("not committed"), 0o644))
	want = tree(t, rw)
	killServer(t, h, rw)
	if r := h.try("mount", "--rw", s.Host()+"/sample", rw); r.code == 0 || !strings.Contains(r.stderr, "/next@sha256:") {
		t.Errorf("mount on the first image: exit %d: %s", r.code, r.stderr)
	}
	must(t, held.Close())
	s.Close()
	h.run("mount", "--offline", "--rw", s.Host()+"/next:v2", rw)
	sameTree(t, "before the crash", want, "after it", tree(t, rw))
	if got := h.run("diff", "--offline", rw); got != "A /late\n" {
		t.Errorf("diff after the crash:\n%s", got)
	}
}

const randomText = "what no other layer of the sample has, long enough to be seen among the bytes that are sent\n"

func inoOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Lstat(path, &st))
	return st.Ino
}

func killServer(t *testing.T, h *host, dir string) {
	t.Helper()
	var mounts []struct {
		PID int `json:"pid"`
	}
	must(t, json.Unmarshal([]byte(h.run("mounts", "--json")), &mounts))
	must(t, syscall.Kill(mounts[0].PID, syscall.SIGKILL))
	for range 100 {
		if _, err := os.ReadDir(dir); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestContinueBesideWriters goes on from commit after commit while others write: every
// commit is of one moment, no writer gets an error, and nothing of what they wrote is lost.
func TestContinueBesideWriters(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	rw := h.mount(s.Host()+"/sample", "--rw")
	must(t, os.MkdirAll(rw+"/scribe/moves-0", 0o755))
	for i := range scribeFiles {
		must(t, os.WriteFile(fmt.Sprintf("%s/scribe/moves-0/f%d", rw, i), make([]byte, 2*scribeBlock), 0o644))
	}
	writer := startScribe(rw + "/scribe")
	dest := t.TempDir()
	for i := range 15 {
		h.run("commit", "--continue", "--compression", "none", rw, "oci:"+dest+":v"+strconv.Itoa(i))
		files := map[string]string{}
		at := newHost(t).mount("oci:" + dest + ":v" + strconv.Itoa(i))
		readAll(t, at+"/scribe", files)
		stepOf(t, files)
		if t.Failed() {
			t.Fatalf("commit %d", i)
		}
	}
	close(writer.stop)
	writer.done.Wait()
	must(t, writer.err)
	h.run("commit", "--continue", "--compression", "none", rw, "oci:"+dest+":last")
	want := tree(t, rw)
	sameTree(t, "live", want, "committed", tree(t, newHost(t).mount("oci:"+dest+":last")))
	h.run("umount", rw)
	h.run("mount", "--rw", "oci:"+dest+":last", rw)
	sameTree(t, "live", want, "mounted again", tree(t, rw))
}

func readAll(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			rel, _ := filepath.Rel(dir, p)
			files[rel] = readFile(t, p)
		}
		return err
	}))
}

// TestCommitIndex: what is committed of a mount of a multi-platform tag is that tag with one platform replaced, also after
// it went on from there and after it was unmounted; and it says what it is based on.
func TestCommitIndex(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	amd, arm := s.PushImage("multi:amd", sampleImage(t)), sampleImage(t)
	arm.Config.OS, arm.Config.Architecture = "linux", "s390x"
	arm.Layers, arm.Config.History = arm.Layers[:1], arm.Config.History[:1]
	other := s.PushImage("multi:arm", arm)
	amd.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	other.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	s.PushIndex("multi:1", other, amd)
	h := newHost(t)
	rw := h.mount(s.Host()+"/multi:1", "--rw")
	for i, flags := range [][]string{{"--continue"}, {"--continue"}, {}} {
		must(t, os.WriteFile(fmt.Sprintf("%s/new-%d", rw, i), []byte("new"), 0o644))
		if i == 2 {
			h.run("umount", rw)
		}
		dest := fmt.Sprintf("%s/app:%d", s.Host(), i)
		h.run(append(append([]string{"commit"}, flags...), rw, dest)...)
		at := newHost(t).mount(dest)
		if got := readFile(t, fmt.Sprintf("%s/new-%d", at, i)); got != "new" {
			t.Errorf("commit %d: %q", i, got)
		}
		var inspected struct {
			Descriptor struct{ Digest string }
			Manifest   struct{ Annotations map[string]string }
		}
		must(t, json.Unmarshal([]byte(h.run("inspect", "--json", "--platform", "linux/s390x", dest)), &inspected))
		if inspected.Descriptor.Digest != other.Digest.String() {
			t.Errorf("commit %d: the other platform is %s, not %s", i, inspected.Descriptor.Digest, other.Digest)
		}
		must(t, json.Unmarshal([]byte(h.run("inspect", "--json", dest)), &inspected))
		want := []string{s.Host() + "/multi:1", s.Host() + "/app:0", s.Host() + "/app:1"}[i]
		if got := inspected.Manifest.Annotations["org.opencontainers.image.base.name"]; got != want {
			t.Errorf("commit %d is based on %q, not %q", i, got, want)
		}
	}
}

package integration

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// The layers of the image that these tests use, the base first; the second one is eStargz.
var sampleLayers = []string{
	"file etc/motd \"hello\\n\"\nfile etc/old \"old\\n\"\ndir usr/lib\nfile usr/lib/a \"a\" 0600 7:8 user.k=\"v\"\nlink usr/lib/b usr/lib/a\nsymlink s usr/lib\nsparse usr/holes 1MiB 300000:\"x\"",
	"random data/big 6MiB\nfile data/small \"small\\n\"\nchar dev/null 1:3 0666",
	"whiteout etc/old\nfile etc/new \"new\\n\" 04755\nlink data/link data/small",
}

// sampleRegistry serves the image as HOST/sample:latest.
func sampleRegistry(t *testing.T) *registrytest.Server {
	t.Helper()
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	s.PushImage("sample:latest", sampleImage(t))
	return s
}

func sampleImage(t *testing.T) registrytest.Image {
	t.Helper()
	return imageOfTexts(t, sampleLayers...)
}

// imageOfTexts makes an image of text archives: the first layer is gzip, the next eStargz, then zstd:chunked.
func imageOfTexts(t *testing.T, texts ...string) registrytest.Image {
	t.Helper()
	var im registrytest.Image
	for i, text := range texts {
		algorithm := []string{"gzip", "estargz", "zstd:chunked"}[i]
		var blob bytes.Buffer
		enc, err := layer.Encode(context.Background(), &blob, bytes.NewReader(layertest.Tar(text)), layer.Compression{Algorithm: algorithm})
		if err != nil {
			t.Fatal(err)
		}
		im.Layers = append(im.Layers, registrytest.Layer{Blob: blob.Bytes(), Desc: enc.Descriptor, DiffID: enc.DiffID})
		im.Config.History = append(im.Config.History, ocispec.History{CreatedBy: "step " + strconv.Itoa(i+1)})
	}
	return im
}

// needMount skips where the program cannot mount.
func needMount(t *testing.T) {
	t.Helper()
	needRoot(t)
	needFUSE(t)
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestLoop(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/sample"
	ro := h.mount(ref)
	if got := readFile(t, ro+"/etc/motd"); got != "hello\n" {
		t.Errorf("etc/motd: %q", got)
	}
	if _, err := os.Lstat(ro + "/etc/old"); !os.IsNotExist(err) {
		t.Errorf("a file with a whiteout: %v", err)
	}
	if err := os.WriteFile(ro+"/x", nil, 0o600); err == nil {
		t.Error("a read-only mount takes a file")
	}
	rw := h.mount(ref, "--rw")
	writeChanges(t, rw)
	wantDiff := "M /data/link\nM /data/small\nA /dir\nA /dir/f\nD /etc/motd\nT /s\n"
	if got := h.run("diff", rw); got != wantDiff {
		t.Errorf("diff:\n%swant:\n%s", got, wantDiff)
	}
	if r := h.try("diff", "--exit-code", rw); r.code != 10 {
		t.Errorf("diff --exit-code: exit %d", r.code)
	}
	s.Reset()
	name := strings.TrimSpace(h.run("commit", "--change", "ENV A=b", "-m", "why", "-a", "me", "--source-date-epoch", "1700000000", rw, s.Host()+"/other/changed:v1"))
	if got := s.Total("GET", "/blobs/"); got.Out > 0 {
		t.Errorf("commit fetched %d bytes of blobs", got.Out)
	}
	want := tree(t, rw)
	for _, again := range []string{name, s.Host() + "/other/changed:v1"} {
		got := tree(t, newHost(t).mount(again))
		delete(got, ".") // the epoch is the latest time that the commit lets be
		delete(want, ".")
		sameNames(t, want, got)
	}
	again := strings.TrimSpace(h.run("commit", "--change", "ENV A=b", "-m", "why", "-a", "me", "--source-date-epoch", "1700000000", rw, s.Host()+"/other/changed:v2"))
	if digestPart(again) != digestPart(name) {
		t.Errorf("the same commit twice gives %s and %s", name, again)
	}
	var inspected struct {
		Config struct{ Config struct{ Env []string } }
	}
	if err := json.Unmarshal([]byte(h.run("inspect", "--json", name)), &inspected); err != nil || len(inspected.Config.Config.Env) != 1 {
		t.Errorf("the config after --change: %+v, %v", inspected, err)
	}
	h.run("umount", ro, rw)
	h.run("umount", ro, rw)
	if got := h.run("mounts"); len(strings.Split(strings.TrimSpace(got), "\n")) != 1 {
		t.Errorf("mounts after umount:\n%s", got)
	}
	reused := h.run("diff", rw)
	if reused != wantDiff {
		t.Errorf("diff after umount:\n%s", reused)
	}
}

func digestPart(name string) string {
	_, d, _ := strings.Cut(name, "@")
	return d
}

func writeChanges(t *testing.T, dir string) {
	t.Helper()
	for _, err := range []error{
		os.Remove(dir + "/etc/motd"),
		os.Mkdir(dir+"/dir", 0o755),
		os.WriteFile(dir+"/dir/f", []byte("new\n"), 0o640),
		os.WriteFile(dir+"/data/small", []byte("more than small\n"), 0o644),
		os.Remove(dir + "/s"),
		os.Mkdir(dir+"/s", 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// sameNames compares all but times of change, which the epoch caps.
func sameNames(t *testing.T, want, got map[string]node) {
	t.Helper()
	flat := func(nodes map[string]node) map[string]node {
		out := map[string]node{}
		for p, n := range nodes {
			n.mtime = 0
			out[p] = n
		}
		return out
	}
	sameTree(t, "live", flat(want), "committed", flat(got))
}

func TestCommitToFiles(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	rw := h.mount(s.Host()+"/sample", "--rw")
	writeChanges(t, rw)
	want := tree(t, rw)
	dir := t.TempDir()
	for _, dest := range []string{"oci:" + dir + "/layout:v1", "docker-archive:" + dir + "/docker.tar:changed:v1", "oci-archive:" + dir + "/oci.tar:v1"} {
		for _, compression := range []string{"gzip", "zstd", "zstd:chunked", "none"} {
			if strings.HasPrefix(dest, "docker") && strings.HasPrefix(compression, "zstd") {
				continue
			}
			t.Run(dest[:strings.Index(dest, ":")]+"/"+compression, func(t *testing.T) {
				h.run("commit", "--compression", compression, rw, dest)
				sameTree(t, "live", want, "committed", tree(t, newHost(t).mount(dest)))
			})
		}
	}
}

func TestLook(t *testing.T) {
	s := sampleRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/sample"
	dest := t.TempDir()
	for _, tt := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"cat", ref, "etc/new", "/data/link"}, "new\nsmall\n", 0},
		{[]string{"cat", ref, "s/a"}, "a", 0},
		{[]string{"cat", ref, "etc/old"}, "", 3},
		{[]string{"cat", ref, "etc"}, "", 1},
		{[]string{"ls", ref, "etc"}, "/etc/motd\n/etc/new\n", 0},
		{[]string{"ls", "-0", ref, "etc"}, "/etc/motd\x00/etc/new\x00", 0},
		{[]string{"find", ref, "usr"}, "/usr\n/usr/holes\n/usr/lib\n/usr/lib/a\n/usr/lib/b\n", 0},
		{[]string{"cp", ref, "usr/lib", dest}, "", 0},
		{[]string{"cp", ref, "usr/lib", dest}, "", 1},
		{[]string{"which", ref, "nothing"}, "", 3},
		{[]string{"nonsense"}, "", 2},
		{[]string{"ls", "--nonsense", ref}, "", 2},
		{[]string{"ls"}, "", 2},
	} {
		r := h.try(tt.args...)
		if r.code != tt.code || r.stdout != tt.want {
			t.Errorf("layerfs %q: exit %d, want %d\nstdout %q\nwant   %q\nstderr %s", tt.args, r.code, tt.code, r.stdout, tt.want, r.stderr)
		}
		if r.code != 0 && (strings.Count(r.stderr, "layerfs: ") != 1 || !strings.HasSuffix(r.stderr, "\n")) {
			t.Errorf("layerfs %q: want one line for the error, got %q", tt.args, r.stderr)
		}
	}
	if got := readFile(t, dest+"/lib/a"); got != "a" {
		t.Errorf("copied: %q", got)
	}
	which := h.run("which", ref, "etc/old", "data/link")
	for _, want := range []string{"layer 3", "whiteout", "layer 1", "deleted by layer 3", "step 1"} {
		if !strings.Contains(which, want) {
			t.Errorf("which does not say %q:\n%s", want, which)
		}
	}
}

// TestErrors: one clear line, the right exit code, nothing left mounted.
func TestErrors(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	locked := sampleRegistry(t)
	locked.Use(registrytest.Basic("user", "right"))
	broken := registrytest.New(registrytest.Options{})
	t.Cleanup(broken.Close)
	im := sampleImage(t)
	broken.PushImage("sample:latest", im)
	broken.Use(registrytest.Corrupt(digest.FromBytes(im.Layers[0].Blob), 60))
	auth := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(auth, []byte(`{"auths":{"`+locked.Host()+`":{"auth":"dXNlcjp3cm9uZw=="}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	full := t.TempDir()
	if err := os.WriteFile(full+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	mounted := h.mount(s.Host() + "/sample")
	empty := t.TempDir()
	for _, tt := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"wrong password", []string{"--authfile", auth, "mount", locked.Host() + "/sample", empty}, 4, "unauthorized"},
		{"unknown tag", []string{"mount", s.Host() + "/sample:none", empty}, 3, "sample:none"},
		{"unknown repository", []string{"mount", s.Host() + "/none", empty}, 3, "none"},
		{"no such host", []string{"mount", "registry.invalid/sample", empty}, 5, "no such host"},
		{"refused", []string{"mount", "127.0.0.1:1/sample", empty}, 5, "refused"},
		{"malformed", []string{"mount", "UPPER CASE", empty}, 2, "UPPER CASE"},
		{"no such layout", []string{"mount", "oci:/nonexistent:x", empty}, 3, "nonexistent"},
		{"missing mountpoint", []string{"mount", s.Host() + "/sample", empty + "/none"}, 7, "none"},
		{"mountpoint is a file", []string{"mount", s.Host() + "/sample", full + "/file"}, 7, "file"},
		{"mountpoint is not empty", []string{"mount", s.Host() + "/sample", full}, 7, "empty"},
		{"mounted already", []string{"mount", s.Host() + "/sample", mounted}, 7, "mounted"},
		{"corrupted blob", []string{"mount", broken.Host() + "/sample", empty}, 6, "digest"},
		{"offline and unknown", []string{"--offline", "mount", s.Host() + "/sample:other", empty}, 3, "offline"},
		{"layers out of range", []string{"mount", "--layers", "9", s.Host() + "/sample", empty}, 2, "9"},
		{"too many entries", []string{"--limit", "entries=3", "mount", s.Host() + "/sample", empty}, 8, "--limit entries=N"},
		{"too much unpacked", []string{"--limit", "unpacked=1kB", "mount", s.Host() + "/sample", empty}, 8, "--limit unpacked=N"},
		{"no such limit", []string{"--limit", "patience=3", "mount", s.Host() + "/sample", empty}, 2, "patience"},
		{"unknown option", []string{"mount", "-o", "nonsense", s.Host() + "/sample", empty}, 2, "nonsense"},
		{"umount of another mount", []string{"umount", "/proc"}, 7, "proc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fresh := newHost(t)
			if tt.name == "mounted already" {
				fresh = h
			}
			r := fresh.try(tt.args...)
			line := lastLine(r.stderr)
			if r.code != tt.code || !strings.Contains(line, tt.says) || !strings.HasPrefix(line, "layerfs: ") || r.stdout != "" {
				t.Errorf("exit %d, want %d; %q does not say %q", r.code, tt.code, r.stderr, tt.says)
			}
			if got := fresh.run("mounts", "--json"); tt.name != "mounted already" && strings.TrimSpace(got) != "[]" {
				t.Errorf("left: %s", got)
			}
		})
	}
	var st, parent unix.Stat_t
	if err := unix.Stat(empty, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(filepath.Dir(empty), &parent); err != nil || st.Dev != parent.Dev {
		t.Errorf("something is mounted at %s", empty)
	}
}

func lastLine(s string) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return l[len(l)-1]
}

// TestFullDisk: the cache's disk is full. Lazy layers are read without it, and so are layers that have to be read whole
// once; one that cannot be had in parts fails with a clear line.
func TestFullDisk(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	if err := unix.Mount("tmpfs", h.root, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.try("umount", "-a")
		if err := unix.Unmount(h.root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir := h.mount(s.Host() + "/sample")
	if b := readFile(t, dir+"/data/big"); len(b) != 6<<20 {
		t.Errorf("read %d bytes of a lazy file over a full disk", len(b))
	}
	h.run("umount", dir)
	const text = "random big 8MiB"
	for _, form := range []string{"gzip", "zstd"} {
		im := sampleImage(t)
		im.Layers = append(im.Layers, encoded(t, text, form))
		s.PushImage(form+":latest", im)
	}
	dir = h.mount(s.Host() + "/gzip")
	if got := readFile(t, dir+"/big"); got != string(firstFile(t, text, "big")) {
		t.Errorf("read %d bytes of a layer without an index over a full disk", len(got))
	}
	h.run("umount", dir)
	r := h.try("mount", s.Host()+"/zstd", t.TempDir())
	if r.code != 1 || !strings.Contains(r.stderr, "no space left") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	if got := h.run("mounts", "--json"); strings.TrimSpace(got) != "[]" {
		t.Errorf("left mounted: %s", got)
	}
}

// TestKilled loses a server and its holder, and mounts again at the same place.
func TestKilled(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--rw")
	writeChanges(t, dir)
	m := h.only()
	if m.Mountpoint != dir || m.Holder == 0 {
		t.Fatalf("mounts: %+v", m)
	}
	for _, pid := range []int{m.Holder, m.PID} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the mount is dead", func() bool {
		_, err := os.ReadDir(dir)
		return err != nil
	})
	r := h.try("mount", "--rw", s.Host()+"/sample", dir)
	if r.code != 0 || !strings.Contains(r.stderr, strconv.Itoa(m.PID)) {
		t.Fatalf("mount again: exit %d: %s", r.code, r.stderr)
	}
	if got := readFile(t, dir+"/dir/f"); got != "new\n" {
		t.Errorf("what was written before: %q", got)
	}
	if _, err := os.Lstat(dir + "/etc/motd"); !os.IsNotExist(err) {
		t.Errorf("what was deleted before: %v", err)
	}
	h.run("umount", dir)
}

// TestEphemeral: what is written is gone with the mount.
func TestEphemeral(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--ephemeral")
	writeChanges(t, dir)
	h.run("umount", dir)
	if left, err := filepath.Glob(h.root + "/ephemeral/*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	h.run("mount", "--ephemeral", s.Host()+"/sample", dir)
	if got := readFile(t, dir+"/etc/motd"); got != "hello\n" {
		t.Errorf("the next mount shows what was thrown away: %q", got)
	}
}

func TestOtherBase(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	im := sampleImage(t)
	im.Layers, im.Config.History = im.Layers[:2], im.Config.History[:2]
	s.PushImage("other:latest", im)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--rw")
	writeChanges(t, dir)
	h.run("umount", dir)
	r := h.try("mount", "--rw", s.Host()+"/other", dir)
	if r.code == 0 || !strings.Contains(r.stderr, "--force-upper") || !strings.Contains(r.stderr, "sample") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	h.run("mount", "--rw", "--force-upper", s.Host()+"/other", dir)
}

// TestOfflineSample: what was mounted once needs no registry again.
func TestOfflineSample(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	h.run("pull", s.Host()+"/sample")
	want := tree(t, newHost(t).mount(s.Host()+"/sample"))
	ref := s.Host() + "/sample"
	s.Close()
	sameTree(t, "online", want, "offline", tree(t, h.mount(ref, "--offline")))
}

func TestCache(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host() + "/sample")
	if r := h.try("cache", "rm", s.Host()+"/sample"); r.code != 1 || !strings.Contains(r.stderr, "in use") {
		t.Errorf("rm of what is mounted: exit %d: %s", r.code, r.stderr)
	}
	h.run("umount", dir)
	h.run("cache", "rm", s.Host()+"/sample")
	var left []json.RawMessage
	if err := json.Unmarshal([]byte(h.run("cache", "ls", "--json")), &left); err != nil || len(left) > 0 {
		t.Errorf("left after rm: %s, %v", left, err)
	}
}

func TestDemo(t *testing.T) {
	needFUSE(t)
	h := newHost(t)
	h.env = []string{"TMPDIR=" + t.TempDir()}
	out := h.run("demo")
	for _, want := range []string{"layerfs mount", "layerfs diff", "M /etc/motd", "layerfs commit", "@sha256:", "Changed by the demo.", "layerfs umount"} {
		if !strings.Contains(out, want) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}
	if left, err := filepath.Glob(strings.TrimPrefix(h.env[0], "TMPDIR=") + "/*"); err != nil || len(left) > 0 {
		t.Errorf("the demo left %v, %v", left, err)
	}
}

// TestForeground: -f stays, says when it is ready, and SIGTERM unmounts.
func TestForeground(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(path, "--root", h.root, "mount", "-f", s.Host()+"/sample", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != dir {
		t.Errorf("printed %q, %v", line, err)
	}
	if got := readFile(t, dir+"/etc/motd"); got != "hello\n" {
		t.Errorf("etc/motd: %q", got)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if _, err := os.Stat(dir + "/etc/motd"); !os.IsNotExist(err) {
		t.Errorf("still mounted: %v", err)
	}
}

// TestCorruptChunk: a lazy file whose bytes are wrong is EIO, never other bytes, and the rest stays readable.
func TestCorruptChunk(t *testing.T) {
	needMount(t)
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	im := sampleImage(t)
	s.PushImage("sample:latest", im)
	s.Use(registrytest.Corrupt(digest.FromBytes(im.Layers[1].Blob), 3<<20))
	dir := newHost(t).mount(s.Host() + "/sample")
	if _, err := os.ReadFile(dir + "/data/big"); !errors.Is(err, syscall.EIO) {
		t.Errorf("a file with a corrupt chunk: %v", err)
	}
	if got := readFile(t, dir+"/data/small"); got != "small\n" {
		t.Errorf("data/small: %q", got)
	}
}

// TestPrefetch: with --prefetch all, everything comes without anybody reading it.
func TestPrefetch(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	h.mount(s.Host()+"/sample", "--prefetch", "all")
	type status struct {
		Layers []struct{ Complete bool } `json:"layer_status"`
	}
	complete := func() bool {
		var mounts []status
		if err := json.Unmarshal([]byte(h.run("mounts", "--json")), &mounts); err != nil || len(mounts) != 1 || len(mounts[0].Layers) != 3 {
			t.Fatalf("mounts: %+v, %v", mounts, err)
		}
		for _, l := range mounts[0].Layers {
			if !l.Complete {
				return false
			}
		}
		return true
	}
	eventually(t, "complete", complete)
}

// TestOutage: a registry that is away for a while is waited for; the reader sees the right bytes.
func TestOutage(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	var away atomic.Bool
	s.Use(registrytest.Outage(&away))
	dir := newHost(t).mount(s.Host() + "/sample")
	away.Store(true)
	time.AfterFunc(time.Second, func() { away.Store(false) })
	b, err := os.ReadFile(dir + "/data/big")
	if err != nil || len(b) != 6<<20 {
		t.Errorf("read over an outage: %d bytes, %v", len(b), err)
	}
}

// TestMountpointNames: a mountpoint may be named in any way that leads to it.
func TestMountpointNames(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := t.TempDir()
	real := filepath.Join(dir, "with space \\ and ä")
	for _, err := range []error{os.Mkdir(real, 0o755), os.Symlink(real, dir+"/link"), os.Symlink("link", dir+"/relative"), os.Symlink("loop", dir+"/loop")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{real, real + "/", dir + "/link", dir + "/relative", dir + "/./x/../link"} {
		if got := strings.TrimSpace(h.run("mount", s.Host()+"/sample", name)); got != real {
			t.Errorf("mount at %s prints %s, want %s", name, got, real)
		}
		if got := readFile(t, real+"/etc/motd"); got != "hello\n" {
			t.Errorf("mounted at %s: %q", name, got)
		}
		h.run("umount", name)
	}
	if r := h.try("mount", s.Host()+"/sample", dir+"/loop"); r.code != 7 {
		t.Errorf("a loop of symlinks: exit %d: %s", r.code, r.stderr)
	}
}

// TestMountOptions: nosuid and nodev unless asked otherwise; what is unknown is refused.
func TestMountOptions(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	for _, tt := range []struct {
		flags []string
		want  uintptr
	}{
		{nil, unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV},
		{[]string{"--rw"}, unix.ST_NOSUID | unix.ST_NODEV},
		{[]string{"-o", "dev,suid,noexec,_netdev,x-systemd.automount"}, unix.ST_RDONLY | unix.ST_NOEXEC},
		{[]string{"-o", "dev,suid,strictatime,nosuid"}, unix.ST_RDONLY | unix.ST_NOSUID},
	} {
		dir := h.mount(s.Host()+"/sample", tt.flags...)
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		const known = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
		if got := uintptr(st.Flags) & known; got != tt.want {
			t.Errorf("%v: flags %x, want %x", tt.flags, got, tt.want)
		}
	}
}

func TestForensic(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/sample"
	dir := h.mount(ref)
	sums := filepath.Join(t.TempDir(), "sums")
	if err := os.WriteFile(sums, []byte(h.run("hash", ref)), 0o600); err != nil {
		t.Fatal(err)
	}
	check := exec.Command("sha256sum", "--quiet", "--strict", "-c", sums)
	check.Dir = dir
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("sha256sum -c in the mount: %v\n%s", err, out)
	}
	timeline := h.run("timeline", ref)
	for _, want := range []string{"/etc/old [layer 1, deleted by layer 3]", "/etc/old [whiteout in layer 3]", "[build step 2, layer 2] step 2"} {
		if !strings.Contains(timeline, want) {
			t.Errorf("the timeline has no %q:\n%s", want, timeline)
		}
	}
	h.run("verify", "--deep", ref)
	im := sampleImage(t)
	s.Use(registrytest.Corrupt(digest.FromBytes(im.Layers[0].Blob), 60))
	if r := h.try("verify", ref); r.code != 6 || !strings.Contains(r.stdout, "MISMATCH layer 1") {
		t.Errorf("verify of a corrupt blob: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// TestLyingTOC: an index that says other than the tar is found by verify --deep.
func TestLyingTOC(t *testing.T) {
	for _, lie := range []struct{ name, old, replacement, says string }{
		{"name", `"name": "data/small"`, `"name": "data/smal2"`, "/data/smal2: not in the tar"},
		{"mode", `"mode": 420`, `"mode": 493`, "mode 100755, in the tar 100644"},
		{"owner", `"name": "data/small",`, `"name": "data/small", "uid": 7,`, "/data/small: owner 7, in the tar 0"},
		{"size", `"size": 6,`, `"size": 5,`, "/data/small: size 5, in the tar 6"},
		{"device", `"devMajor": 1`, `"devMajor": 2`, "/dev/null: device"},
		{"time", `"modtime": "2023-`, `"modtime": "2022-`, "/data/small: time"},
	} {
		t.Run(lie.name, func(t *testing.T) {
			s := registrytest.New(registrytest.Options{})
			t.Cleanup(s.Close)
			im := sampleImage(t)
			l := &im.Layers[1]
			blob, tocDigest := forgeTOC(t, l.Blob, lie.old, lie.replacement)
			l.Blob, l.Desc.Digest, l.Desc.Size = blob, digest.FromBytes(blob), int64(len(blob))
			for k := range l.Desc.Annotations {
				if strings.HasSuffix(k, "toc.digest") {
					l.Desc.Annotations[k] = tocDigest.String()
				}
			}
			z, err := gzip.NewReader(bytes.NewReader(blob))
			if err != nil {
				t.Fatal(err)
			}
			if l.DiffID, err = digest.FromReader(z); err != nil { // a careful forger
				t.Fatal(err)
			}
			s.PushImage("sample:latest", im)
			h := newHost(t)
			for range 2 { // with nothing local, and with what the first has left
				r := h.try("verify", "--deep", s.Host()+"/sample")
				if r.code != 6 || !strings.Contains(r.stdout, lie.says) {
					t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
				}
				h.run("ls", s.Host()+"/sample")
			}
		})
	}
}

// forgeTOC replaces a string in the TOC of an eStargz blob and puts the blob together again.
func forgeTOC(t *testing.T, blob []byte, old, replacement string) ([]byte, digest.Digest) {
	t.Helper()
	const footer = 51 // eStargz: the offset of the TOC stands in its extra field as 16 hex digits
	off, err := strconv.ParseInt(string(blob[len(blob)-footer+16:len(blob)-footer+32]), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(blob[off : len(blob)-footer]))
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewReader(z)
	header, err := archive.Next()
	if err != nil {
		t.Fatal(err)
	}
	toc, err := io.ReadAll(archive)
	if err != nil || !bytes.Contains(toc, []byte(old)) {
		t.Fatalf("the TOC has no %s: %v\n%s", old, err, toc)
	}
	toc = bytes.ReplaceAll(toc, []byte(old), []byte(replacement))
	var member bytes.Buffer
	w := gzip.NewWriter(&member)
	out := tar.NewWriter(w)
	header.Size = int64(len(toc))
	for _, step := range []func() error{
		func() error { return out.WriteHeader(header) },
		func() error { _, err := out.Write(toc); return err },
		out.Close, w.Close,
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	forged := append(append(bytes.Clone(blob[:off]), member.Bytes()...), blob[len(blob)-footer:]...)
	return forged, digest.FromBytes(toc)
}

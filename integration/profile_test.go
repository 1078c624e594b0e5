package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// startRegistry serves HOST/start: an eStargz layer in which other content lies between the files
// that the tests read, and a gzip layer above it.
func startRegistry(t *testing.T) *registrytest.Server {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{"first", "second", "third"} {
		fmt.Fprintf(&b, "random bin/%s 300KiB\nrandom pad/%s 6MiB\n", name, name)
	}
	for i := range 300 {
		fmt.Fprintf(&b, "file small/f%03d \"%d\"\n", i, i)
	}
	b.WriteString("random end 1MiB\n")
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	s.PushImage("start:latest", registrytest.Image{Layers: []registrytest.Layer{
		encoded(t, b.String(), "estargz"), encoded(t, "file etc/motd \"hello\"", "gzip"),
	}})
	return s
}

func encoded(t *testing.T, text, algorithm string) registrytest.Layer {
	t.Helper()
	var blob bytes.Buffer
	enc, err := layer.Encode(context.Background(), &blob, bytes.NewReader(layertest.Tar(text)), layer.Compression{Algorithm: algorithm})
	if err != nil {
		t.Fatal(err)
	}
	return registrytest.Layer{Blob: blob.Bytes(), Desc: enc.Descriptor, DiffID: enc.DiffID}
}

// A liveMount is what mounts --json says of a mount.
type liveMount struct {
	PID      int
	Fetched  int64
	Requests int64
	Layers   []struct {
		Digest    string
		MediaType string `json:"media_type"`
		Index     string
		Lazy      bool
		Why       string
		Verified  string
		Total     int64
		Fetched   int64
		Requests  int64
		Content   int64
		Cached    int64
		Complete  bool
	} `json:"layer_status"`
}

// status is the status of the only mount.
func (h *host) status() liveMount {
	h.t.Helper()
	var list []liveMount
	if err := json.Unmarshal([]byte(h.run("mounts", "--json")), &list); err != nil || len(list) != 1 {
		h.t.Fatalf("mounts: %+v, %v", list, err)
	}
	return list[0]
}

// profile is the paths that inspect --profile prints, with a line feed after each; "" when there are none.
func (h *host) profile(ref string) string {
	h.t.Helper()
	r := h.try("inspect", "--profile", ref)
	if r.code == 3 && strings.Contains(r.stderr, "none is kept") {
		return ""
	}
	comment, paths, _ := strings.Cut(r.stdout, "\n")
	if r.code != 0 || !strings.HasPrefix(comment, "# ") {
		h.t.Errorf("inspect --profile: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
	return paths
}

// eventually waits up to a minute for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begun := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

// recordStart mounts, reads files, and unmounts.
func (h *host) recordStart(ref string, files ...string) {
	h.t.Helper()
	dir := h.mount(ref)
	for _, f := range files {
		readFile(h.t, filepath.Join(dir, f))
	}
	h.run("umount", dir)
}

// TestProfile: what a mount read is fetched by the next one before anybody asks for it, and nothing else.
func TestProfile(t *testing.T) {
	needMount(t)
	s := startRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/start"
	if got := h.profile(ref); got != "" {
		t.Errorf("a profile before the first mount: %q", got)
	}
	h.recordStart(ref, "bin/third", "bin/first", "small/f017")
	const want = "bin/third\nbin/first\nsmall/f017\n"
	if got := h.profile(ref); got != want {
		t.Fatalf("profile:\n%swant:\n%s", got, want)
	}
	h.run("cache", "gc")
	s.Reset()
	dir := h.mount(ref)
	eventually(t, "prefetch", func() bool { return h.status().Layers[0].Cached >= 600<<10 })
	time.Sleep(100 * time.Millisecond) // for a fetch that should not be
	got := s.Total("GET", "/blobs/")
	if got.Out > 2<<20 {
		t.Errorf("%d bytes in %d requests for 600 KiB of files", got.Out, got.Requests)
	}
	for _, f := range []string{"bin/first", "bin/third", "small/f017"} {
		readFile(t, filepath.Join(dir, f))
	}
	if after := s.Total("GET", "/blobs/"); after != got {
		t.Errorf("reading what was prefetched: %d requests more", after.Requests-got.Requests)
	}
	readFile(t, filepath.Join(dir, "bin/second"))
	if after := s.Total("GET", "/blobs/"); after == got {
		t.Error("a file outside of the profile was fetched too")
	}
	h.run("umount", dir)
	if got := h.profile(ref); got != "bin/first\nbin/third\nsmall/f017\nbin/second\n" {
		t.Errorf("profile after the second start:\n%s", got)
	}
	h.run("cache", "rm", ref)
	if got := h.profile(ref); got != "" {
		t.Errorf("a profile after cache rm: %q", got)
	}
}

// TestProfileModes: none and --offline fetch nothing ahead; a mount is there before the prefetch.
func TestProfileModes(t *testing.T) {
	needMount(t)
	s := startRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/start"
	h.recordStart(ref, "bin/first", "pad/second")
	for _, flags := range [][]string{{"--prefetch", "none"}, {"--prefetch", "auto"}, {"--offline"}} {
		if flags[0] == "--offline" {
			h.recordStart(ref, "etc/motd") // the gzip layer must be there
			for _, l := range h.cached() {
				if l.Size > 1<<20 {
					h.run("cache", "rm", l.Digest)
				}
			}
			h.recordStart(ref)
		} else {
			h.run("cache", "gc")
		}
		s.Reset()
		dir := h.mount(ref, flags...)
		fetched := func() int64 { return s.Total("GET", "/blobs/").Out }
		if flags[len(flags)-1] == "auto" {
			eventually(t, "prefetch", func() bool { return fetched() > 5<<20 })
		}
		time.Sleep(200 * time.Millisecond)
		if n := fetched(); flags[len(flags)-1] != "auto" && n > 1<<20 {
			t.Errorf("%s: %d bytes were fetched ahead", flags, n)
		}
		if log := h.serverLog(); flags[0] == "--offline" && strings.Contains(log, "prefetch;") {
			t.Errorf("%s: a prefetch was tried:\n%s", flags, log)
		}
		h.run("umount", dir)
	}
	if r := h.try("mount", "--prefetch", "some", ref, t.TempDir()); r.code != 2 || !strings.Contains(r.stderr, "none, auto or all") {
		t.Errorf("--prefetch some: exit %d: %s", r.code, r.stderr)
	}
	s.Throttle(1<<20, 20*time.Millisecond)
	h.run("cache", "gc")
	h.mount(ref)
	if c := h.status().Layers[0].Cached; c > 3<<20 {
		t.Errorf("the mount came when %d bytes had been prefetched", c)
	}
}

// serverLog is what the servers of this host have logged.
func (h *host) serverLog() string {
	h.t.Helper()
	var all string
	list, err := filepath.Glob(h.root + "/log/*.log")
	if err != nil || len(list) == 0 {
		h.t.Errorf("logs: %v, %v", list, err)
	}
	for _, path := range list {
		all += readFile(h.t, path)
	}
	return all
}

// TestProfileReader: who reads something else while a profile is fetched does not wait for its end.
func TestProfileReader(t *testing.T) {
	needMount(t)
	s := startRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/start"
	h.recordStart(ref, "pad/first", "pad/second")
	h.run("cache", "gc")
	s.Throttle(3<<20, 20*time.Millisecond)
	dir := h.mount(ref)
	eventually(t, "prefetch", func() bool { return h.status().Fetched > 256<<10 })
	readFile(t, dir+"/bin/third")
	if c := h.status().Layers[0].Cached; c > 8<<20 {
		t.Errorf("the reader had his 300 KiB when %d bytes were there", c)
	}
}

type cachedLayer struct {
	Digest string
	Size   int64
}

func (h *host) cached() (list []cachedLayer) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.run("cache", "ls", "--json")), &list); err != nil {
		h.t.Fatal(err)
	}
	return list
}

// TestProfileKilled: a profile outlives a server that is killed while it records.
func TestProfileKilled(t *testing.T) {
	needMount(t)
	s := startRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/start"
	dir := h.mount(ref, "--rw")
	readFile(t, dir+"/bin/second")
	readFile(t, dir+"/etc/motd")
	const want = "bin/second\netc/motd\n"
	eventually(t, "the profile is saved", func() bool { return h.profile(ref) == want })
	if err := syscall.Kill(h.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.run("umount", dir)
	if got := h.profile(ref); got != want {
		t.Errorf("profile after the kill:\n%s", got)
	}
}

// TestProfileScan: reading everything does not make a profile of everything, nor
// does a listing, which brings small files into the page cache, take them out of it.
func TestProfileScan(t *testing.T) {
	needMount(t)
	s := startRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/start"
	h.recordStart(ref, "bin/second", "small/f123")
	const want = "bin/second\nsmall/f123\n"
	dir := h.mount(ref)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			_, err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	h.run("umount", dir)
	if got := h.profile(ref); got != want {
		t.Errorf("profile after a scan:\n%s", got)
	}
	dir = h.mount(ref)
	if list, err := os.ReadDir(dir + "/small"); err != nil || len(list) != 300 {
		t.Errorf("listing: %d names, %v", len(list), err)
	}
	time.Sleep(200 * time.Millisecond) // the content of small files goes to the kernel behind the listing
	readFile(t, dir+"/small/f123")
	readFile(t, dir+"/bin/second")
	h.run("umount", dir)
	if got := h.run("inspect", "--profile", "--json", ref); strings.Contains(got, "unread") || !strings.Contains(got, "small/f123") {
		t.Errorf("profile after a listing: %s", got)
	}
	if strings.Count(h.profile(ref), "\n") != 2 {
		t.Errorf("files that were only listed are in the profile:\n%s", h.profile(ref))
	}
}

// TestCompleteHalf: a layer of which more than half was read is fetched to its end.
func TestCompleteHalf(t *testing.T) {
	needMount(t)
	s := startRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host() + "/start")
	readFile(t, dir+"/pad/first")
	time.Sleep(3 * time.Second)
	if l := h.status().Layers[0]; l.Cached > l.Content/2 {
		t.Errorf("a third was read, and %d of %d bytes are there", l.Cached, l.Content)
	}
	readFile(t, dir+"/pad/second")
	eventually(t, "the rest of the layer", func() bool { return h.status().Layers[0].Complete })
}

// An inspectedImage is what inspect --json says of the layers.
type inspectedImage struct {
	Layers []struct {
		Digest    string
		MediaType string `json:"media_type"`
		Index     string
		Lazy      bool
		Size      int64
	}
}

func (h *host) inspect(ref string) (x inspectedImage) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.run("inspect", "--json", ref)), &x); err != nil {
		h.t.Fatal(err)
	}
	return x
}

// TestStatus: mounts --json says of every layer how it is read; inspect before the mount
// and the line at the mount say the same.
func TestStatus(t *testing.T) {
	needMount(t)
	s := startRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/start"
	for i, want := range []string{
		": 2 layers, 1 lazy, 1 not (no index: the layer was read whole); fetched ", // from nothing
		": 2 layers, 2 lazy; fetched 0 B of ",                                      // from the cache
	} {
		image := h.inspect(ref)
		s.Reset()
		dir := t.TempDir()
		if r := h.try("mount", ref, dir); r.code != 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("mount says:\n%swant: …%s…", r.stderr, want)
		}
		readFile(t, dir+"/"+[]string{"bin/first", "bin/third"}[i])
		m := h.status()
		checkStatus(t, m, image)
		if got := s.Total("GET", "/blobs/"); m.Fetched == 0 || got.Out < m.Fetched {
			t.Errorf("%d bytes fetched, the registry sent %d", m.Fetched, got.Out)
		}
		h.run("umount", dir)
	}
}

func checkStatus(t *testing.T, m liveMount, image inspectedImage) {
	t.Helper()
	if len(m.Layers) != 2 || len(image.Layers) != 2 {
		t.Fatalf("%d layers, inspect has %d", len(m.Layers), len(image.Layers))
	}
	var fetched, requests int64
	for i, l := range m.Layers {
		x := image.Layers[i]
		if l.Digest != x.Digest || l.MediaType != x.MediaType || l.MediaType == "" || l.Index != x.Index || l.Lazy != x.Lazy || l.Total != x.Size {
			t.Errorf("layer %d: %+v, inspect: %+v", i+1, l, x)
		}
		verified := map[string]string{"toc": "chunks", "tar": "blob"}[l.Index]
		if l.Verified != verified || l.Lazy != (l.Why == "") || l.Complete != (i == 1) || l.Complete != (l.Cached == l.Content) || l.Cached > l.Content {
			t.Errorf("layer %d: %+v", i+1, l)
		}
		if l.Fetched > l.Total || (l.Fetched > 0) != (l.Requests > 0) {
			t.Errorf("layer %d: fetched %d of %d in %d requests", i+1, l.Fetched, l.Total, l.Requests)
		}
		fetched, requests = fetched+l.Fetched, requests+l.Requests
	}
	if m.Fetched != fetched || m.Requests != requests {
		t.Errorf("fetched %d in %d requests, the layers say %d in %d", m.Fetched, m.Requests, fetched, requests)
	}
}

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
)

// TestMirrors mounts an image whose registry is away through mirrors, one of which has wrong bytes in every layer:
// everything is read and right, the log says whose bytes were wrong, and the evidence who was asked.
func TestMirrors(t *testing.T) {
	needMount(t)
	origin, wrong, good := startRegistry(t), startRegistry(t), startRegistry(t)
	text := func(name string) string { return "random " + name + "/big 3MiB\nfile " + name + "/small \"x\"" }
	layers := []registrytest.Layer{encoded(t, text("esgz"), "estargz"), encoded(t, text("chunked"), "zstd:chunked"), encoded(t, text("gzip"), "gzip")}
	for _, s := range []*registrytest.Server{origin, wrong, good} {
		s.PushImage("team/app:latest", registrytest.Image{Layers: layers})
	}
	ref := origin.Host() + "/team/app"
	want := map[string][]byte{}
	dir := newHost(t).mount(ref)
	for _, name := range []string{"esgz/big", "chunked/big", "gzip/big", "gzip/small"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		want[name] = b
	}
	origin.Close()
	for _, l := range layers {
		wrong.Use(registrytest.Corrupt(digest.FromBytes(l.Blob), 1<<20))
	}

	dirs, evidence := t.TempDir(), filepath.Join(t.TempDir(), "evidence.jsonl")
	must(t, os.MkdirAll(filepath.Join(dirs, "_default"), 0o755))
	must(t, os.WriteFile(filepath.Join(dirs, "_default/hosts.toml"), fmt.Appendf(nil, "[host.%q]\n[host.%q]\ncapabilities = ['pull']\n", wrong.URL(), good.URL()), 0o644))
	h := newHost(t)
	dir = h.mount(ref, "--hosts-dir", dirs, "--prefetch", "none", "--evidence", evidence)
	for name, b := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	var mounts []struct {
		Host string `json:"registry_host"`
	}
	must(t, json.Unmarshal([]byte(h.run("mounts", "--json")), &mounts))
	if len(mounts) != 1 || mounts[0].Host != good.Host() {
		t.Errorf("answered by %+v, want %s", mounts, good.Host())
	}
	h.run("umount", dir)
	lines, log := evidenceLines(t, evidence)
	refused := 0
	for _, l := range lines {
		if l.Event == "check" && !l.Data.OK {
			refused++
		}
	}
	if refused != len(layers) || !strings.Contains(log, `"url":"`+good.URL()) || !strings.Contains(log, `"url":"`+wrong.URL()) {
		t.Errorf("%d checks found wrong bytes, want %d:\n%s", refused, len(layers), log)
	}
	if n := good.Total("GET", "/manifests/").Requests; n != 0 {
		t.Errorf("a mirror for blobs was asked for a tag %d times", n)
	}
	if r := newHost(t).try("mount", ref, t.TempDir()); r.code != 5 {
		t.Errorf("without mirrors: %+v", r)
	}
}

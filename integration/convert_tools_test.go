//go:build integration

package integration

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestConvertedByOthers: what other tools make of a converted image is what they make
// of its source, and their digest of a copy is ours.
func TestConvertedByOthers(t *testing.T) {
	needRoot(t)
	needTool(t, "skopeo", "umoci")
	addr, _ := dockerRegistry(t)
	layout := sample(t, "py")
	want := unpacked(t, layout)
	h := newHost(t)
	for _, algorithm := range []string{"estargz", "zstd", "gzip", "none"} {
		t.Run(algorithm, func(t *testing.T) {
			name := addr + "/py:" + algorithm
			printed := strings.TrimSpace(h.run("convert", "--compression", algorithm, "oci:"+layout+":latest", name))
			var seen struct{ Digest, Os string }
			out := command(t, "skopeo", "inspect", "--tls-verify=false", "docker://"+name)
			if err := json.Unmarshal([]byte(out), &seen); err != nil || seen.Digest != digestPart(printed) || seen.Os != "linux" {
				t.Errorf("skopeo sees %+v, %v; printed was %s", seen, err, printed)
			}
			copied := t.TempDir()
			h.run("copy", printed, "oci:"+copied+":latest")
			if algorithm == "zstd" { // umoci 0.4 knows no zstd
				unzstd := t.TempDir()
				command(t, "skopeo", "copy", "--quiet", "--dest-decompress", "oci:"+copied+":latest", "dir:"+unzstd)
				copied = t.TempDir()
				command(t, "skopeo", "copy", "--quiet", "dir:"+unzstd, "oci:"+copied+":latest")
			}
			got := unpacked(t, copied)
			delete(got, "stargz.index.json") // other readers see the file
			got["."] = want["."]             // whose time is that of the file
			sameTree(t, "source", want, algorithm, got)
		})
	}
}

// TestCopiedByOthers: skopeo and we copy an image to the same bytes.
func TestCopiedByOthers(t *testing.T) {
	needTool(t, "skopeo")
	addr, _ := dockerRegistry(t)
	layout := sample(t, "py")
	h := newHost(t)
	dir := t.TempDir()
	printed := h.run("copy", "oci:"+layout+":latest", addr+"/a/py:1")
	h.run("copy", addr+"/a/py:1", addr+"/b/py:1") // mounts
	h.run("copy", addr+"/b/py:1", "oci-archive:"+filepath.Join(dir, "py.tar")+":1")
	command(t, "skopeo", "copy", "--quiet", "oci-archive:"+filepath.Join(dir, "py.tar")+":1", "oci:"+filepath.Join(dir, "back")+":1")
	for _, ref := range []string{"docker://" + addr + "/b/py:1", "oci:" + filepath.Join(dir, "back") + ":1"} {
		raw := command(t, "skopeo", "inspect", "--raw", "--tls-verify=false", ref)
		var m ocispec.Manifest
		if err := json.Unmarshal([]byte(raw), &m); err != nil || len(m.Layers) == 0 {
			t.Fatalf("%s: %v", ref, err)
		}
		if ours := h.run("copy", strings.TrimPrefix(ref, "docker://"), "oci:"+filepath.Join(dir, "again")+":x"); digestPart(ours) != digestPart(printed) {
			t.Errorf("%s is %s, want %s", ref, ours, printed)
		}
	}
	h.run("copy", "-q", addr+"/b/py:1", "docker-archive:"+filepath.Join(dir, "d.tar")+":py:1")
	out := command(t, "skopeo", "inspect", "docker-archive:"+filepath.Join(dir, "d.tar")+":py:1")
	if !strings.Contains(out, `"Os": "linux"`) {
		t.Errorf("skopeo on our docker archive: %s", out)
	}
}

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// mixedLayers have all that a tree can show, whiteouts and links between layers, and no
// sparse file, which eStargz cannot hold.
var mixedLayers = []struct{ text, algorithm string }{
	{"dir etc 0700 1:2 @100.5\nfile etc/motd \"hello\\n\"\nfile etc/old \"old\\n\"\ndir usr/lib\nfile usr/lib/a \"a\" 06755 7:8 user.k=\"v\" security.capability=\"\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\"\nlink usr/lib/b usr/lib/a\nsymlink s usr/lib @7\ndir gone\nfile gone/x \"x\"", "gzip"},
	{"random data/big 9MiB\nfile data/small \"small\\n\" 0600 1000:1000 @1700000000.123456789\nchar dev/null 1:3 0666\nfifo p\nfile empty \"\"", "estargz"},
	{"whiteout etc/old\nopaque gone\nfile gone/y \"y\"\nfile etc/new \"new\\n\" 04755\nlink data/link data/small", "zstd"},
	{"file top \"top\\n\"", "none"},
}

func mixedImage(t *testing.T) registrytest.Image {
	t.Helper()
	var im registrytest.Image
	for _, l := range mixedLayers {
		var blob bytes.Buffer
		enc, err := layer.Encode(context.Background(), &blob, bytes.NewReader(layertest.Tar(l.text)), layer.Compression{Algorithm: l.algorithm})
		if err != nil {
			t.Fatal(err)
		}
		im.Layers = append(im.Layers, registrytest.Layer{Blob: blob.Bytes(), Desc: enc.Descriptor, DiffID: enc.DiffID})
		im.Config.History = append(im.Config.History, ocispec.History{CreatedBy: "step"})
	}
	return im
}

func mixedRegistry(t *testing.T) *registrytest.Server {
	t.Helper()
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	s.PushImage("mixed:latest", mixedImage(t))
	return s
}

// manifestOf is an image's manifest and config, as inspect shows them.
func manifestOf(t *testing.T, h *host, ref string) (m ocispec.Manifest, c ocispec.Image) {
	t.Helper()
	var doc struct {
		Manifest ocispec.Manifest
		Config   ocispec.Image
	}
	if err := json.Unmarshal([]byte(h.run("inspect", "--json", ref)), &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Manifest, doc.Config
}

// TestConvert: the converted image shows the same tree, in every form, and the same
// digest whenever it is made.
func TestConvert(t *testing.T) {
	needMount(t)
	s := mixedRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/mixed"
	want := tree(t, newHost(t).mount(ref))
	before, config := manifestOf(t, h, ref)
	for i, algorithm := range []string{"estargz", "zstd:chunked", "gzip", "zstd", "none"} {
		t.Run(algorithm, func(t *testing.T) {
			dest := s.Host() + "/converted:" + strings.ReplaceAll(algorithm, ":", "-")
			name := strings.TrimSpace(h.run("convert", "--compression", algorithm, ref, dest))
			again := newHost(t)
			again.env = []string{"GOMAXPROCS=1", "SOURCE_DATE_EPOCH=5"}
			if got := strings.TrimSpace(again.run("convert", "--compression", algorithm, ref, "oci:"+t.TempDir()+":x")); digestPart(got) != digestPart(name) {
				t.Errorf("once it is %s, once %s", name, got)
			}
			sameTree(t, "source", want, algorithm, tree(t, newHost(t).mount(name)))
			if r := newHost(t).try("verify", "--deep", name); r.code != 0 {
				t.Errorf("verify: exit %d\n%s%s", r.code, r.stdout, r.stderr)
			}
			m, c := manifestOf(t, h, name)
			for j := range m.Layers {
				same := mixedLayers[j].algorithm == algorithm
				if got := m.Layers[j].Digest == before.Layers[j].Digest; got != same {
					t.Errorf("layer %d, which is %s: unchanged is %v", j+1, mixedLayers[j].algorithm, got)
				}
				lazy := mixedLayers[j].algorithm == "estargz" || algorithm == "estargz" // the TOC is in the tar
				if got := c.RootFS.DiffIDs[j] == config.RootFS.DiffIDs[j]; got == lazy && !same {
					t.Errorf("layer %d to %s: the diff ID is the same: %v", j+1, algorithm, got)
				}
			}
			if i == 0 {
				wantPlain(t, h, name, s.Host()+"/back")
			}
		})
	}
}

// TestConvertProfile: the tree stays, the files of the profile stand first, and the same
// profile gives the same digest.
func TestConvertProfile(t *testing.T) {
	needMount(t)
	s := mixedRegistry(t)
	h := newHost(t)
	profile := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(profile, []byte("# what the start reads\n\n/data/small\n/usr/lib/b\nnot/there\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := tree(t, newHost(t).mount(s.Host()+"/mixed"))
	for _, algorithm := range []string{"estargz", "zstd:chunked"} {
		dest := s.Host() + "/first:" + strings.ReplaceAll(algorithm, ":", "-")
		name := h.run("convert", "--compression", algorithm, "--profile", profile, s.Host()+"/mixed", dest)
		if again := h.run("convert", "--compression", algorithm, "--profile", profile, s.Host()+"/mixed", dest+"2"); digestPart(again) != digestPart(name) {
			t.Errorf("%s: %s and %s", algorithm, name, again)
		}
		sameTree(t, "source", want, algorithm, tree(t, newHost(t).mount(dest)))
		s.Reset()
		fresh := newHost(t)
		if got := fresh.run("cat", dest, "data/small"); got != "small\n" {
			t.Errorf("data/small: %q", got)
		}
		m, _ := manifestOf(t, h, dest)
		blob := s.Total("GET", "/blobs/"+m.Layers[1].Digest.String())
		if blob.Out > 2<<20 {
			t.Errorf("%s: %d bytes of a layer for a file that stands first", algorithm, blob.Out)
		}
		if left, err := os.ReadDir(filepath.Join(h.root, "cache", "tmp")); err != nil || len(left) > 0 {
			t.Errorf("left in the cache: %v %v", left, err)
		}
	}
	for _, args := range [][]string{{"--compression", "gzip", "--profile", profile}, {"--profile", profile + "-none"}} {
		if r := h.try(append(append([]string{"convert"}, args...), s.Host()+"/mixed", s.Host()+"/x")...); r.code != 2 && r.code != 1 || !strings.Contains(r.stderr, "profile") {
			t.Errorf("%q: exit %d: %s", args, r.code, r.stderr)
		}
	}
}

// wantPlain: without its TOC, an eStargz layer's tar is what it was made of.
func wantPlain(t *testing.T, h *host, name, dest string) {
	t.Helper()
	_, c := manifestOf(t, h, strings.TrimSpace(h.run("convert", "--compression", "none", name, dest)))
	for j, id := range c.RootFS.DiffIDs {
		if want := digest.FromBytes(layertest.Tar(mixedLayers[j].text)); id != want {
			t.Errorf("layer %d came back as %s", j+1, id)
		}
	}
}

func TestConvertErrors(t *testing.T) {
	s := sampleRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/sample"
	dir := t.TempDir()
	broken := registrytest.New(registrytest.Options{})
	t.Cleanup(broken.Close)
	im := mixedImage(t)
	broken.PushImage("mixed:latest", im)
	broken.Use(registrytest.Corrupt(digest.FromBytes(im.Layers[1].Blob), 5<<20))
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"convert", "--compression", "lzma", ref, "oci:" + dir + "/x:1"}, 2, "estargz"},
		{[]string{"convert", ref}, 2, "usage"},
		{[]string{"convert", "--level", "77", ref, "oci:" + dir + "/x:1"}, 1, "level 77"},
		{[]string{"convert", ref, "oci-archive:" + dir + "/sparse.tar:1"}, 1, "usr/holes"},
		{[]string{"convert", "--compression", "zstd", broken.Host() + "/mixed", "oci-archive:" + dir + "/broken.tar:1"}, 6, "layer 2"},
		{[]string{"convert", s.Host() + "/none", "oci:" + dir + "/x:1"}, 3, "none"},
		{[]string{"copy", s.Host() + "/none", "oci:" + dir + "/x:1"}, 3, "none"},
		{[]string{"copy", broken.Host() + "/mixed", s.Host() + "/x:1"}, 6, "digest"},
		{[]string{"copy", ref, s.Host() + "/x@sha256:" + strings.Repeat("0", 64)}, 2, "tag"},
	} {
		r := h.try(tt.args...)
		if line := lastLine(r.stderr); r.code != tt.code || !strings.HasPrefix(line, "layerfs: ") || !strings.Contains(line, tt.says) || r.stdout != "" {
			t.Errorf("layerfs %q: exit %d, want %d\n%s", tt.args, r.code, tt.code, r.stderr)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 1 {
		t.Errorf("left: %v %v", left, err)
	}
	if r := h.try("inspect", s.Host()+"/x:1"); r.code != 3 {
		t.Errorf("the tag after a failed copy: exit %d", r.code)
	}
}

// TestCopyProgram: as a user would: to another repository, another registry, into files
// and back, the digest stays.
func TestCopyProgram(t *testing.T) {
	s, other := sampleRegistry(t), registrytest.New(registrytest.Options{})
	t.Cleanup(other.Close)
	h := newHost(t)
	dir := t.TempDir()
	ref := s.Host() + "/sample"
	s.Reset()
	want := ""
	for _, dest := range []string{s.Host() + "/mine:v1", other.Host() + "/sample:v1", "oci:" + filepath.Join(dir, "layout") + ":v1", "oci-archive:" + filepath.Join(dir, "a.tar") + ":v1"} {
		r := h.try("copy", ref, dest)
		got := digestPart(strings.TrimSpace(r.stdout))
		if want == "" {
			want = got
			if n := s.Total("GET", "/blobs/sha256:").Out; n > 5000 {
				t.Errorf("a copy in the same registry read %d bytes of blobs", n)
			}
		}
		if r.code != 0 || got != want || got == "" || !strings.HasPrefix(r.stdout, dest+"@") {
			t.Errorf("%s: exit %d %q, want %s\n%s", dest, r.code, r.stdout, want, r.stderr)
		}
		if !strings.Contains(r.stderr, "done, ") && !strings.Contains(r.stderr, "mounted") {
			t.Errorf("%s: no progress: %s", dest, r.stderr)
		}
		ref = dest
	}
	r := h.try("copy", "-q", ref, "docker-archive:"+filepath.Join(dir, "d.tar")+":sample:v1")
	if r.code != 0 || r.stderr != "" {
		t.Errorf("--quiet: exit %d: %s", r.code, r.stderr)
	}
	if r := h.try("copy", ref, "docker-archive:"+filepath.Join(dir, "d.tar")+":sample:v1"); !strings.Contains(r.stderr, "another digest") {
		t.Errorf("a docker archive without a word: %s", r.stderr)
	}
}

// TestCopyKilled: of a copy that is killed in the middle nothing is left, and what had the name has it.
func TestCopyKilled(t *testing.T) {
	s, slow := sampleRegistry(t), mixedRegistry(t)
	h := newHost(t)
	before := digestPart(h.run("copy", s.Host()+"/sample", archiveIn(t)))
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "a.tar")
	if err := os.WriteFile(archive, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600); err != nil {
		t.Skip("needs a file system with O_TMPFILE: ", err)
	} else if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"copy", slow.Host() + "/mixed", "oci-archive:" + archive + ":1"},
		{"convert", "--compression", "none", slow.Host() + "/mixed", "docker-archive:" + archive + ":a:1"},
		{"copy", slow.Host() + "/mixed", s.Host() + "/sample"},
	} {
		slow.Reset()
		slow.Throttle(2<<20, 0)
		cmd := exec.Command(path, append([]string{"--root", h.root}, args...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a megabyte", func() bool { return slow.Total("GET", "/blobs/").Out > 1<<20 })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%q ended before it was killed", args)
		}
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 || readFile(t, archive) != "before" {
		t.Errorf("left in the directory: %v %v", list, err)
	}
	if digestPart(h.run("copy", s.Host()+"/sample", archiveIn(t))) != before {
		t.Error("the tag has moved")
	}
}

func archiveIn(t *testing.T) string {
	return "oci-archive:" + filepath.Join(t.TempDir(), "x.tar") + ":1"
}

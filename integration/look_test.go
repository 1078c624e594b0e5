package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// TestLayerViews: what a layer had can be listed, read and copied, whatever became of it, and
// who asks for it without is told how.
func TestLayerViews(t *testing.T) {
	s := sampleRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/sample"
	r := h.try("cat", ref, "/etc/old")
	if r.code != 3 || !strings.Contains(r.stderr, "layer 3 deletes it; --layer 1 looks at what was there") {
		t.Errorf("cat of a deleted file: %+v", r)
	}
	if got := h.run("cat", "--layer", "1", ref, "/etc/old"); got != "old\n" {
		t.Errorf("layer 1 has %q", got)
	}
	if r := h.try("cat", "--layer", "2", ref, "/etc/old"); r.code != 3 || !strings.Contains(r.stderr, "layer 2 does not have it; layer 1 does") {
		t.Errorf("cat of another layer's file: %+v", r)
	}
	if r := h.try("ls", "--layer", "4", ref); r.code != 2 || !strings.Contains(r.stderr, "layers 1 to 3") {
		t.Errorf("a layer that is not there: %+v", r)
	}
	if got := h.run("find", "--deleted", "-l", ref); !strings.Contains(got, "layer 1  /etc/old  [deleted by layer 3]") || strings.Count(got, "\n") != 1 {
		t.Errorf("deleted: %q", got)
	}
	if got := h.run("ls", "--deleted", ref); got != "" {
		t.Errorf("deleted in the root: %q", got)
	}
	if got := h.run("ls", "--deleted", "--json", ref, "etc"); !strings.Contains(got, `"deleted_by_layer":3`) || !strings.Contains(got, `"layer":1`) {
		t.Errorf("deleted: %s", got)
	}
	if got := h.run("find", "--layer", "2", ref, "data"); got != "/data\n/data/big\n/data/small\n" {
		t.Errorf("layer 2 has %q", got)
	}
	dest := filepath.Join(t.TempDir(), "old")
	h.run("cp", "--layer", "1", ref, "etc/old", dest)
	if b, err := os.ReadFile(dest); err != nil || string(b) != "old\n" {
		t.Errorf("copied %q, %v", b, err)
	}
	if r := h.try("cat", ref, "/never"); r.code != 3 || strings.Contains(r.stderr, "layer") && !strings.HasPrefix(r.stderr, "layerfs:") || strings.Contains(r.stderr, "--layer") {
		t.Errorf("what never was: %+v", r)
	}
}

// TestHashTools: other tools accept the checksums on a mount, whatever the names are.
func TestHashTools(t *testing.T) {
	needMount(t)
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	text := strings.Join([]string{`file "pipe|%41 percent" "x"`, `file "esc\x1b[31m" "y"`, `file "back\\slash" "z"`, `file "\xff\xfe" "w"`, `file "two  blanks " "v"`, `file "#hash" "u"`, `file "d/a,b" "t"`, `symlink l "a b"`}, "\n")
	s.PushImage("names:latest", imageOfTexts(t, text))
	s.PushImage("lines:latest", imageOfTexts(t, text+"\nfile \"new\\nline\" \"s\""))
	h := newHost(t)
	sums := filepath.Join(t.TempDir(), "sums")
	for _, c := range []struct {
		image, tool string
		flags, args []string
	}{
		{"lines", "sha256sum", nil, []string{"--quiet", "--strict", "-c", sums}},
		{"lines", "md5sum", []string{"--md5"}, []string{"--quiet", "--strict", "-c", sums}},
		{"lines", "sha1sum", []string{"--sha1"}, []string{"--quiet", "--strict", "-c", sums}},
		{"names", "hashdeep", []string{"--format", "hashdeep"}, []string{"-l", "-r", "-a", "-k", sums, "."}},
		{"lines", "mtree", []string{"--format", "mtree"}, []string{"-f", sums, "-p", "."}},
	} {
		t.Run(fmt.Sprint(c.tool, c.flags), func(t *testing.T) {
			if _, err := exec.LookPath(c.tool); err != nil {
				t.Skip("needs ", c.tool)
			}
			ref := s.Host() + "/" + c.image
			if err := os.WriteFile(sums, []byte(h.run(append(append([]string{"hash"}, c.flags...), ref)...)), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(c.tool, c.args...)
			cmd.Dir = newHost(t).mount(ref)
			if out, err := cmd.CombinedOutput(); err != nil {
				b, _ := os.ReadFile(sums)
				t.Errorf("%v\n%s\n%s", err, out, b)
			}
		})
	}
}

// TestMatch: known files are found by their checksums.
func TestMatch(t *testing.T) {
	s := sampleRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/sample"
	list := filepath.Join(t.TempDir(), "known")
	sums := h.run("hash", ref)
	for line := range strings.Lines(sums) {
		if strings.HasSuffix(line, "  data/small\n") {
			if err := os.WriteFile(list, []byte(strings.ToUpper(line[:64])+",bad.exe\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := h.try("hash", "--match", list, ref)
	if r.code != 10 || strings.Count(r.stdout, "\n") != 2 || !strings.Contains(r.stdout, "data/small") || !strings.Contains(r.stdout, "data/link") {
		t.Errorf("known: %+v", r)
	}
	if r := h.try("hash", "--md5", "--match", list, ref); r.code != 2 || !strings.Contains(r.stderr, "no md5") {
		t.Errorf("a list of another algorithm: %+v", r)
	}
	if err := os.WriteFile(list, []byte(strings.Repeat("0", 64)), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.try("hash", "--match", list, ref); r.code != 0 || r.stdout != "" {
		t.Errorf("unknown: %+v", r)
	}
}

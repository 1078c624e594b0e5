package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
)

// An evidenceLine is a line of an evidence log, as far as these tests look at it.
type evidenceLine struct {
	Event string
	Data  struct {
		URL, What, Range, Name string
		OK                     bool
	}
}

func evidenceLines(t *testing.T, path string) (list []evidenceLine, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var l evidenceLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, l)
	}
	return list, string(b)
}

func countEvents(list []evidenceLine, event string) (n int) {
	for _, l := range list {
		if l.Event == event {
			n++
		}
	}
	return n
}

// TestEvidence: an examination's log has every request and every check, and no secret; the
// mount shows the tars and lets nothing run; a replay from the cache asks nobody.
func TestEvidence(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	s.Use(registrytest.Bearer("examiner", "hunter2hunter2").Wrap)
	auth := filepath.Join(t.TempDir(), "auth.json")
	login := base64.StdEncoding.EncodeToString([]byte("examiner:hunter2hunter2"))
	if err := os.WriteFile(auth, fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, s.Host(), login), 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "evidence.jsonl")
	h := newHost(t)
	if r := h.try("mount", "--forensic", s.Host()+"/sample", t.TempDir()); r.code != 2 || !strings.Contains(r.stderr, "--evidence") {
		t.Fatalf("without a log: %+v", r)
	}
	dir := h.mount(s.Host()+"/sample", "--authfile", auth, "--forensic", "--evidence", log)
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+dir+" ") && !strings.Contains(line, "ro,nosuid,nodev,noexec,") {
			t.Errorf("mounted as %s", line)
		}
	}
	tree(t, dir)
	h.run("umount", dir)
	lines, text := evidenceLines(t, log)
	for _, secret := range []string{"hunter2", login, "Bearer"} {
		if strings.Contains(text, secret) {
			t.Errorf("the log has %q", secret)
		}
	}
	if sent, logged := s.Total("", "").Requests, countEvents(lines, "request"); logged < sent || sent == 0 {
		t.Errorf("%d requests were sent, %d are in the log", sent, logged)
	}
	whole := 0
	for _, l := range lines {
		if l.Event == "check" && l.Data.What == "blob" && l.Data.OK {
			whole++
		}
	}
	if whole != len(sampleLayers) {
		t.Errorf("%d layers were checked whole", whole)
	}
	if first, last := lines[0].Event, lines[len(lines)-1].Event; first != "begin" || last != "end" || countEvents(lines, "mount") != 1 || countEvents(lines, "unmount") != 1 || countEvents(lines, "image") != 1 {
		t.Errorf("the log is from %s to %s:\n%s", first, last, text)
	}
	h.run("evidence", "verify", log)

	before := s.Total("", "").Requests
	again := h.mount(s.Host()+"/sample", "--offline", "--forensic", "--evidence", log)
	sameTree(t, "replay", tree(t, again), "offline", tree(t, h.mount(s.Host()+"/sample", "--offline")))
	h.run("umount", again)
	if n := s.Total("", "").Requests - before; n != 0 {
		t.Errorf("the replay made %d requests", n)
	}
	if after, _ := evidenceLines(t, log); len(after) <= len(lines) {
		t.Error("the replay is not in the log")
	}
	if out := h.run("evidence", "verify", "--json", log); !strings.Contains(out, `"sha256"`) {
		t.Errorf("evidence verify: %s", out)
	}
	if err := os.WriteFile(log, []byte(strings.Replace(text, `"status":200`, `"status":404`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.try("evidence", "verify", log); r.code != 6 || !strings.Contains(r.stderr, "line ") {
		t.Errorf("a changed log: %+v", r)
	}
	if r := h.try("mount", "--evidence", log, s.Host()+"/sample", t.TempDir()); r.code != 6 {
		t.Errorf("a changed log was gone on with: %+v", r)
	}
}

// TestEvidenceFiles: who opened which file, every time.
func TestEvidenceFiles(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	log := filepath.Join(t.TempDir(), "log")
	if r := h.try("mount", "--evidence-files", s.Host()+"/sample", t.TempDir()); r.code != 2 || !strings.Contains(r.stderr, "--evidence") {
		t.Errorf("without a log: %+v", r)
	}
	dir := h.mount(s.Host()+"/sample", "--evidence", log, "--evidence-files", "--meta")
	for _, args := range [][]string{{dir + "/data/big", dir + "/data/big"}, {dir + "/.layerfs/manifest.json"}} {
		if out, err := exec.Command("cat", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	h.run("umount", dir)
	h.run("evidence", "verify", log)
	list, text := evidenceLines(t, log)
	if n := countEvents(list, "open"); n != 3 {
		t.Errorf("%d files opened:\n%s", n, text)
	}
	if want := `"command":"cat","gid":0,"layer":2,"path":"/data/big"`; strings.Count(text, want) != 2 {
		t.Errorf("no two lines with %s:\n%s", want, text)
	}
}

// TestEvidenceOfDamage: bytes that are not what they should be are in the log.
func TestEvidenceOfDamage(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	s.Use(registrytest.Corrupt(digest.FromBytes(sampleImage(t).Layers[0].Blob), 60))
	log := filepath.Join(t.TempDir(), "evidence.jsonl")
	h := newHost(t)
	if r := h.try("mount", "--forensic", "--evidence", log, s.Host()+"/sample", t.TempDir()); r.code != 6 {
		t.Errorf("mounted: %+v", r)
	}
	lines, text := evidenceLines(t, log)
	bad := 0
	for _, l := range lines {
		if l.Event == "check" && !l.Data.OK {
			bad++
		}
	}
	if bad == 0 || lines[len(lines)-1].Event != "end" {
		t.Errorf("the damage is not in the log:\n%s", text)
	}
	h.run("evidence", "verify", log)
}

//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// findings are the paths that layerfs audit lists under some rules.
func findings(t *testing.T, out string, rules ...string) (paths []string) {
	t.Helper()
	for line := range strings.Lines(out) {
		var f struct{ Rule, Path, Detail string }
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if slices.Contains(rules, f.Rule) {
			paths = append(paths, f.Path)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// TestAuditIsDpkgVerify: an audit finds what "dpkg --verify" finds in a chroot, where
// configuration and programs were changed, replaced and deleted.
func TestAuditIsDpkgVerify(t *testing.T) {
	layout := sample(t, "py")
	h := newHost(t)
	dir := h.mount("oci:"+layout+":latest", "--rw")
	write := func(name, text string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/adduser.conf", "# mine\n")
	write("usr/bin/env", "\x00")
	write("usr/share/perl5/Debconf/Config.pm", "# mine\n")
	for _, name := range []string{"etc/debconf.conf", "usr/bin/yes"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "out")
	h.run("commit", dir, "oci:"+out+":1")

	cmd := exec.Command("chroot", dir, "dpkg", "--verify")
	text, err := cmd.Output() // its exit status says nothing
	if err != nil && cmd.ProcessState.ExitCode() > 1 {
		t.Fatal(err)
	}
	var want []string
	for s := bufio.NewScanner(strings.NewReader(string(text))); s.Scan(); {
		if i := strings.Index(s.Text(), " /"); i > 0 {
			want = append(want, s.Text()[i+1:])
		}
	}
	slices.Sort(want)
	want = slices.Compact(want)
	got := findings(t, h.run("audit", "--json", "oci:"+out+":1"), "missing", "changed")
	if !slices.Equal(got, want) || len(want) < 5 {
		t.Errorf("dpkg finds %d, audit %d", len(want), len(got))
		for _, p := range got {
			if !slices.Contains(want, p) {
				t.Errorf("only audit: %s", p)
			}
		}
		for _, p := range want {
			if !slices.Contains(got, p) {
				t.Errorf("only dpkg: %s", p)
			}
		}
	}
}

// TestAuditWithoutContent counts what an audit of a lazy image fetches: the indexes and the package database.
func TestAuditWithoutContent(t *testing.T) {
	layout := sample(t, "py-estargz")
	addr, _ := dockerRegistry(t)
	push(t, layout, addr+"/py:latest")
	s := before(t, addr)
	h := newHost(t)
	if got := findings(t, h.run("audit", "--no-content", "--json", s.Host()+"/py"), "setuid"); !slices.Contains(got, "/usr/bin/su") {
		t.Errorf("setuid programs: %q", got)
	}
	c := s.Total("", "")
	t.Logf("%d requests, %d bytes", c.Requests, c.Out)
	if c.Out > 10<<20 { // of 122 MB
		t.Errorf("%d bytes fetched", c.Out)
	}
}

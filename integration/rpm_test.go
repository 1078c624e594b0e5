package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rpmRoot is a tree into which rpm has installed packages of its own making: one with so many files
// that its header spans pages of the database, one with configuration and what need not be there.
func rpmRoot(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"rpm", "rpmbuild"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	top, root := t.TempDir(), t.TempDir()
	specs := map[string]string{"many": "%install\nmkdir -p %{buildroot}/usr/share/many\nfor i in $(seq 3000); do echo $i >%{buildroot}/usr/share/many/file-with-a-rather-long-name-$i; done\n%files\n/usr/share/many\n",
		"conf": "%install\nmkdir -p %{buildroot}/etc %{buildroot}/usr/bin %{buildroot}/var/log\necho a >%{buildroot}/etc/conf\necho b >%{buildroot}/usr/bin/tool\nln -s tool %{buildroot}/usr/bin/link\ntouch %{buildroot}/var/log/ghost\n" +
			"%files\n%config(noreplace) /etc/conf\n%attr(4755,root,root) /usr/bin/tool\n/usr/bin/link\n%ghost /var/log/ghost\n"}
	for i := range 60 { // a tree of pages in the database
		name := fmt.Sprintf("p%d", i)
		specs[name] = fmt.Sprintf("%%install\nmkdir -p %%{buildroot}/opt/%[1]s\necho %[1]s >%%{buildroot}/opt/%[1]s/f\n%%files\n/opt/%[1]s\n", name)
	}
	var args []string
	for name, body := range specs {
		spec := filepath.Join(top, name+".spec")
		head := fmt.Sprintf("Name: %s\nVersion: 1\nRelease: 1\nSummary: s\nLicense: l\nBuildArch: noarch\n%%description\nd\n", name)
		must(t, os.WriteFile(spec, []byte(head+body), 0o644))
		args = append(args, spec)
	}
	runTool(t, "rpmbuild", append([]string{"-bb", "--quiet", "--define", "_topdir " + top, "--define", "_binary_payload w0.gzdio"}, args...)...)
	packages, err := filepath.Glob(top + "/RPMS/noarch/*.rpm")
	must(t, err)
	must(t, os.MkdirAll(root+"/var/lib/rpm", 0o755))
	runTool(t, "rpm", append([]string{"--root", root, "--dbpath", "/var/lib/rpm", "-i", "--nodeps", "--noscripts", "--nosignature"}, packages...)...)
	return root
}

func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// TestAuditIsRpmVerify: an audit finds what "rpm -Va" finds, where files of packages were changed and deleted, and what no package has.
func TestAuditIsRpmVerify(t *testing.T) {
	needRoot(t)
	root := rpmRoot(t)
	for _, name := range []string{"etc/conf", "usr/share/many/file-with-a-rather-long-name-2999", "opt/p7/f"} {
		must(t, os.WriteFile(filepath.Join(root, name), []byte("changed\n"), 0o644))
	}
	for _, name := range []string{"usr/bin/link", "usr/share/many/file-with-a-rather-long-name-1", "opt/p40/f", "var/log/ghost"} {
		if err := os.Remove(filepath.Join(root, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	must(t, os.WriteFile(root+"/usr/bin/stranger", []byte("x"), 0o755))
	out, _ := exec.Command("rpm", "--root", root, "--dbpath", "/var/lib/rpm", "-Va", "--nomtime", "--nomode", "--nouser", "--nogroup", "--nosize", "--nordev", "--nolinkto", "--nocaps", "--nodeps").Output()
	var want []string
	for line := range strings.Lines(string(out)) { // "..5......  c /etc/conf", "missing     /usr/bin/link"
		if i := strings.Index(line, " /"); i > 0 {
			want = append(want, strings.TrimSpace(line[i:]))
		}
	}
	slices.Sort(want)
	var got []string
	rules := map[string][]string{}
	for line := range strings.Lines(newHost(t).run("audit", "--json", "dir:"+root)) {
		var f struct{ Rule, Path string }
		must(t, json.Unmarshal([]byte(line), &f))
		rules[f.Rule] = append(rules[f.Rule], f.Path)
	}
	got = append(rules["missing"], rules["changed"]...)
	slices.Sort(got)
	if !slices.Equal(got, want) || len(want) != 6 {
		t.Errorf("rpm finds %d:\n%q\naudit %d:\n%q", len(want), want, len(got), got)
	}
	if u := rules["unowned"]; !slices.Equal(u, []string{"/usr/bin/stranger"}) {
		t.Errorf("in no package: %q", u)
	}
	if s := rules["setuid"]; !slices.Equal(s, []string{"/usr/bin/tool"}) {
		t.Errorf("setuid: %q", s)
	}
}

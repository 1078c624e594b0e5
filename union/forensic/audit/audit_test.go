package audit_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic/audit"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type blob []byte

func (b blob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

func imageOf(t testing.TB, texts ...string) audit.Image {
	t.Helper()
	s, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	var im audit.Image
	for _, text := range texts {
		tar := layertest.Tar(text)
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar))}
		l, err := layer.Open(context.Background(), d, blob(tar), s, layer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		im.Layers = append(im.Layers, l)
	}
	if im.Tree, err = union.Merge(context.Background(), im.Layers); err != nil {
		t.Fatal(err)
	}
	return im
}

// run audits and returns a line for each finding: rule, layer, path, state where it is not visible.
func run(t *testing.T, im audit.Image, o audit.Options) (lines []string, details map[string]string) {
	t.Helper()
	details = map[string]string{}
	_, err := audit.Run(t.Context(), im, o, func(f audit.Finding) error {
		line := fmt.Sprintf("%s %d %s", f.Rule, f.Layer+1, f.Path)
		if f.State != "" && f.State != "visible" {
			line += ", " + f.State
		}
		lines = append(lines, line)
		details[line] += f.Detail
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines, details
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// file is a line of a text archive.
func file(name, content string, more ...string) string {
	return strings.Join(append([]string{"file", strconv.Quote(name), strconv.Quote(content)}, more...), " ")
}

func TestMetadata(t *testing.T) {
	im := imageOf(t, strings.Join([]string{
		file("bin/su", "x", "04755"),
		file("bin/wall", "x", "02755", "0:5"),
		file("bin/lock", "x", "02644"), // mandatory locking, no right
		file("bin/ping", "x", "0755", `security.capability="\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`),
		"char dev/null 1:3 0666",
		file("etc/open", "x", "0666"),
		"dir tmp 01777",
		"dir srv/all 0777",
		"symlink etc/link /nowhere",
		file("usr/bin/.hidden", "x"),
		file("root/.bashrc", "x"),
		file("srv/...", "x"),
		file("srv/end ", "x"),
		file("srv/e\x1b[31m", "x"),
		file("srv/\xff", "x"),
		file("srv/a\u202egnp.exe", "x"),
		file("srv/umläut", "x"),
		file("tmp/run.sh", "x", "0755"),
		file("tmp/data", "x"),
	}, "\n"))
	lines, details := run(t, im, audit.Options{})
	want(t, lines,
		"setuid 1 bin/su", "setgid 1 bin/wall", "capability 1 bin/ping", "device 1 dev/null",
		"world-writable 1 etc/open", "world-writable 1 srv/all",
		"odd-name 1 srv/...", "odd-name 1 srv/a\u202egnp.exe", "odd-name 1 srv/e\x1b[31m", "odd-name 1 srv/end ", "odd-name 1 srv/\xff", "odd-name 1 usr/bin/.hidden",
		"odd-place 1 tmp/run.sh")
	if got := details["capability 1 bin/ping"]; got != "cap_net_raw=ep" {
		t.Errorf("capability: %q", got)
	}
}

func md5sum(s string) string { return fmt.Sprintf("%x", md5.Sum([]byte(s))) }

func TestDpkg(t *testing.T) {
	base := strings.Join([]string{
		"dir usr/bin", "symlink bin usr/bin", // merged /usr: the packages say /bin
		file("usr/bin/sh", "shell"), file("usr/bin/ls", "ls"), file("usr/bin/which.orig", "other which"), file("usr/bin/which", "own which"),
		file("etc/conf", "as shipped"), file("etc/conf2", "as shipped"),
		file("usr/local/own/a", "12345"), file("usr/local/own/b/c", "1"), "dir usr/local",
		file("var/lib/dpkg/info/sh:amd64.list", "/.\n/bin\n/bin/sh\n/bin/ls\n/bin/which\n/etc\n/etc/conf\n/etc/conf2\n/usr\n/usr/bin\n/usr/local\n/usr/share/doc/gone\n/var\n/var/lib\n/var/lib/dpkg\n/var/lib/dpkg/info\n"),
		file("var/lib/dpkg/info/sh:amd64.md5sums", md5sum("shell")+"  bin/sh\n"+md5sum("ls")+"  bin/ls\n"+md5sum("other which")+"  bin/which\n"),
		file("var/lib/dpkg/info/which.list", "/.\n/usr\n/usr/bin\n/usr/bin/which\n"),
		file("var/lib/dpkg/diversions", "/bin/which\n/usr/bin/which.orig\nwhich\n"),
		file("var/lib/dpkg/status", "Package: sh\nStatus: install ok installed\nConffiles:\n /etc/conf "+md5sum("as shipped")+"\n /etc/conf2 "+md5sum("as shipped")+"\nDescription: x\n more\n\nPackage: removed\nStatus: deinstall ok config-files\nConffiles:\n /etc/removed "+md5sum("x")+"\n"),
	}, "\n")
	t.Run("as shipped", func(t *testing.T) {
		lines, details := run(t, imageOf(t, base), audit.Options{})
		want(t, lines, "missing 0 usr/share/doc/gone", "unowned 1 usr/local/own")
		if got := details["unowned 1 usr/local/own"]; !strings.Contains(got, "2 files, 6 bytes") {
			t.Errorf("unowned: %q", got)
		}
	})
	t.Run("changed", func(t *testing.T) {
		upper := file("bin/ls", "LS") + "\n" + file("etc/conf", "mine") + "\nwhiteout etc/conf2\nsymlink usr/bin/which.orig /bin/false"
		upper = strings.ReplaceAll(upper, `"bin/ls"`, `"usr/bin/ls"`)
		lines, _ := run(t, imageOf(t, base, upper), audit.Options{})
		want(t, lines, "missing 2 etc/conf2", "missing 0 usr/share/doc/gone",
			"changed 2 etc/conf", "changed 2 usr/bin/ls", "changed 2 usr/bin/which.orig", "unowned 1 usr/local/own")
	})
	t.Run("no content", func(t *testing.T) {
		lines, _ := run(t, imageOf(t, base, file("usr/bin/ls", "LS")), audit.Options{NoContent: true})
		want(t, lines, "missing 0 usr/share/doc/gone", "unowned 1 usr/local/own")
	})
	t.Run("status.d", func(t *testing.T) { // images without a package manager
		im := imageOf(t, strings.Join([]string{
			file("app", "x"), file("etc/ok", "ok"), file("etc/bad", "?"),
			file("var/lib/dpkg/status.d/base", "Package: base\n"),
			file("var/lib/dpkg/status.d/base.md5sums", md5sum("ok")+"  etc/ok\n"+md5sum("bad")+"  etc/bad\n"),
		}, "\n"))
		lines, _ := run(t, im, audit.Options{})
		want(t, lines, "changed 1 etc/bad", "unowned 1 app")
	})
}

func TestApk(t *testing.T) {
	q1 := func(s string) string {
		h := sha1.Sum([]byte(s))
		return "Q1" + base64.StdEncoding.EncodeToString(h[:])
	}
	db := "C:Q1x\nP:busybox\nV:1\nF:bin\nR:sh\na:0:0:777\nZ:" + q1("/bin/busybox") + "\nR:busybox\nZ:" + q1("box") + "\nR:gone\nZ:" + q1("x") + "\nF:lib\nF:lib/apk\nF:lib/apk/db\n\nP:conf\nF:etc\nR:conf\nZ:" + q1("as shipped") + "\n"
	im := imageOf(t, file("bin/busybox", "box")+"\nsymlink bin/sh /bin/busybox\n"+file("etc/conf", "mine")+"\n"+file("bin/more", "x")+"\n"+file("lib/apk/db/installed", db))
	lines, _ := run(t, im, audit.Options{})
	want(t, lines, "missing 0 bin/gone", "changed 1 etc/conf", "unowned 1 bin/more")
	im = imageOf(t, file("bin/busybox", "box")+"\nsymlink bin/sh /bin/false\n"+file("lib/apk/db/installed", db))
	lines, _ = run(t, im, audit.Options{})
	want(t, lines, "missing 0 bin/gone", "missing 0 etc", "missing 0 etc/conf", "changed 1 bin/sh")
}

// token puts one together, so that no scanner takes this file for a leak.
func token(prefix string, n int) string { return prefix + strings.Repeat("a1B2", n/4+1)[:n] }

func TestSecrets(t *testing.T) {
	key := "-----BEGIN " + "OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n"
	im := imageOf(t,
		file("root/.ssh/id", key)+"\n"+file("app/.env", "X=1\nTOKEN="+token("ghp_", 36)+"\n")+"\n"+file("etc/shadow", "root:$6$abc$def:1\nbin:*:1\nopen::1\nlocked:!$6$x:1\n"),
		"whiteout root/.ssh\n"+file("app/.env", "X=2\n")+"\n"+file("app/code.c", "-----BEGIN "+"RSA PRIVATE KEY-----\" is the first line of a key")+"\n"+
			file("app/bin", "\x00\x01"+token("ghp_", 36)),
	)
	im.Words = []audit.Words{{Where: "the environment", Text: "DB_PASSWORD=hunter22", Layer: -1}, {Where: "the environment", Text: "PATH=/bin", Layer: -1},
		{Where: "a build step", Text: "curl https://me:letmein99@example.com/x", Layer: 1}}
	lines, details := run(t, im, audit.Options{})
	want(t, lines, "secret 0 ", "secret 2 ", "secret 1 app/.env, overwritten by layer 2", "secret 1 etc/shadow", "secret 1 etc/shadow", "secret 1 root/.ssh/id, deleted by layer 2")
	for line, detail := range details {
		for _, whole := range []string{token("ghp_", 36), "hunter22", "letmein99", "b3BlbnNz"} {
			if strings.Contains(detail, whole) {
				t.Errorf("%s: shows the secret: %s", line, detail)
			}
		}
	}
	if got := details["secret 1 app/.env, overwritten by layer 2"]; got != "GitHub token, line 2: ghp_… (40 characters)" {
		t.Errorf("token: %q", got)
	}
}

// TestPatterns has a line that each pattern finds, and lines that only look like one.
func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
	}{
		{token("AKIA", 0) + "ABCDEFGHIJKLMNOP", 1},
		{"ASIA" + "ABCDEFGHIJKLMNOP", 1},
		{"aws_secret_access_key = " + token("", 40), 1},
		{token("glpat-", 20), 1},
		{token("github_pat_", 70), 1},
		{token("xoxb-", 30), 1},
		{token("AIza", 35), 1},
		{token("sk_live_", 24), 1},
		{token("npm_", 36), 1},
		{"//registry.example/:_authToken=" + token("", 20), 1},
		{"//registry.example/:_authToken=${NPM_TOKEN}", 0},
		{token("pypi-", 60), 1},
		{`{"auths": {"r": {"auth": "dXNlcjpwYXNz"}}}`, 1},
		{"ftp://user:secret@host/", 1},
		{"https://user:$PASS@host/", 0},
		{"https://host/a:b@c", 0},
		{"machine h login me password pw", 1},
		{"ghost_story", 0},
		{"AKIA is a prefix", 0},
	} {
		lines, _ := run(t, imageOf(t, file("f", c.text)), audit.Options{})
		if len(lines) != c.n {
			t.Errorf("%q: %q", c.text, lines)
		}
	}
}

// TestRPM: files of packages are owned, held against their checksums, and missed, unless they need not be there.
func TestRPM(t *testing.T) {
	db, err := os.ReadFile("testdata/rpmdb.sqlite")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for i := range 60 {
		if i != 17 {
			fmt.Fprintf(&text, "%s\n", file(fmt.Sprintf("opt/many/f%03d", i), strconv.Itoa(i)))
		}
	}
	for i := range 12 {
		fmt.Fprintf(&text, "%s\n", file(fmt.Sprintf("opt/p%d", i), "p"))
	}
	im := imageOf(t, text.String()+file("usr/lib/sysimage/rpm/rpmdb.sqlite", string(db))+"\n"+file("usr/bin/tool", "tool")+"\nsymlink usr/bin/link tool\n"+file("etc/conf", "mine"),
		file("opt/many/f003", "other")+"\n"+file("srv/x", "x"))
	lines, _ := run(t, im, audit.Options{})
	want(t, lines, "missing 0 opt/many/f017", "changed 1 etc/conf", "changed 2 opt/many/f003", "unowned 2 srv")
	result, err := audit.Run(t.Context(), im, audit.Options{NoContent: true}, func(audit.Finding) error { return nil })
	if err != nil || !slices.Equal(result.Databases, []string{"rpm"}) || len(result.Unreadable) != 1 || !strings.Contains(result.Unreadable[0], "not a sound header") {
		t.Errorf("%+v, %v", result, err)
	}
	for name, text := range map[string]string{"an older form": "file var/lib/rpm/Packages \"\"", "not a sound SQLite": "file var/lib/rpm/rpmdb.sqlite \"SQLite format 3\"", "rpmdb.sqlite-wal": file("var/lib/rpm/rpmdb.sqlite", string(db)) + "\nfile var/lib/rpm/rpmdb.sqlite-wal \"x\""} {
		result, err := audit.Run(t.Context(), imageOf(t, text), audit.Options{NoContent: true}, func(audit.Finding) error { return nil })
		if err != nil || !strings.Contains(strings.Join(result.Unreadable, "\n"), name) {
			t.Errorf("%s: %+v, %v", name, result, err)
		}
	}
}

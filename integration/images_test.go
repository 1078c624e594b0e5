//go:build integration

package integration

import (
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// sample returns the OCI layout of one of the images that `make images` builds.
func sample(t *testing.T, name string) string {
	t.Helper()
	needRoot(t)
	needFUSE(t)
	dir := os.Getenv("LAYERFS_IMAGES")
	if dir == "" {
		t.Fatal("LAYERFS_IMAGES is not set: run `make integration`")
	}
	return filepath.Join(dir, name)
}

// unpackedTrees holds what unpacked has made.
var unpackedTrees sync.Map

// unpacked is what umoci makes of an image: unpacked once for all tests, a map for each.
func unpacked(t *testing.T, layout string) map[string]node {
	t.Helper()
	needTool(t, "umoci")
	if n, ok := unpackedTrees.Load(layout); ok {
		return maps.Clone(n.(map[string]node))
	}
	dir, err := os.MkdirTemp("", "unpacked")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	command(t, "umoci", "raw", "unpack", "--image", layout+":latest", filepath.Join(dir, "rootfs"))
	n := tree(t, filepath.Join(dir, "rootfs"))
	unpackedTrees.Store(layout, n)
	return maps.Clone(n)
}

// TestMountEqualsUnpack holds the mounted tree against umoci's, path by path,
// through every kind of source.
func TestMountEqualsUnpack(t *testing.T) {
	for _, name := range []string{"py", "big"} {
		t.Run(name, func(t *testing.T) {
			plain, star := sample(t, name), sample(t, name+"-estargz")
			addr, _ := dockerRegistry(t)
			push(t, plain, addr+"/plain:latest")
			push(t, star, addr+"/estargz:latest")
			archive := filepath.Join(t.TempDir(), "docker.tar")
			command(t, "skopeo", "copy", "--quiet", "oci:"+plain+":latest", "docker-archive:"+archive+":"+name+":latest")
			want := unpacked(t, plain)
			for kind, ref := range map[string]string{
				"registry":       addr + "/plain",
				"estargz":        addr + "/estargz",
				"oci":            "oci:" + plain + ":latest",
				"docker-archive": "docker-archive:" + archive,
			} {
				t.Run(kind, func(t *testing.T) {
					dir := newHost(t).mount(ref)
					sameTree(t, "umoci", want, "layerfs", tree(t, dir))
				})
			}
		})
	}
}

// before stands in front of a registry and counts.
func before(t *testing.T, addr string) *registrytest.Server {
	t.Helper()
	s := registrytest.New(registrytest.Options{Upstream: &url.URL{Scheme: "http", Host: addr}})
	t.Cleanup(s.Close)
	return s
}

// TestLazyStart counts what a Python program costs on an eStargz image. What it needs
// differs a little with Debian's packages, so the limits leave a tenth.
func TestLazyStart(t *testing.T) {
	layout := sample(t, "py-estargz")
	addr, _ := dockerRegistry(t)
	push(t, layout, addr+"/py:latest")
	s := before(t, addr)
	h := newHost(t)
	dir := h.mount(s.Host() + "/py")
	mounted := s.Total("", "")
	if out := command(t, "chroot", dir, "python3", "-c", `print("hi")`); out != "hi\n" {
		t.Fatalf("python says %q", out)
	}
	c := s.Total("", "")
	t.Logf("mount: %+v; with python: %+v", mounted, c)
	if most := 2 + len(h.status().Layers); mounted.Requests > most {
		t.Errorf("%d requests to mount, want at most %d", mounted.Requests, most)
	}
	if c.Out > 6_050_000 {
		t.Errorf("fetched %d bytes, want at most 6.05 MB", c.Out)
	}
	if c.Requests > 22 {
		t.Errorf("%d requests, want at most 22", c.Requests)
	}
	if n := s.Total("HEAD", "").Requests; n > 0 {
		t.Errorf("%d HEAD requests", n)
	}
}

// TestOffline mounts again without a registry.
func TestOffline(t *testing.T) {
	layout := sample(t, "py")
	addr, stop := dockerRegistry(t)
	push(t, layout, addr+"/py:latest")
	h := newHost(t)
	first := h.mount(addr + "/py")
	want := tree(t, first)
	h.run("umount", first)
	stop()
	second := h.mount(addr+"/py", "--offline")
	sameTree(t, "online", want, "offline", tree(t, second))
}

// TestChangeAndCommit is the loop: change, commit to another repository, and
// look at the result with other tools.
func TestChangeAndCommit(t *testing.T) {
	layout := sample(t, "py")
	addr, _ := dockerRegistry(t)
	push(t, layout, addr+"/py:latest")
	p := before(t, addr)
	h := newHost(t)
	dir := h.mount(p.Host()+"/py", "--rw")
	change(t, dir)
	p.Reset()
	printed := strings.TrimSpace(h.run("commit", dir, p.Host()+"/changed:v1"))
	c := p.Total("", "")
	t.Logf("commit: %d requests, %d bytes fetched, %d sent", c.Requests, c.Out, c.In)
	if n := c.Out; n > 64<<10 {
		t.Errorf("commit fetched %d bytes, want at most 64 KiB", n)
	}
	if n := c.In; n > 1<<20 {
		t.Errorf("commit sent %d bytes, want at most 1 MiB", n)
	}
	if want := p.Host() + "/changed:v1@sha256:"; !strings.HasPrefix(printed, want) {
		t.Errorf("commit printed %q, want %q…", printed, want)
	}

	want := tree(t, dir)
	again := newHost(t).mount(p.Host() + "/changed:v1")
	sameTree(t, "live", want, "layerfs", tree(t, again))

	copied := filepath.Join(t.TempDir(), "copied")
	command(t, "skopeo", "copy", "--quiet", "--src-tls-verify=false", "docker://"+addr+"/changed:v1", "oci:"+copied+":latest")
	sameTree(t, "live", want, "umoci", unpacked(t, copied))
	t.Run("podman", func(t *testing.T) {
		sameTree(t, "live", withoutPodmanLosses(want), "podman", withoutPodmanLosses(podmanTree(t, addr+"/changed:v1")))
	})
}

func change(t *testing.T, dir string) {
	t.Helper()
	script := `set -eu
		cd "$1"
		echo changed >>etc/os-release
		echo new >etc/new-file
		chmod 600 app/run.py
		rm -r usr/share/perl5
		mkdir app/many
		i=0; while [ $i -lt 500 ]; do echo $i >app/many/$i; i=$((i+1)); done
		mv app/many app/renamed
		rm app/two
		ln app/one app/linked`
	command(t, "sh", "-c", script, "sh", dir)
}

// podmanTree pulls an image into a store of its own and walks what podman shows.
func podmanTree(t *testing.T, ref string) map[string]node {
	t.Helper()
	needTool(t, "podman")
	store, run := t.TempDir(), t.TempDir()
	podman := func(args ...string) string {
		return strings.TrimSpace(command(t, "podman", append([]string{"--root", store, "--runroot", run}, args...)...))
	}
	podman("pull", "--quiet", "--tls-verify=false", ref)
	dir := podman("image", "mount", ref)
	t.Cleanup(func() { podman("image", "umount", "--all"); podman("rmi", "--all", "--force") })
	return tree(t, dir)
}

// withoutPodmanLosses leaves out what overlayfs under podman cannot show: links
// over layers are separate files there, and the root is podman's own directory.
func withoutPodmanLosses(nodes map[string]node) map[string]node {
	out := map[string]node{}
	for path, n := range nodes {
		if path == "." {
			continue
		}
		n.first = ""
		out[path] = n
	}
	return out
}

// TestWork runs programs of the daily kind on a writable mount.
func TestWork(t *testing.T) {
	layout := sample(t, "py")
	dir := newHost(t).mount("oci:"+layout+":latest", "--rw", "-o", "dev,suid") // a chroot wants /dev/null
	t.Run("git", func(t *testing.T) {
		repo := filepath.Join(t.TempDir(), "source")
		command(t, "git", "clone", "--quiet", "--no-hardlinks", "..", repo)
		command(t, "git", "clone", "--quiet", "--no-hardlinks", repo, filepath.Join(dir, "clone"))
		if out := command(t, "git", "-C", filepath.Join(dir, "clone"), "status", "--porcelain"); out != "" {
			t.Errorf("fresh clone is dirty:\n%s", out)
		}
		command(t, "git", "-C", filepath.Join(dir, "clone"), "fsck", "--strict")
	})
	t.Run("go", func(t *testing.T) {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "layerfs"), "./cmd/layerfs")
		cmd.Dir = filepath.Join(dir, "clone")
		cmd.Env = append(os.Environ(), "GOCACHE="+filepath.Join(dir, "cache"), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		command(t, filepath.Join(dir, "layerfs"), "version")
	})
	t.Run("sqlite3", func(t *testing.T) {
		needTool(t, "sqlite3")
		sql := `PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) INSERT INTO t SELECT i, randomblob(200) FROM n;
			DELETE FROM t WHERE a%3=0; VACUUM; PRAGMA integrity_check; SELECT count(*) FROM t;`
		out := command(t, "sqlite3", filepath.Join(dir, "db"), sql)
		if want := "wal\nok\n13334\n"; out != want {
			t.Errorf("sqlite3 says %q, want %q", out, want)
		}
	})
	t.Run("apt", func(t *testing.T) {
		aptInstall(t, dir, "hello")
		if out := command(t, "chroot", dir, "hello"); out != "Hello, world!\n" {
			t.Errorf("the installed program says %q", out)
		}
	})
}

// aptInstall installs a package in a chroot, from where this machine gets its own.
func aptInstall(t *testing.T, dir, name string) {
	t.Helper()
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if b, err := os.ReadFile(f); err == nil {
			if err := os.WriteFile(filepath.Join(dir, f), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	command(t, "chroot", dir, "sh", "-euc",
		"export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && apt-get -qq install -y --no-install-recommends "+name)
}

// TestHash holds the checksums that the program prints against the tools they are for, in a mount.
func TestHash(t *testing.T) {
	needTool(t, "mtree")
	layout := sample(t, "py")
	h := newHost(t)
	ref := "oci:" + layout + ":latest"
	dir := h.mount(ref)
	for format, check := range map[string][]string{
		"sha256sum": {"sh", "-c", `cd "$2" && sha256sum --quiet --strict -c "$1"`, "sh"},
		"mtree":     {"sh", "-c", `mtree -p "$2" -f "$1"`, "sh"},
	} {
		list := filepath.Join(t.TempDir(), format)
		if err := os.WriteFile(list, []byte(h.run("hash", "--format", format, ref)), 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, check[0], append(check[1:], list, dir)...)
	}
}

// TestKilledServer loses the server and mounts again at the same place.
func TestKilledServer(t *testing.T) {
	layout := sample(t, "py")
	h := newHost(t)
	ref := "oci:" + layout + ":latest"
	dir := h.mount(ref, "--rw")
	command(t, "sh", "-c", `echo kept >"$1/etc/kept"; rm "$1/app/run.py"`, "sh", dir)
	m := h.only()
	pid := strconv.Itoa(m.PID)
	command(t, "kill", "-9", strconv.Itoa(m.Holder), pid) // the holder alone would see to it
	if _, err := os.ReadDir(dir); err == nil {
		t.Fatal("the mount answers without its server")
	}
	r := h.try("mount", "--rw", ref, dir)
	if r.code != 0 {
		t.Fatalf("mount after the crash: exit %d\n%s", r.code, r.stderr)
	}
	if !strings.Contains(r.stderr, pid) && !strings.Contains(r.stderr, "dead") && !strings.Contains(r.stderr, "crash") {
		t.Errorf("mount does not say what it found: %q", r.stderr)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "etc/kept")); err != nil || string(b) != "kept\n" {
		t.Errorf("written before the crash: %q, %v", b, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "app/run.py")); !os.IsNotExist(err) {
		t.Errorf("deleted before the crash: %v", err)
	}
}

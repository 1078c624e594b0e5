//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// treeTar makes a tar of a small tree that needs nothing to run.
func treeTar(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"etc/passwd": "root", "etc/old": "old", "var/x/old": "old", "bin/tool": strings.Repeat("tool", 1000)} {
		p := filepath.Join(dir, "tree", name)
		if err := first(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "chmod", "4755", filepath.Join(dir, "tree/bin/tool"))
	file := filepath.Join(dir, "tree.tar")
	command(t, "tar", "-C", filepath.Join(dir, "tree"), "-cf", file, ".")
	return file
}

// treeChange is what is done to a tree of a container: deletions, a directory made anew, a
// rename, hardlinks, a device.
const treeChange = `set -e; cd "$1"; rm etc/old; rm -r var/x; mkdir var/x; echo "$2" >var/x/new; echo "$2" >etc/passwd
	ln etc/passwd etc/linked$2; mv bin* bin$2; ln -s /nowhere link$2; mknod null$2 c 1 3; : >etc/old; chown 12:34 etc/old`

// listing is a tree as find(1) sees it, without link counts: overlayfs shows those of the lower
// file also when its other name was overwritten.
func listing(t *testing.T, dir string) string {
	t.Helper()
	out := command(t, "sh", "-c", `cd "$1" && { find . -type d -printf '%P %y %m %U %G %T@\n'; find . ! -type d -printf '%P %y %m %U %G %s %T@ %l\n'; find . -type f -exec sha256sum {} +; } | sort`, "sh", dir)
	return out
}

// readOnlyCopy copies a store to a read-only mount, as evidence is looked at.
func readOnlyCopy(t *testing.T, store string) string {
	t.Helper()
	dir := t.TempDir()
	at := filepath.Join(dir, "copy")
	command(t, "cp", "-a", store, at)
	command(t, "mount", "--bind", at, at)
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	command(t, "mount", "-o", "remount,bind,ro", at)
	return at
}

// examine holds a container of a copied store against what its engine showed, as root, and
// looks at it as another user.
func examine(t *testing.T, store, ref, shown string) {
	t.Helper()
	copied := readOnlyCopy(t, store)
	before := everything(t, copied)
	h := newHost(t)
	image := strings.Replace(ref, store, copied, 1)
	dir := h.mount(image)
	if got := listing(t, dir); got != shown {
		t.Errorf("the mount is not what the engine shows:\n%s", firstDifference(shown, got))
	}
	if r := h.try("verify", image); r.code != 0 || !strings.Contains(r.stdout, "ok       layer 2") {
		t.Errorf("verify: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	h.run("umount", dir)
	if after := everything(t, copied); after != before {
		t.Errorf("the store has changed:\n%s", firstDifference(before, after))
	}
	asNobody(t, image, copied)
}

// asNobody looks at a container without any right, as far as its files are readable.
func asNobody(t *testing.T, image, copied string) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	command(t, "mount", "-o", "remount,bind,rw", copied)
	command(t, "chmod", "-R", "a+rX", copied)
	command(t, "mount", "-o", "remount,bind,ro", copied)
	for p := filepath.Dir(copied); p != "/"; p = filepath.Dir(p) {
		command(t, "chmod", "a+x", p)
	}
	command(t, "chmod", "a+rx", path, filepath.Dir(path))
	command(t, "chmod", "777", state, filepath.Dir(state))
	before := everything(t, copied)
	out, err := exec.Command("setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all",
		path, "--root", filepath.Join(state, "root"), "find", image, "/").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "/var/x/new\n") || !strings.Contains(string(out), "CAP_SYS_ADMIN") {
		t.Errorf("as another user: %v\n%s", err, out)
	}
	if after := everything(t, copied); after != before {
		t.Errorf("as another user the store has changed:\n%s", firstDifference(before, after))
	}
}

// TestPodmanStore: a store that podman made, with a container that was written to.
func TestPodmanStore(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	needTool(t, "podman", "setpriv")
	dir := t.TempDir()
	store := filepath.Join(dir, "storage")
	podman := func(args ...string) string {
		return strings.TrimSpace(command(t, "podman", append([]string{"--root", store, "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay"}, args...)...))
	}
	t.Cleanup(func() { podman("rm", "-a") })
	podman("import", "-q", treeTar(t), "tree:1")
	podman("create", "--name", "one", "tree:1", "/bin/tool")
	command(t, "sh", "-c", treeChange, "sh", podman("mount", "one"), "1")
	podman("umount", "one")
	podman("commit", "-q", "one", "tree:2")
	podman("create", "--name", "two", "tree:2", "/bin/tool")
	merged := podman("mount", "two")
	command(t, "sh", "-c", treeChange, "sh", merged, "2")
	shown := listing(t, merged)
	podman("umount", "two")
	examine(t, store, "containers-storage:"+store+"#two", shown)
}

// TestDockerStore: a data root that dockerd made, with a stopped container that was written to.
func TestDockerStore(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	needTool(t, "dockerd", "docker", "containerd", "setpriv")
	dir := t.TempDir()
	store, socket := filepath.Join(dir, "docker"), "unix://"+filepath.Join(dir, "docker.sock")
	d := exec.Command("dockerd", "--data-root", store, "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"), "-H", socket,
		"--iptables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false", "--storage-driver=overlay2")
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { _ = d.Process.Signal(unix.SIGTERM); _ = d.Wait() }
	defer stop()
	eventually(t, "dockerd", func() bool { return exec.Command("docker", "-H", socket, "info").Run() == nil })
	docker := func(args ...string) string {
		return strings.TrimSpace(command(t, "docker", append([]string{"-H", socket}, args...)...))
	}
	docker("import", treeTar(t), "tree:1")
	for i := 1; i <= 2; i++ {
		name := fmt.Sprint("c", i)
		docker("create", "--name", name, fmt.Sprint("tree:", i), "/bin/tool")
		lower := docker("inspect", "-f", "{{.GraphDriver.Data.LowerDir}}", name)
		upper := docker("inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", name)
		at := t.TempDir()
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
		command(t, "mount", "-t", "overlay", "overlay", "-o", "index=off,redirect_dir=off,lowerdir="+lower+",upperdir="+upper+",workdir="+docker("inspect", "-f", "{{.GraphDriver.Data.WorkDir}}", name), at)
		command(t, "sh", "-c", treeChange, "sh", at, fmt.Sprint(i))
		shown := listing(t, at)
		command(t, "umount", at)
		docker("commit", name, fmt.Sprint("tree:", i+1))
		if i == 2 {
			stop()
			examine(t, store, "docker-root:"+store+"#"+name, shown)
		}
	}
}

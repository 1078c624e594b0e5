//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// changeMore makes what change has not: a directory replaced by a file, one emptied and filled
// anew, a lower directory under a new name, one made and removed, and names that need PAX.
func changeMore(t *testing.T, dir string) {
	t.Helper()
	script := `set -eu
		cd "$1"
		rm -r etc/alternatives; echo file >etc/alternatives
		rm -r etc/default; mkdir etc/default; echo only >etc/default/this
		mv etc/apt etc/apt-moved; rm etc/apt-moved/sources.list.d/* || true
		mkdir -p gone/deep; rm -r gone
		mkdir "with space"; echo x >"with space/$(printf 'n%.0s' $(seq 200))"; echo y >"with space/ü"
		ln -s /etc/passwd app/absolute; mkfifo app/fifo; touch -d '1960-02-03 04:05:06.789' app/ancient`
	command(t, "sh", "-c", script, "sh", dir)
}

// walkTar reads a layer with Python's tarfile, beside the list of the paths of the base ("d" or
// "f", a space and the path), and says what breaks the rules of order.
const walkTar = `
import sys, tarfile, posixpath
base = {}
for line in open(sys.argv[2], encoding='utf-8', errors='surrogateescape'):
    kind, path = line.rstrip('\n').split(' ', 1)
    base[path] = kind
seen, last, named = {}, {}, set()
for m in tarfile.open(sys.argv[1]):
    name = m.name.rstrip('/')
    if name in ('', '.'):
        continue
    dir, leaf = posixpath.split(name)
    if name in seen: print('twice:', name)
    if name.startswith('/') or '..' in name.split('/'): print('out of the layer:', name)
    if dir and (dir not in seen or not seen[dir].isdir()): print('no directory before it:', name)
    seen[name] = m
    if leaf.startswith('.wh.'):
        hidden = posixpath.join(dir, leaf[4:])
        if leaf == '.wh..wh..opq': print('opaque:', name)
        if hidden not in base: print('hides nothing:', name)
        if dir and base.get(dir) != 'd': print('below a replaced directory:', name)
        if m.size or not m.isreg() or m.mode or m.mtime: print('a whiteout with attributes:', name)
        if dir in named: print('a whiteout behind names:', name)
    else:
        named.add(dir)
        if leaf.encode('utf-8', 'surrogateescape') <= last.get(dir, b''): print('out of order:', name)
        last[dir] = leaf.encode('utf-8', 'surrogateescape')
    if m.islnk() and (m.linkname not in seen or not seen[m.linkname].isreg()): print('links to nothing before it:', name)
print(len(seen), 'entries')
`

// TestLayerByPython: an independent reader walks the new layer.
func TestLayerByPython(t *testing.T) {
	needMount(t)
	needTool(t, "python3")
	h := newHost(t)
	image := "oci:" + sample(t, "py") + ":latest"
	var base strings.Builder
	for p, n := range tree(t, h.mount(image)) {
		fmt.Fprintf(&base, "%s %s\n", map[bool]string{true: "d", false: "f"}[n.mode&0o170000 == 0o040000], p)
	}
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/base", []byte(base.String()), 0o600))
	rw := h.mount(image, "--rw")
	change(t, rw)
	changeMore(t, rw)
	name := h.run("commit", "--compression", "none", rw, "oci:"+dir+"/out:x")
	must(t, os.WriteFile(dir+"/layer.tar", layerTar(t, dir+"/out", digestPart(strings.TrimSpace(name))), 0o600))
	out := strings.TrimSpace(command(t, "python3", "-c", walkTar, dir+"/layer.tar", dir+"/base"))
	if strings.Contains(out, "\n") || !strings.HasSuffix(out, " entries") || strings.HasPrefix(out, "0 ") {
		t.Errorf("python says:\n%s", out)
	}
}

// TestUnpackedByContainerd: containerd, which applies layers by itself, makes the live tree of them.
func TestUnpackedByContainerd(t *testing.T) {
	needMount(t)
	needTool(t, "ctr", "containerd")
	h := newHost(t)
	rw := h.mount("oci:"+sample(t, "py")+":latest", "--rw")
	change(t, rw)
	changeMore(t, rw)
	want := tree(t, rw)
	dir := t.TempDir()
	h.run("commit", rw, "oci-archive:"+dir+"/out.tar:test")
	got := containerdTree(t, dir)
	for p, n := range want {
		n.mtime = max(n.mtime, 0) // containerd dates nothing before 1970
		want[p] = n
	}
	for _, nodes := range []map[string]node{want, got} {
		delete(nodes, ".") // of containerd's own making
		maps.DeleteFunc(nodes, func(_ string, n node) bool { return n.mode&0o170000 == 0o140000 })
	}
	sameTree(t, "live", want, "containerd", got)
}

// containerdTree imports dir/out.tar into a containerd of its own and walks what it shows.
func containerdTree(t *testing.T, dir string) map[string]node {
	t.Helper()
	socket := filepath.Join(dir, "c.sock")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", dir+"/root", dir+"/state", socket)
	must(t, os.WriteFile(dir+"/config.toml", []byte(config), 0o600))
	daemon := exec.Command("containerd", "--config", dir+"/config.toml", "--log-level", "error")
	must(t, daemon.Start())
	t.Cleanup(func() { _ = daemon.Process.Kill(); _ = daemon.Wait() })
	ctr := func(args ...string) string { return command(t, "ctr", append([]string{"-a", socket}, args...)...) }
	eventually(t, "containerd", func() bool { return exec.Command("ctr", "-a", socket, "version").Run() == nil })
	ctr("images", "import", "--snapshotter", "native", "--index-name", "test", dir+"/out.tar")
	var names []string
	for _, line := range strings.Split(strings.TrimSpace(ctr("images", "ls", "-q")), "\n") {
		names = append(names, strings.TrimSpace(line))
	}
	if len(names) == 0 || names[0] == "" {
		b, _ := json.Marshal(names)
		t.Fatalf("containerd has no image: %s", b)
	}
	at := dir + "/mnt"
	must(t, os.Mkdir(at, 0o755))
	ctr("images", "mount", "--snapshotter", "native", names[0], at)
	t.Cleanup(func() { _ = exec.Command("umount", at).Run() })
	return tree(t, at)
}

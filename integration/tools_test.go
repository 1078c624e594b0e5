//go:build integration

package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

func needTool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("needs ", name)
		}
	}
}

// command runs a tool that must succeed and returns what it printed.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// dockerRegistry starts Debian's docker-registry on loopback with an empty
// store; stop ends it before the test does.
func dockerRegistry(t *testing.T) (addr string, stop func()) {
	t.Helper()
	needTool(t, "docker-registry")
	dir := t.TempDir()
	addr = freeAddr(t)
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "store"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	t.Cleanup(stop)
	eventually(t, "docker-registry", func() bool {
		res, err := http.Get("http://" + addr + "/v2/")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return addr, stop
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// push copies an image layout to a registry with a tool that is not ours.
func push(t *testing.T, layout, ref string) {
	t.Helper()
	needTool(t, "skopeo")
	command(t, "skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", "oci:"+layout+":latest", "docker://"+ref)
}

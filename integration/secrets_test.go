package integration

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// TestNoSecrets: neither the log, with all that it can say, nor the arguments and files of a server show a password or a token.
func TestNoSecrets(t *testing.T) {
	needFUSE(t)
	s := sampleRegistry(t)
	s.Use(registrytest.Bearer("user", "hunter2hunter2").Wrap)
	auth := filepath.Join(t.TempDir(), "auth.json")
	login := base64.StdEncoding.EncodeToString([]byte("user:hunter2hunter2"))
	if err := os.WriteFile(auth, fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, s.Host(), login), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "-v", "--authfile", auth)
	tree(t, dir)
	args, err := os.ReadFile(fmt.Sprintf("/proc/%.0f/cmdline", mountsOf(t, h)[0]["pid"]))
	if err != nil || !strings.Contains(string(args), "mount") {
		t.Fatalf("arguments %q, %v", args, err)
	}
	log := serverLog(t, h)
	if !strings.Contains(log, "msg=mounted") {
		t.Errorf("the log has nothing: %s", log)
	}
	for _, secret := range []string{"hunter2", login, "Bearer "} {
		if strings.Contains(log, secret) || strings.Contains(string(args), secret) {
			t.Errorf("%q is shown: %s\n%s", secret, args, log)
		}
	}
	for _, d := range []string{"", "cache", "mounts", "log"} {
		fi, err := os.Stat(filepath.Join(h.root, d))
		if err != nil || d != "" && fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want 0700", d, fi.Mode(), err)
		}
	}
	sockets, err := filepath.Glob(filepath.Join(h.root, "mounts", "*", "*.sock"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets %v, %v", sockets, err)
	}
	if fi, err := os.Stat(sockets[0]); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v; want 0600", fi.Mode(), err)
	}
}

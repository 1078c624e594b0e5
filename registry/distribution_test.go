package registry

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// distribution starts Debian's docker-registry, which is the distribution
// project's, and returns its host.
func distribution(t *testing.T) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	_ = l.Close()
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir, host)
	cmd := exec.Command(bin, "serve", writeFile(t, filepath.Join(dir, "config.yml"), config, 0o644))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 100 {
		resp, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			return host
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("docker-registry does not answer")
	return ""
}

func TestDistribution(t *testing.T) {
	host := distribution(t)
	s := start(t, registrytest.Options{})
	old, fresh := noise(5_000_000), noise(3_000_001)
	s.PushImage("base:1", image(old))
	base := mustOpen(t, s.Host()+"/base:1", anonymous(t))
	first := mustPush(t, base, host+"/org/base:1", pushOptions(t, fresh))
	wantPushed(t, first, base, old, fresh)
	wantRange(t, first.Blob(first.Manifest.Layers[0]), old, 1_234_567, 100)
	o := pushOptions(t, noise(1000))
	second := mustPush(t, first, host+"/org/app:1", o) // mounts both layers
	if reqs, _ := first.Stats(); reqs != 3 {
		t.Errorf("%d requests for blobs of the base, want those of this test only", reqs)
	}
	wantRange(t, second.Blob(second.Manifest.Layers[1]), fresh, 0, 3_000_001)
	_, err := Open(t.Context(), host+"/org/app:nope", anonymous(t))
	if want := "open " + host + "/org/app:nope: manifest unknown"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	d := second.Manifest.Layers[0]
	d.Size += 10 // the registry answers 416 with a body that never comes
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	rc, err := second.Blob(d).ReadRange(ctx, d.Size-5, 5)
	if err == nil {
		_, err = io.Copy(io.Discard, rc)
	}
	if err == nil || ctx.Err() != nil {
		t.Errorf("a range behind the end: %v", err)
	}
}

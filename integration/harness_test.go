// Package integration tests layerfs from outside: the built program as its own
// process, real mounts, and the tools that people hold it against.
//
// Tests on the sample images of `make images` carry the build tag
// "integration"; the others run in `make test`.
package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// program builds layerfs once for all tests and returns its path.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "layerfs-program")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "layerfs")
	cmd := exec.Command("go", "build", "-o", path, "../cmd/layerfs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// A host is one user of the program: a state directory of his own, and mounts
// that are gone when the test ends.
type host struct {
	t    *testing.T
	root string
	env  []string
}

func newHost(t *testing.T) *host {
	t.Helper()
	if _, err := program(); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, root: t.TempDir()}
	t.Cleanup(func() {
		h.try("umount", "-a") // waits for the servers, which write to root up to their end
		h.try("umount", "-l", "-a")
	})
	return h
}

// A result is what a run of the program left.
type result struct {
	stdout, stderr string
	code           int
}

// try runs layerfs and returns what came of it.
func (h *host) try(args ...string) result {
	h.t.Helper()
	path, err := program()
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"--root", h.root}, args...)...)
	cmd.Env = append(os.Environ(), h.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatalf("layerfs %q: %v\n%s", args, err, errs.String())
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// run is try for a command that must succeed; it returns what stands on stdout.
func (h *host) run(args ...string) string {
	h.t.Helper()
	r := h.try(args...)
	if r.code != 0 {
		h.t.Fatalf("layerfs %q: exit %d\n%s", args, r.code, r.stderr)
	}
	return r.stdout
}

// mount mounts an image at a fresh directory.
func (h *host) mount(image string, flags ...string) string {
	h.t.Helper()
	dir := h.t.TempDir()
	h.run(append(append([]string{"mount"}, flags...), image, dir)...)
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func needFUSE(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/fuse: ", err)
	}
	f.Close()
}

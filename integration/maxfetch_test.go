package integration

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMaxFetch reads up to the limit and not beyond it, also behind the back of the next server.
func TestMaxFetch(t *testing.T) {
	needFUSE(t)
	needRoot(t)
	u, f := newHost(t), forge(t)
	f.text("random a 1MiB\nrandom b 1050KiB\nrandom c 1070KiB", "gzip")
	lazy := "oci:" + filepath.Join(t.TempDir(), "lazy")
	u.run("convert", "-q", "--compression", "estargz", f.ref(), lazy)
	dir := u.mount(lazy, "--prefetch", "none", "--max-fetch", "1700KB")
	if rows := mountsOf(t, u); rows[0]["max_fetch"] != 1.7e6 {
		t.Errorf("mounts says %v", rows[0]["max_fetch"])
	}
	first, err := os.ReadFile(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if _, err := os.ReadFile(filepath.Join(dir, "c")); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: beyond the limit: %v", when, err)
		}
		if again, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || !bytes.Equal(again, first) {
			t.Errorf("%s: what is in the cache: %v", when, err)
		}
	}
	refused("at first")
	old := mountsOf(t, u)[0]["pid"].(float64)
	if err := unix.Kill(int(old), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); mountsOf(t, u)[0]["pid"] == old || mountsOf(t, u)[0]["max_fetch"] == nil; time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatal("no server follows")
		}
	}
	refused("with the next server")
	if log := serverLog(t, u); !strings.Contains(log, "--max-fetch") {
		t.Errorf("the log does not name the flag: %s", log)
	}
	u.run("umount", dir)
	whole := newHost(t)
	if r := whole.try("mount", "--max-fetch", "1MB", f.ref(), dir); r.code != 8 || !strings.Contains(r.stderr, "--max-fetch") {
		t.Errorf("a layer that has to be read whole: exit %d: %s", r.code, r.stderr)
	}
	if r := whole.try("mount", "--max-fetch", "much", f.ref(), dir); r.code != 2 {
		t.Errorf("--max-fetch much: exit %d: %s", r.code, r.stderr)
	}
}

//go:build integration

package integration

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// TestProfileStart times a Python program over a link of 100 Mbit/s and 20 ms on
// an empty pack, without the profile of an earlier start and with it, in turns.
func TestProfileStart(t *testing.T) {
	for name, most := range map[string]time.Duration{"py-estargz": time.Second, "py": 1800 * time.Millisecond} {
		t.Run(name, func(t *testing.T) { profileStart(t, name, most) })
	}
}

func profileStart(t *testing.T, name string, most time.Duration) {
	layout := sample(t, name)
	s := registrytest.New(registrytest.Options{Dir: t.TempDir()})
	t.Cleanup(s.Close)
	push(t, layout, s.Host()+"/py:latest")
	s.Throttle(100_000_000/8, 20*time.Millisecond)
	h := newHost(t)
	ref := s.Host() + "/py"
	start := func(flags ...string) (took time.Duration, c registrytest.Count) {
		dir := filepath.Join(t.TempDir(), "m")
		command(t, "mkdir", dir)
		s.Reset()
		begun := time.Now()
		h.run(append(append([]string{"mount"}, flags...), ref, dir)...)
		command(t, "chroot", dir, "python3", "-c", `print("hi")`)
		took, c = time.Since(begun), s.Total("", "")
		h.run("umount", dir)
		return took, c
	}
	took, c := start()
	t.Logf("from nothing: %v, %d requests, %d bytes", took, c.Requests, c.Out)
	best := time.Hour
	for range 5 {
		for _, mode := range []string{"none", "auto"} {
			h.run("cache", "gc")
			took, c := start("--prefetch", mode)
			t.Logf("--prefetch %s: %v, %d requests, %d bytes", mode, took, c.Requests, c.Out)
			if mode == "auto" {
				best = min(best, took)
			}
		}
	}
	if best > most {
		t.Errorf("the best start with a profile took %v, want at most %v", best, most)
	}
}

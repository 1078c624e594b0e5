//go:build integration

package integration

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestBigUnderBound reads the big image twice under a bound of a fifteenth of it: never above 5 % more on disk,
// and the content of an unbounded mount.
func TestBigUnderBound(t *testing.T) {
	const bound = 100_000_000
	for _, name := range []string{"big", "big-estargz"} {
		t.Run(name, func(t *testing.T) {
			layout := sample(t, name)
			want := unpacked(t, sample(t, "big"))
			addr, _ := dockerRegistry(t)
			push(t, layout, addr+"/big:latest")
			h := newHost(t)
			stop := watchUsage(filepath.Join(h.root, "cache"))
			dir := h.mount(addr+"/big", "--cache-size", "100MB")
			for range 2 {
				readEverything(t, dir, want)
				forgetPages(t, dir)
			}
			if most := stop(); most > bound*105/100 {
				t.Errorf("%d bytes on the disk at most, the bound is %d", most, bound)
			} else {
				t.Logf("at most %d bytes on the disk", most)
			}
			sameTree(t, "unpacked", want, "mounted", tree(t, dir))
		})
	}
}

// readEverything reads all regular files to their end.
func readEverything(t *testing.T, dir string, nodes map[string]node) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(nodes)) {
		full := filepath.Join(dir, path)
		if st, err := os.Lstat(full); err != nil || !st.Mode().IsRegular() {
			continue
		}
		if _, err := os.ReadFile(full); err != nil {
			t.Fatal(err)
		}
	}
}

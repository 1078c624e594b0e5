package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCommitLazy: the index of a new layer is in the cache as soon as the layer is committed;
// another mount fetches content alone, and has the right one.
func TestCommitLazy(t *testing.T) {
	needMount(t)
	for _, algorithm := range []string{"estargz", "zstd:chunked"} {
		t.Run(algorithm, func(t *testing.T) {
			s := sampleRegistry(t)
			h := newHost(t)
			dir := h.mount(s.Host()+"/sample", "--rw")
			writeChanges(t, dir)
			large := strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB, beyond what is kept of the end
			if err := os.WriteFile(filepath.Join(dir, "a-large"), []byte(large), 0o600); err != nil {
				t.Fatal(err)
			}
			h.run("commit", "--compression", algorithm, dir, s.Host()+"/sample:lazy")
			want := tree(t, dir)
			m, _ := manifestOf(t, h, s.Host()+"/sample:lazy")
			blob := "/blobs/" + m.Layers[len(m.Layers)-1].Digest.String()
			s.Reset()
			again := h.mount(s.Host()+"/sample:lazy", "--prefetch", "none")
			if _, err := os.ReadDir(again); err != nil {
				t.Fatal(err)
			}
			if n := s.Total("GET", blob).Requests; n != 0 {
				t.Errorf("the mount asked %d times for the new layer", n)
			}
			sameTree(t, "live", want, "mounted", tree(t, again))
		})
	}
}

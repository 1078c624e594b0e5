//go:build integration

package integration

import (
	"path/filepath"
	"testing"
)

// TestSquashedByOthers: umoci unpacks the one layer to the live tree.
func TestSquashedByOthers(t *testing.T) {
	needMount(t)
	addr, _ := dockerRegistry(t)
	push(t, sample(t, "py-estargz"), addr+"/py:latest")
	h := newHost(t)
	rw := h.mount(addr+"/py", "--rw")
	change(t, rw)
	want := tree(t, rw)
	for _, compression := range []string{"gzip", "none"} {
		t.Run(compression, func(t *testing.T) {
			h.run("commit", "--squash", "--compression", compression, rw, addr+"/flat:"+compression)
			copied := filepath.Join(t.TempDir(), "copied")
			command(t, "skopeo", "copy", "--quiet", "--src-tls-verify=false", "docker://"+addr+"/flat:"+compression, "oci:"+copied+":latest")
			sameTree(t, "live", want, "umoci", unpacked(t, copied))
		})
	}
}

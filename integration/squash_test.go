package integration

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSquash: one layer shows what base and changes showed, in every form, for mounts,
// upper directories and images; the config keeps the rest of what it said.
func TestSquash(t *testing.T) {
	needMount(t)
	s := mixedRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/mixed"
	upper := t.TempDir() + "/upper"
	rw := h.mount(ref, "--upper", upper)
	for _, err := range []error{
		os.Rename(rw+"/usr", rw+"/opt"),
		os.Remove(rw + "/data/small"), // data/link stays
		os.Link(rw+"/data/link", rw+"/linked"),
		os.WriteFile(rw+"/etc/new", []byte("written\n"), 0o600),
		unix.Setxattr(rw+"/top", "user.k", []byte("v"), 0),
		os.Remove(rw + "/etc/motd"),
		os.Truncate(rw+"/empty", 64<<20),
		os.Chtimes(rw+"/data", time.Unix(1_600_000_000, 7), time.Unix(1_600_000_000, 7)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := tree(t, rw)
	for _, compression := range []string{"gzip", "zstd", "estargz", "zstd:chunked", "none"} {
		t.Run(compression, func(t *testing.T) {
			name := s.Host() + "/squashed:" + strings.ReplaceAll(compression, ":", "-")
			printed := strings.TrimSpace(h.run("commit", "--squash", "--compression", compression, "--change", "ENV A=b", "-m", "flat", rw, name))
			m, c := manifestOf(t, h, printed)
			if len(m.Layers) != 1 || len(c.RootFS.DiffIDs) != 1 || len(c.History) != 1 || c.History[0].Comment != "flat" {
				t.Errorf("%d layers, %d diff IDs, history %+v", len(m.Layers), len(c.RootFS.DiffIDs), c.History)
			}
			if len(c.Config.Env) != 1 || m.Annotations["org.opencontainers.image.base.digest"] != "" {
				t.Errorf("config %+v, annotations %v", c.Config, m.Annotations)
			}
			sameTree(t, "live", want, "squashed", tree(t, newHost(t).mount(printed)))
			if r := h.try("diff", "--content", "--exit-code", rw, printed); r.code != 0 {
				t.Errorf("diff: exit %d\n%s%s", r.code, r.stdout, r.stderr)
			}
			if r := h.try("verify", "--deep", printed); r.code != 0 {
				t.Errorf("verify: exit %d\n%s", r.code, r.stdout)
			}
		})
	}
	a := h.run("commit", "--squash", "--source-date-epoch", "1700000000", rw, s.Host()+"/a:1")
	h.run("umount", rw)
	b := h.run("commit", "--squash", "--source-date-epoch", "1700000000", upper, s.Host()+"/a:2")
	if digestPart(a) != digestPart(b) {
		t.Errorf("the mount and its upper directory give %s and %s", a, b)
	}
}

func TestSquashImage(t *testing.T) {
	s := mixedRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/mixed"
	dir := t.TempDir()
	for _, tt := range []struct{ src, dest, same string }{
		{ref, s.Host() + "/flat", ref},
		{ref + "@2", "oci:" + dir + "/layout:two", ref + "@2"},
		{ref, "docker-archive:" + dir + "/flat.tar:flat:1", ref},
		{ref, "oci-archive:" + dir + "/flat.oci:1", ref},
	} {
		h.run("commit", "--squash", tt.src, tt.dest)
		if r := h.try("diff", "--content", "--exit-code", tt.same, tt.dest); r.code != 0 {
			t.Errorf("%s: exit %d\n%s%s", tt.dest, r.code, r.stdout, r.stderr)
		}
	}
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{ref + "@9", s.Host() + "/flat"}, 3, "the image has 4"},
		{[]string{s.Host() + "/none", s.Host() + "/flat"}, 3, "none"},
		{[]string{"./nothing", s.Host() + "/flat"}, 3, "./nothing"},
	} {
		r := h.try(append([]string{"commit", "--squash"}, tt.args...)...)
		if r.code != tt.code || !strings.Contains(r.stderr, tt.says) {
			t.Errorf("%q: exit %d: %s", tt.args, r.code, r.stderr)
		}
	}
}

package integration

import (
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
)

func TestDiff(t *testing.T) {
	s := sampleRegistry(t)
	im := sampleImage(t)
	d := s.PushImage("other:v1", registrytest.Image{Layers: im.Layers[:2]})
	h := newHost(t)
	ref, other := s.Host()+"/sample", s.Host()+"/other"
	const third = "A /data/link\nA /etc/new\nD /etc/old\n"
	for _, tt := range []struct {
		args []string
		want string
		code int
		says string
	}{
		{args: []string{ref, ref}},
		{args: []string{ref + "@2", ref + ":latest@3"}, want: third},
		{args: []string{ref + "@3", ref + "@2"}, want: "D /data/link\nD /etc/new\nA /etc/old\n"},
		{args: []string{other + ":v1", ref}, want: third},
		{args: []string{"--content", other + "@" + d.Digest.String(), ref}, want: third},
		{args: []string{other + "@" + d.Digest.String() + "@1", other + ":v1"}, want: "A /data\nA /data/big\nA /data/small\nA /dev\nA /dev/null\n"},
		{args: []string{"--exit-code", other + ":v1", ref}, want: third, code: 10},
		{args: []string{"--exit-code", ref, ref + "@3"}},
		{args: []string{"-0", ref + "@3", ref + "@2"}, want: "D /data/link\x00D /etc/new\x00A /etc/old\x00"},
		{args: []string{"--json", ref + "@2", ref}, want: `{"kind":"A","path":"/data/link","size":6,"mode":"0644"}` + "\n" +
			`{"kind":"A","path":"/etc/new","size":4,"mode":"4755"}` + "\n" + `{"kind":"D","path":"/etc/old","size":4,"mode":"0644"}` + "\n"},
		{args: []string{ref}, code: 2, says: "layerfs diff " + ref + "@1 " + ref},
		{args: []string{ref + "@2"}, code: 2, says: "is an image"},
		{args: []string{ref + "@0", ref}, code: 2, says: "counted from 1"},
		{args: []string{ref + "@4", ref}, code: 3, says: "the image has 3"},
		{args: []string{"./nothing", ref}, code: 3, says: "./nothing"},
		{args: []string{t.TempDir(), ref}, code: 2, says: "neither a mount"},
		{args: []string{ref, ref, ref}, code: 2},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			r := h.try(append([]string{"diff"}, tt.args...)...)
			if r.code != tt.code || r.stdout != tt.want || !strings.Contains(r.stderr, tt.says) {
				t.Errorf("exit %d, want %d\n%q\nwant %q\n%s", r.code, tt.code, r.stdout, tt.want, r.stderr)
			}
		})
	}
}

// TestDiffMounts compares mounts with images, with one another, and by content.
func TestDiffMounts(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	ref := s.Host() + "/sample"
	ro, old, rw := h.mount(ref), h.mount(ref, "--layers", "1-2"), h.mount(ref, "--rw")
	writeChanges(t, rw)
	h.run("commit", rw, s.Host()+"/changed")
	const changed = "M /data/link\nM /data/small\nA /dir\nA /dir/f\nD /etc/motd\nT /s\n"
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{rw}, changed},
		{[]string{"--content", rw}, changed},
		{[]string{ro, rw}, changed},
		{[]string{ref, rw}, changed},
		{[]string{"--content", s.Host() + "/changed", rw}, ""},
		{[]string{rw, s.Host() + "/changed"}, ""},
		{[]string{ro, s.Host() + "/changed"}, changed},
		{[]string{old, ro}, "A /data/link\nA /etc/new\nD /etc/old\n"},
		{[]string{old, ref + "@2"}, ""},
	} {
		if got := h.run(append([]string{"diff"}, tt.args...)...); got != tt.want {
			t.Errorf("diff %q:\n%swant:\n%s", tt.args, got, tt.want)
		}
	}
	if r := h.try("diff", ro); r.code != 2 || !strings.Contains(r.stderr, "mounted read-only") {
		t.Errorf("a read-only mount alone: exit %d, %s", r.code, r.stderr)
	}
}

package integration

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCommitIsReproducible makes the same tree in another order of calls, and
// commits it by a program that has one core or two: same manifest.
func TestCommitIsReproducible(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	var first map[string]string
	for i, cores := range []string{"1", "2", "2"} {
		h := newHost(t)
		h.env = []string{"GOMAXPROCS=" + cores}
		rw := h.mount(s.Host()+"/sample", "--rw")
		manyChanges(t, rw, uint64(i))
		got := map[string]string{}
		for _, compression := range []string{"none", "gzip", "zstd", "estargz", "zstd:chunked"} {
			out := h.run("commit", "-q", "--source-date-epoch", "1700000000", "--change", "ENV A=b", "--compression", compression, rw, "oci:"+t.TempDir()+":v1")
			got[compression] = digestPart(strings.TrimSpace(out))
		}
		if first == nil {
			first = got
		}
		if !reflect.DeepEqual(got, first) {
			t.Errorf("run %d, %s cores: %v, not %v", i, cores, got, first)
		}
	}
}

// manyChanges makes the same tree for every seed, in an order that depends on it.
func manyChanges(t *testing.T, dir string, seed uint64) {
	t.Helper()
	must(t, os.MkdirAll(dir+"/d/e", 0o755))
	text := make([]byte, 5<<20) // several blocks of every compressor
	r := rand.New(rand.NewPCG(1, 2))
	for i := range text {
		text[i] = "abcdefgh"[r.IntN(8)]
	}
	steps := []func() error{
		func() error { return os.WriteFile(dir+"/d/big", text, 0o644) },
		func() error { return os.Remove(dir + "/etc/motd") },
		func() error { return os.Rename(dir+"/usr/lib", dir+"/usr/lib64") },
		func() error { return os.WriteFile(dir+"/data/small", []byte("other"), 0o644) },
		func() error { return os.Symlink("big", dir+"/d/link") },
		func() error {
			if err := os.WriteFile(dir+"/d/two", []byte("linked"), 0o600); err != nil {
				return err
			}
			return os.Link(dir+"/d/two", dir+"/d/e/one")
		},
	}
	for i := range 300 {
		steps = append(steps, func() error { return os.WriteFile(fmt.Sprintf("%s/d/e/f%d", dir, i), text[:i], 0o640) })
	}
	rand.New(rand.NewPCG(seed, 3)).Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	for _, step := range steps {
		must(t, step())
	}
}

// TestCommitNamesLosses: what a layer cannot hold is named, and refused unless that is wanted.
func TestCommitNamesLosses(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	rw := h.mount(s.Host()+"/sample", "--rw")
	must(t, os.WriteFile(rw+"/f", []byte("f"), 0o600))
	setxattr(t, rw+"/f", "user.a=b", "v")
	socket(t, filepath.Join(rw, "sock"))
	dest := "oci:" + t.TempDir() + ":v1"
	r := h.try("commit", rw, dest)
	for _, want := range []string{"/sock: a socket", `/f: the name of the extended attribute "user.a=b"`, "2 things"} {
		if r.code != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("exit %d, %q is not in\n%s", r.code, want, r.stderr)
		}
	}
	if h.try("inspect", dest).code != 3 {
		t.Error("something was pushed all the same")
	}
	r = h.try("commit", "--allow-loss", rw, dest)
	if r.code != 0 || !strings.Contains(r.stderr, "/sock: a socket") {
		t.Errorf("--allow-loss: exit %d\n%s", r.code, r.stderr)
	}
	if got := readFile(t, newHost(t).mount(dest)+"/f"); got != "f" {
		t.Errorf("the file with the bad attribute: %q", got)
	}
}

func setxattr(t *testing.T, path, name, value string) {
	t.Helper()
	if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
		t.Skip("needs extended attributes: ", err)
	}
}

func socket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
}

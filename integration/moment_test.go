package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A scribe changes a directory in steps of known order, so that a tree of one
// moment can be told from a mixture: whatever is of step n is there when anything of step n+1 is.
type scribe struct {
	dir  string
	stop chan struct{}
	done sync.WaitGroup
	err  error
}

const (
	scribeFiles = 6
	scribeKeeps = 5 // numbered files at a time
	scribeBlock = 300 << 10
)

func startScribe(dir string) *scribe {
	s := &scribe{dir: dir, stop: make(chan struct{})}
	s.done.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-s.stop:
				return
			default:
			}
			if s.err = s.step(n); s.err != nil {
				return
			}
		}
	})
	return s
}

func (s *scribe) path(format string, args ...any) string {
	return filepath.Join(s.dir, fmt.Sprintf(format, args...))
}

// step appends, overwrites in place, truncates, replaces by rename, creates and unlinks, renames a directory.
func (s *scribe) step(n int) error {
	text := fmt.Appendf(nil, "%08d\n", n)
	steps := []func() error{
		func() error { return write(s.path("log"), os.O_APPEND|os.O_CREATE, 0, text) },
		func() error { return write(s.path("shrinks"), os.O_TRUNC|os.O_CREATE, 0, bytes.Repeat(text, n%40+1)) },
		func() error { return write(s.path("new"), os.O_CREATE|os.O_TRUNC, 0, text) },
		func() error { return os.Rename(s.path("new"), s.path("replaced")) },
		func() error { return write(s.path("numbered-%d", n), os.O_CREATE|os.O_EXCL, 0, text) },
		func() error { return os.Rename(s.path("moves-%d", n-1), s.path("moves-%d", n)) },
	}
	for i := range scribeFiles { // a block in the middle of a file of several
		steps = append(steps, func() error { return write(s.path("moves-%d/f%d", n, i), os.O_CREATE, scribeBlock, text) })
	}
	if n > scribeKeeps {
		steps = append(steps, func() error { return os.Remove(s.path("numbered-%d", n-scribeKeeps)) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func write(path string, flags int, off int64, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	if flags&os.O_APPEND != 0 {
		_, err = f.Write(text)
	} else {
		_, err = f.WriteAt(text, off)
	}
	return errors.Join(err, f.Close())
}

// TestCommitIsOfOneMoment commits a mount again and again while it is written to.
func TestCommitIsOfOneMoment(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	rw := h.mount(s.Host()+"/sample", "--rw")
	// What comes first in the layer takes a while, so that the rest is read when it has changed.
	must(t, os.WriteFile(rw+"/aaa", bytes.Repeat([]byte("0123456789abcdef"), 1<<20), 0o600))
	must(t, os.MkdirAll(rw+"/scribe/moves-0", 0o755))
	for i := range scribeFiles {
		must(t, os.WriteFile(fmt.Sprintf("%s/scribe/moves-0/f%d", rw, i), make([]byte, 2*scribeBlock), 0o644))
	}
	writer := startScribe(rw + "/scribe")
	dest := t.TempDir()
	last := 0
	for i := range 50 {
		out := h.run("commit", "--compression", "none", rw, "oci:"+dest+":v"+strconv.Itoa(i))
		n := sameMoment(t, layerTar(t, dest, digestPart(strings.TrimSpace(out))))
		if n < last || t.Failed() {
			t.Fatalf("commit %d is of step %d, the one before was of %d", i, n, last)
		}
		last = n
	}
	close(writer.stop)
	writer.done.Wait()
	must(t, writer.err)
	if last < 50 {
		t.Errorf("only %d steps: the writer stood still", last)
	}
	left, err := filepath.Glob(h.root + "/containers/*/work/#*")
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left in the work directory: %v", left)
	}
	t.Logf("%d steps during 50 commits", last)
}

// TestCommitKilled kills commits of a mount: it goes on, keeps nothing for them, and the next commit is whole.
func TestCommitKilled(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	rw := h.mount(s.Host()+"/sample", "--rw")
	must(t, os.WriteFile(rw+"/big", bytes.Repeat([]byte("0123456789abcdef"), 2<<20), 0o600))
	layerfs, err := program()
	must(t, err)
	for i := range 5 {
		cmd := exec.Command(layerfs, "--root", h.root, "commit", rw, s.Host()+"/killed:v1")
		must(t, cmd.Start())
		time.Sleep(time.Duration(20*(i+1)) * time.Millisecond)
		must(t, write(rw+"/big", 0, int64(i), []byte("changed")))
		_ = cmd.Process.Kill()
		if cmd.Wait() == nil {
			t.Log("was faster than the signal")
		}
	}
	name := h.run("commit", rw, s.Host()+"/killed:v2")
	want, got := readFile(t, rw+"/big"), readFile(t, newHost(t).mount(strings.TrimSpace(name))+"/big")
	if got != want {
		t.Errorf("%d bytes, the mount has %d others", len(got), len(want))
	}
	h.run("umount", rw)
	left, err := filepath.Glob(h.root + "/containers/*/work/#*")
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left in the work directory: %v", left)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// layerTar is the last layer, uncompressed, of a manifest in an OCI layout.
func layerTar(t *testing.T, layout, manifest string) []byte {
	t.Helper()
	blob := func(digest string) []byte {
		b, err := os.ReadFile(filepath.Join(layout, "blobs", strings.Replace(digest, ":", "/", 1)))
		must(t, err)
		return b
	}
	var m ocispec.Manifest
	must(t, json.Unmarshal(blob(manifest), &m))
	return blob(m.Layers[len(m.Layers)-1].Digest.String())
}

// sameMoment checks that a layer holds the scribe's directory as it was at one moment, and returns the step.
func sameMoment(t *testing.T, layer []byte) int {
	t.Helper()
	files := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		if name, ok := strings.CutPrefix(h.Name, "scribe/"); ok {
			files[name] = string(b)
		}
	}
	return stepOf(t, files)
}

// stepOf reads what is of which step, in the order in which a step is made: each is of the same step as the one before, or of the one before.
func stepOf(t *testing.T, files map[string]string) int {
	t.Helper()
	lines := strings.Fields(files["log"])
	if len(lines) == 0 {
		return 0
	}
	n := len(lines)
	for i, l := range lines {
		if l != fmt.Sprintf("%08d", i+1) {
			t.Fatalf("line %d of the log is %q", i+1, l)
		}
	}
	behind := 0 // how many steps the last look was behind the log
	look := func(what string, step int) {
		t.Helper()
		if n-step < behind || n-step > 1 {
			t.Errorf("%s is of step %d; the log of %d, what was written before of %d", what, step, n, n-behind)
		}
		behind = max(behind, n-step)
	}
	number := func(name string) int {
		i, err := strconv.Atoi(strings.SplitN(files[name]+"\n", "\n", 2)[0])
		if err != nil {
			return 0
		}
		return i
	}
	if files["shrinks"] != "" { // empty between the truncation and the write
		step := number("shrinks")
		if got := strings.Count(files["shrinks"], "\n"); got != step%40+1 {
			t.Errorf("shrinks: %d lines at step %d", got, step)
		}
		look("shrinks", step)
	}
	look("replaced", number("replaced"))
	newest, moves := 0, 0
	for name := range files {
		if i, ok := strings.CutPrefix(name, "numbered-"); ok {
			newest = max(newest, atoi(i))
		}
		if i, ok := strings.CutPrefix(name, "moves-"); ok {
			moves = max(moves, atoi(strings.SplitN(i, "/", 2)[0]))
		}
	}
	look("numbered", newest)
	look("moves", moves)
	for i := range scribeFiles {
		b := files[fmt.Sprintf("moves-%d/f%d", moves, i)]
		if len(b) != 2*scribeBlock {
			t.Fatalf("f%d: %d bytes", i, len(b))
		}
		look("f"+strconv.Itoa(i), atoi(strings.Trim(b[scribeBlock:scribeBlock+8], "\x00")))
	}
	for i := max(1, newest-scribeKeeps+2); i <= newest; i++ {
		name := fmt.Sprintf("numbered-%d", i)
		if made := i == newest && files[name] == ""; !made && atoi(strings.TrimSpace(files[name])) != i {
			t.Errorf("%s holds %q", name, files[name])
		}
	}
	return n
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

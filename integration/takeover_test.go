package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A mounted is what "mounts --json" says of a mount.
type mounted struct {
	PID        int    `json:"pid"`
	Holder     int    `json:"holder"`
	Mountpoint string `json:"mountpoint"`
	Live       bool   `json:"live"`
}

// only returns the one mount of a host.
func (h *host) only() mounted {
	h.t.Helper()
	var all []mounted
	if err := json.Unmarshal([]byte(h.run("mounts", "--json")), &all); err != nil || len(all) != 1 {
		h.t.Fatalf("mounts: %+v, %v", all, err)
	}
	return all[0]
}

// kills is how often a test kills the server: LAYERFS_KILLS, or few.
func kills(t *testing.T) int {
	s := os.Getenv("LAYERFS_KILLS")
	if s == "" {
		return 20
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A load is what goes on in a mount while its server is killed. Every system
// call of it must succeed.
type load struct {
	t    *testing.T
	dir  string
	stop atomic.Bool
	done sync.WaitGroup
	ops  atomic.Int64
	wait atomic.Int64 // the longest round of what was run first, in ns
	runs int
}

// run repeats a round until the load is stopped or an error, which is the test's.
func (l *load) run(what string, round func(i int) error) {
	l.runs++
	first := l.runs == 1
	l.done.Go(func() {
		for i := 0; !l.stop.Load(); i++ {
			begun := time.Now()
			if err := round(i); err != nil {
				l.t.Errorf("%s, round %d: %v", what, i, err)
				return
			}
			l.ops.Add(1)
			if took := int64(time.Since(begun)); first && took > l.wait.Load() {
				l.wait.Store(took)
			}
		}
	})
}

// killServers kills the server n times at random moments, each time a server that is ready.
func killServers(t *testing.T, h *host, n int) {
	last := 0
	defer func() {
		if t.Failed() {
			t.Log(h.serverLog())
		}
	}()
	for i := range n {
		m := h.only()
		for tries := 0; m.PID == last || !m.Live; tries++ {
			if tries > 500 || !m.Live {
				t.Fatalf("kill %d: no new server after process %d: %+v", i, last, m)
			}
			time.Sleep(20 * time.Millisecond)
			m = h.only()
		}
		time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
		if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		last = m.PID
		if t.Failed() {
			return
		}
	}
}

// digests reads all files below a directory.
func digests(dir string) (map[string][32]byte, error) {
	all := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = sha256.Sum256(b)
		return err
	})
	return all, err
}

func sameDigests(want map[string][32]byte, dir string) error {
	got, err := digests(dir)
	if err != nil {
		return err
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d files, not %d", len(got), len(want))
	}
	for path, sum := range want {
		if got[path] != sum {
			return fmt.Errorf("%s has changed", path)
		}
	}
	return nil
}

// TestServerKilledReadOnly reads while the servers die. The kernel's cache is dropped all the
// time where that is allowed, so that the servers are asked.
func TestServerKilledReadOnly(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host() + "/sample")
	want, err := digests(dir)
	if err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, dir: dir}
	l.run("read", func(int) error {
		_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
		return sameDigests(want, dir)
	})
	killServers(t, h, kills(t))
	l.stop.Store(true)
	l.done.Wait()
	t.Logf("%d rounds; the longest walk took %v", l.ops.Load(), time.Duration(l.wait.Load()))
	m := h.only()
	h.run("umount", dir)
	gone(t, m.PID, m.Holder)
}

// gone waits for the end of processes: for long, as they may be traced.
func gone(t *testing.T, pids ...int) {
	t.Helper()
	end := time.Now().Add(2 * time.Minute)
	for _, pid := range pids {
		for syscall.Kill(pid, 0) == nil {
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); bytes.Contains(b, []byte(") Z ")) {
				break // nobody here to wait for it
			}
			if time.Now().After(end) {
				t.Fatalf("process %d has not ended", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// TestServerKilledWritable changes a mount in many ways while the servers die.
func TestServerKilledWritable(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--rw")
	l := &load{t: t, dir: dir}
	journal := l.startWriter()
	deleted := l.startDeleted()
	l.run("names", l.names)
	l.run("listing", l.listing)
	l.run("lower", l.lower)
	killServers(t, h, kills(t))
	l.stop.Store(true)
	l.done.Wait()
	t.Logf("%d rounds; the longest write and fsync took %v", l.ops.Load(), time.Duration(l.wait.Load()))
	journal()
	deleted()
	m := h.only()
	h.run("umount", dir)
	gone(t, m.PID, m.Holder)
	if left, err := filepath.Glob(h.root + "/containers/*/work/*"); err != nil || len(left) > 1 { // the spare whiteout
		t.Errorf("left in the work directory: %q, %v", left, err)
	}
}

// startWriter appends to a file and syncs; the returned function checks that nothing of it was lost.
func (l *load) startWriter() (check func()) {
	path := filepath.Join(l.dir, "journal")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		l.t.Fatal(err)
	}
	var want bytes.Buffer
	l.run("write and fsync", func(i int) error {
		line := fmt.Sprintf("record %d\n", i)
		want.WriteString(line)
		if _, err := f.WriteString(line); err != nil {
			return err
		}
		return f.Sync()
	})
	return func() {
		if err := f.Close(); err != nil {
			l.t.Error(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want.Bytes()) {
			l.t.Errorf("the journal has %d bytes, not %d: %v", len(got), want.Len(), err)
		}
	}
}

// startDeleted keeps files open that have no name: one that was unlinked and one that was renamed over.
func (l *load) startDeleted() (check func()) {
	var files []*os.File
	for _, name := range []string{"unlinked", "replaced"} {
		f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			l.t.Fatal(err)
		}
		files = append(files, f)
	}
	must := func(err error) {
		if err != nil {
			l.t.Fatal(err)
		}
	}
	must(os.Remove(filepath.Join(l.dir, "unlinked")))
	must(os.WriteFile(filepath.Join(l.dir, "new"), []byte("new"), 0o600))
	must(os.Rename(filepath.Join(l.dir, "new"), filepath.Join(l.dir, "replaced")))
	round := func(i int) error {
		for _, f := range files {
			text := fmt.Sprintf("%8d", i)
			if _, err := f.WriteAt([]byte(text), 0); err != nil {
				return err
			}
			if err := f.Sync(); err != nil { // past the kernel's cache of attributes
				return err
			}
			st, err := f.Stat()
			if err != nil || st.Size() != 8 || st.Sys().(*syscall.Stat_t).Nlink != 0 {
				return fmt.Errorf("%+v, %w", st, err)
			}
			b := make([]byte, 8)
			if _, err := f.ReadAt(b, 0); err != nil || string(b) != text {
				return fmt.Errorf("%q, not %q: %w", b, text, err)
			}
		}
		return nil
	}
	l.run("deleted files", round)
	return func() {
		for _, f := range files {
			if err := f.Close(); err != nil {
				l.t.Error(err)
			}
		}
	}
}

// names makes, moves and removes names, each of which may be done twice.
func (l *load) names(i int) error {
	p := func(s string) string { return fmt.Sprintf("%s/names-%d-%s", l.dir, i, s) }
	steps := []func() error{
		func() error { return os.Mkdir(p("d"), 0o755) },
		func() error { return writeNew(p("d/f"), "content") },
		func() error { return os.Link(p("d/f"), p("l")) },
		func() error { return os.Symlink("target", p("s")) },
		func() error { return syscall.Mkfifo(p("p"), 0o600) },
		func() error { return os.Rename(p("d"), p("e")) },
		func() error { return os.Rename(p("e/f"), p("f")) },
		func() error { return wantContent(p("f"), "content") },
		func() error { return wantContent(p("l"), "content") },
		func() error { return writeNew(p("x"), "other") },
		func() error {
			return unix.Renameat2(unix.AT_FDCWD, p("f"), unix.AT_FDCWD, p("x"), unix.RENAME_EXCHANGE)
		},
		func() error { return wantContent(p("f"), "other") },
		func() error { return os.Remove(p("f")) },
		func() error { return os.Rename(p("x"), p("f")) },
		func() error { return os.Chmod(p("f"), 0o640) },
		func() error { return os.Truncate(p("f"), 3) },
		func() error { return wantContent(p("l"), "con") },
		func() error { return os.Remove(p("f")) },
		func() error { return os.Remove(p("e")) },
		func() error { return os.Remove(p("l")) },
		func() error { return os.Remove(p("s")) },
		func() error { return os.Remove(p("p")) },
	}
	for n, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", n, err)
		}
	}
	return nil
}

func writeNew(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Close()
}

func wantContent(path, want string) error {
	b, err := os.ReadFile(path)
	if err == nil && string(b) != want {
		err = fmt.Errorf("%s: %q, not %q", path, b, want)
	}
	return err
}

// listing removes what it lists, in steps that are smaller than a directory.
func (l *load) listing(i int) error {
	dir := fmt.Sprintf("%s/listing-%d", l.dir, i)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	const files = 300
	for n := range files {
		if err := writeNew(fmt.Sprintf("%s/a-rather-long-name-%d", dir, n), ""); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(10)
		for _, name := range names {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(dir) // ENOTEMPTY when a name was passed over
}

// lower changes a file of the image, removes it and makes it anew.
func (l *load) lower(i int) error {
	motd := filepath.Join(l.dir, "etc/motd")
	want := "hello\n" + strings.Repeat("more\n", i%3)
	if i%3 == 0 && i > 0 {
		if err := os.Remove(motd); err != nil {
			return err
		}
		if err := writeNew(motd, "hello\n"); err != nil {
			return err
		}
	}
	if err := wantContent(motd, want); err != nil {
		return err
	}
	if i%3 == 2 {
		return nil
	}
	f, err := os.OpenFile(motd, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("more\n"); err != nil {
		return err
	}
	return f.Close()
}

// TestUpgrade replaces the program under a load.
func TestUpgrade(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--rw")
	l := &load{t: t, dir: dir}
	journal := l.startWriter()
	deleted := l.startDeleted()
	l.run("names", l.names)
	l.run("listing", l.listing)
	holder := h.only().Holder
	for range 5 {
		before := h.only()
		if out := h.run("upgrade"); out != dir+"\n" {
			t.Errorf("says %q", out)
		}
		if after := h.only(); after.PID == before.PID || after.Holder != holder {
			t.Errorf("before %+v, after %+v", before, after)
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.stop.Store(true)
	l.done.Wait()
	journal()
	deleted()
	t.Logf("%d rounds; the longest write and fsync took %v", l.ops.Load(), time.Duration(l.wait.Load()))
	if r := h.try("upgrade", t.TempDir()); r.code != 3 || !strings.Contains(r.stderr, "no mount") {
		t.Errorf("upgrade of no mount: exit %d: %s", r.code, r.stderr)
	}
}

// TestServerKilledAtOnce: a server that dies whenever it is started is given up, and mount mends it.
func TestServerKilledAtOnce(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host() + "/sample")
	first := h.only()
	// without its state no server can start
	state, err := filepath.Glob(h.root + "/mounts/*/state.json")
	if err != nil || len(state) != 1 {
		t.Fatal(state, err)
	}
	if err := os.Rename(state[0], state[0]+".away"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, first.Holder)
	if _, err := os.ReadDir(dir); err == nil {
		t.Error("the mount answers")
	}
	logs, err := filepath.Glob(h.root + "/log/*.log")
	if err != nil || len(logs) != 1 || !strings.Contains(readFile(t, logs[0]), "giving up") {
		t.Errorf("the log %q does not say that it was given up: %v", logs, err)
	}
	if r := h.try("mount", s.Host()+"/sample", dir); r.code != 0 || !strings.Contains(r.stderr, "removed a dead mount") {
		t.Errorf("mount: exit %d: %s", r.code, r.stderr)
	}
	readFile(t, dir+"/etc/motd")
}

// TestServerKilledAsked kills servers that have just begun, at the moment at which they are asked: a
// process that is being killed still takes requests from the kernel, which fail where they cannot be copied to it.
func TestServerKilledAsked(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--rw")
	last := 0
	for i := range 4 * kills(t) {
		m := h.only()
		for m.PID == last || !m.Live {
			m = h.only()
		}
		last = m.PID
		var asking sync.WaitGroup
		for range 4 {
			asking.Go(func() {
				var st unix.Statfs_t
				for range 20 {
					if err := unix.Statfs(dir, &st); err != nil { // it is asked for each time
						t.Errorf("kill %d: statfs: %v", i, err)
					}
				}
			})
		}
		must(t, syscall.Kill(m.PID, syscall.SIGKILL))
		asking.Wait()
		time.Sleep(150 * time.Millisecond) // a server that dies younger counts as one that cannot live
		if t.Failed() {
			t.Log(h.serverLog())
			return
		}
	}
}

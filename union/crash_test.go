package union_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"golang.org/x/sys/unix"
)

// A crashing says what another process does to an upper directory, until strace kills it.
type crashing struct {
	Dir  string // with upper, work and a cache
	Call string // of modelCalls
	A, B string // its paths
}

const crashVar = "LAYERFS_UNION_TEST_CRASH"

// changing are the system calls before each of which the process is killed once.
var changing = []string{"openat", "renameat", "renameat2", "linkat", "unlinkat", "mkdirat", "mknodat", "symlinkat",
	"setxattr", "lsetxattr", "fsetxattr", "fchmodat", "fchownat", "utimensat", "ftruncate", "pwrite64", "fsync", "chmod"}

// crashBegin is the call that marks, in strace's list, where the interesting part begins.
func crashBegin() { _ = unix.Mkdirat(-1, "begin", 0) }

// runCrashing is the other process.
func runCrashing() error {
	runtime.LockOSThread() // strace counts by thread
	unix.Umask(0)
	var c crashing
	if err := json.Unmarshal([]byte(os.Getenv(crashVar)), &c); err != nil {
		return err
	}
	tree, err := crashTree(filepath.Join(c.Dir, "cache"))
	if err != nil {
		return err
	}
	u, err := union.OpenUpper(filepath.Join(c.Dir, "upper"), filepath.Join(c.Dir, "work"), union.UpperOptions{Create: true, Base: tree.Digest()})
	if err != nil {
		return err
	}
	f := union.New(tree, u)
	for _, call := range modelCalls {
		if call.name == c.Call {
			crashBegin()
			err = call.union(f, c.A, c.B, 7)
		}
	}
	return err
}

func crashTree(dir string) (*union.Tree, error) {
	s, err := cache.Open(dir, cache.Options{})
	if err != nil {
		return nil, err
	}
	var layers []*layer.Layer
	for _, text := range modelLayers {
		b, d, diffID := layertest.Blob(text, "tar", nil)
		l, err := layer.Open(ctx, d, blob(b), s, layer.Options{DiffID: diffID})
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return union.Merge(ctx, layers)
}

// TestCrash kills the process before every system call of copy-up, rename and
// removal. What is there afterwards is the tree as it was, or as it should become.
func TestCrash(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs strace and root")
	}
	for _, tt := range []struct {
		name, before string
		call, a, b   string
	}{
		{"copy-up of data", "", "write", "d1/b", ""},
		{"copy-up of two names", "", "chmod", "d1/a", ""},
		{"copy-up with parents", "", "setxattr", "d2/x2/z", ""},
		{"copy-up of a symlink", "", "rename", "s", "d2/t"},
		{"truncation", "", "truncate", "d1/c", ""},
		{"rename of a lower file over another", "", "rename", "d1/c", "top"},
		{"rename of a lower directory", "", "rename", "d2", "d3"},
		{"rename over an empty directory", "mkdir d3", "rename", "d2", "d3"},
		{"rename to a hidden name", "unlink top", "rename", "d1", "top"},
		{"exchange of lower directories", "", "exchange", "d1", "d2"},
		{"exchange of a file and a directory", "", "exchange", "d2", "top"},
		{"removal of a lower file", "", "unlink", "d1/b", ""},
		{"removal of a changed file", "write d1/b", "unlink", "d1/b", ""},
		{"removal of a lower directory", "", "rmdir", "empty", ""},
		{"directory at a hidden name", "rmdir empty", "mkdir", "empty", ""},
		{"symlink at a hidden name", "unlink top", "symlink", "top", "x"},
		{"link of a lower file", "", "link", "d1/b", "d2/b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &crashCase{t: t, strace: strace, before: tt.before, c: crashing{Call: tt.call, A: tt.a, B: tt.b}}
			c.run()
		})
	}
}

type crashCase struct {
	t        *testing.T
	strace   string
	before   string // a call that is made beforehand, and its path
	c        crashing
	old, new string
}

// A killing is a system call, and how many of its kind came before.
type killing struct {
	call string
	nth  int
}

func (c *crashCase) run() {
	c.fresh()
	c.old = c.look()
	calls := c.trace()
	c.new = c.look()
	if c.new == c.old || len(calls) < 2 {
		c.t.Fatalf("the call changed nothing, with %d system calls", len(calls))
	}
	for _, k := range calls {
		c.fresh()
		out, err := c.child(fmt.Sprintf("inject=%s:signal=KILL:when=%d", k.call, k.nth)).CombinedOutput()
		if err == nil {
			c.t.Errorf("%v: was not killed: %s", k, out)
		}
		if got := c.look(); got != c.old && got != c.new {
			c.t.Errorf("killed before %s %d: neither old nor new\n%s", k.call, k.nth, diffLines(got, c.new))
		}
	}
}

// fresh makes the upper directory as it is before the call.
func (c *crashCase) fresh() {
	if c.c.Dir == "" {
		c.c.Dir = c.t.TempDir()
	}
	for _, name := range []string{"upper", "work"} {
		must(c.t, os.RemoveAll(filepath.Join(c.c.Dir, name)))
	}
	w := c.open()
	defer w.close(c.t)
	name, path, ok := strings.Cut(c.before, " ")
	for _, call := range modelCalls {
		if ok && call.name == name {
			must(c.t, call.union(w.FS, path, "", 3))
		}
	}
}

func (c *crashCase) open() *writable {
	tree, err := crashTree(filepath.Join(c.c.Dir, "cache"))
	must(c.t, err)
	return openWritable(c.t, tree, c.c.Dir)
}

// look opens the upper directory as the next mount would.
func (c *crashCase) look() string {
	w := c.open()
	defer w.close(c.t)
	left, err := filepath.Glob(filepath.Join(c.c.Dir, "work", "#*"))
	must(c.t, err)
	if len(left) > 0 {
		c.t.Errorf("left in the work directory: %v", left)
	}
	return dump(c.t, w.FS)
}

func (c *crashCase) child(expr string) *exec.Cmd {
	text, err := json.Marshal(c.c)
	must(c.t, err)
	cmd := exec.Command(c.strace, "-f", "-qq", "-o", filepath.Join(c.c.Dir, "trace"), "-e", expr, os.Args[0])
	cmd.Env = append(os.Environ(), crashVar+"="+string(text))
	return cmd
}

var traced = regexp.MustCompile(`^(\d+) +(\w+)\(`)

// trace makes the call and lists the system calls it consists of.
func (c *crashCase) trace() (list []killing) {
	out, err := c.child("trace=" + strings.Join(changing, ",")).CombinedOutput()
	if err != nil {
		c.t.Skipf("needs ptrace: %v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(c.c.Dir, "trace"))
	must(c.t, err)
	begin := -1
	lines := bytes.Split(b, []byte("\n"))
	for i, line := range lines {
		if bytes.Contains(line, []byte(`mkdirat(-1, "begin"`)) {
			begin = i
		}
	}
	if begin < 0 {
		c.t.Fatalf("no begin in %s", b)
	}
	thread, count := traced.FindSubmatch(lines[begin])[1], map[string]int{}
	for i, line := range lines {
		m := traced.FindSubmatch(line)
		if m == nil || !bytes.Equal(m[1], thread) {
			continue
		}
		call := string(m[2])
		if count[call]++; i > begin && (call != "openat" || bytes.Contains(line, []byte("O_CREAT"))) {
			list = append(list, killing{call, count[call]})
		}
	}
	return list
}

func (k killing) String() string { return k.call + " " + strconv.Itoa(k.nth) }

// TestWhiteoutsWithoutDevices: where the file system takes no devices, a
// whiteout is an empty file with a mark. The next mount reads it, and so does
// overlayfs where the upper directory has become a lower one.
func TestWhiteoutsWithoutDevices(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs strace and root")
	}
	c := &crashCase{t: t, strace: strace, c: crashing{Call: "unlink", A: "d2/x2/z"}}
	c.fresh()
	for _, path := range []string{"d2/x2/z", "top"} {
		c.c.A = path
		if out, err := c.child("inject=mknodat:error=EPERM").CombinedOutput(); err != nil {
			t.Skipf("needs ptrace: %v: %s", err, out)
		}
	}
	upper := filepath.Join(c.c.Dir, "upper")
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(upper, "top"), &st))
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.Fatalf("the whiteout has mode %o", st.Mode)
	}
	got := c.look()
	if strings.Contains(got, "\ntop ") || strings.Contains(got, "d2/x2/z ") || !strings.Contains(got, "\nd2/x2 ") {
		t.Errorf("after the removal:\n%s", got)
	}
	lower, mnt := t.TempDir(), t.TempDir()
	m := &model{t: t, host: mnt}
	tree := mergeText(t, modelLayers...)
	m.copyOut(tree, union.Root, lower)
	if err := unix.Mount("overlay", mnt, "overlay", unix.MS_RDONLY, "lowerdir="+upper+":"+lower); err != nil {
		t.Skipf("needs overlayfs: %v", err)
	}
	defer func() { must(t, unix.Unmount(mnt, 0)) }()
	if d := diffLines(withoutLinks(m.dumpHost()), withoutLinks(got)); d != "" {
		t.Error("overlayfs: " + d)
	}
}

package fuse

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"golang.org/x/sys/unix"
)

// The server of every test runs in a process of its own, which is this test
// binary again: a server and its client in one process can wait for each other.

// A served says what the other process is to mount.
type served struct {
	Mountpoint  string
	Layers      []string // text archives, the base first
	Cache       string
	Upper, Work string // "": read-only
	Flags       []string
}

const servedVar = "LAYERFS_FUSE_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(servedVar) != "" {
		if err := serveTest(json.NewDecoder(os.Stdin)); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveTest serves until stdin ends: first comes what to serve, then a line for every request for the counts.
func serveTest(in *json.Decoder) error {
	var v served
	if err := in.Decode(&v); err != nil {
		return err
	}
	fs, err := v.open()
	if err != nil {
		return err
	}
	var counts counter
	s, err := Mount(Options{FS: fs, Mountpoint: v.Mountpoint, FsName: "test, image", Flags: v.Flags,
		Logger: slog.New(&counts), Debug: true})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for ask := ""; in.Decode(&ask) == nil; {
		n := counts.take()
		if open := s.OpenFiles(); open > 0 {
			n["open files"] = open
		}
		b, _ := json.Marshal(n)
		fmt.Println(string(b))
	}
	if err := s.Unmount(); err != nil {
		return errors.Join(err, Unmount(v.Mountpoint, true))
	}
	s.Wait()
	return fs.Close()
}

// open builds the union as the program does.
func (v served) open() (*union.FS, error) {
	ctx := context.Background()
	var layers []*layer.Layer
	if len(v.Layers) > 0 {
		store, err := cache.Open(v.Cache, cache.Options{})
		if err != nil {
			return nil, err
		}
		for _, text := range v.Layers {
			b, desc, diffID := layertest.Blob(text, "gzip", nil)
			l, err := layer.Open(ctx, desc, blob(b), store, layer.Options{DiffID: diffID})
			if err != nil {
				return nil, err
			}
			layers = append(layers, l)
		}
	}
	tree, err := union.Merge(ctx, layers)
	if err != nil || v.Upper == "" {
		return union.New(tree, nil), err
	}
	up, err := union.OpenUpper(v.Upper, v.Work, union.UpperOptions{Create: true, Base: tree.Digest()})
	if err != nil {
		return nil, err
	}
	return union.New(tree, up), nil
}

// A blob is a layer.Ranger in memory.
type blob []byte

func (b blob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

// A counter counts requests by what the library logs of them: "rx 12: LOOKUP …". Errors go to stderr.
type counter struct {
	mu     sync.Mutex
	counts map[string]int // protected by mu
}

func (c *counter) Enabled(context.Context, slog.Level) bool { return true }
func (c *counter) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *counter) WithGroup(string) slog.Handler            { return c }

func (c *counter) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		fmt.Fprintln(os.Stderr, "server:", r.Message)
		r.Attrs(func(a slog.Attr) bool { fmt.Fprintln(os.Stderr, "\t", a); return true })
	}
	f := strings.Fields(r.Message)
	if len(f) < 3 || f[0] != "rx" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[f[2]]++
	return nil
}

// take returns the counts since the last time.
func (c *counter) take() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := c.counts
	if counts == nil {
		counts = map[string]int{}
	}
	c.counts = map[string]int{}
	return counts
}

// A child is a server in another process.
type child struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

// needFUSE skips a test that cannot mount here.
func needFUSE(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/fuse: ", err)
	}
	_ = f.Close()
	if os.Geteuid() == 0 {
		return
	}
	if _, err := fusermount(); err != nil {
		t.Skip("needs fusermount3: ", err)
	}
}

// start runs a server and returns when it has mounted; the end of the test ends it.
func start(t *testing.T, v served) *child {
	t.Helper()
	needFUSE(t)
	c, first := run(t, v)
	if first != "ready" {
		t.Fatalf("the server said %q", first)
	}
	t.Cleanup(c.stop)
	return c
}

// run starts a server and returns the first line it says.
func run(t *testing.T, v served) (*child, string) {
	t.Helper()
	if v.Cache == "" {
		v.Cache = t.TempDir()
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), servedVar+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(text); err != nil {
		t.Fatal(err)
	}
	c := &child{t, in, bufio.NewReader(out), cmd}
	return c, c.line()
}

func (c *child) line() string {
	s, err := c.out.ReadString('\n')
	if err != nil {
		return "nothing: " + err.Error()
	}
	return strings.TrimSuffix(s, "\n")
}

// requests are the requests since the last time, by name.
func (c *child) requests() map[string]int {
	c.t.Helper()
	if _, err := io.WriteString(c.in, "\"counts\"\n"); err != nil {
		c.t.Fatal(err)
	}
	var counts map[string]int
	if s := c.line(); json.Unmarshal([]byte(s), &counts) != nil {
		c.t.Fatalf("the server said %q", s)
	}
	return counts
}

func (c *child) stop() {
	c.in.Close()
	if s := c.line(); s != "nothing: EOF" {
		c.t.Error("the server said ", s)
	}
	if err := c.cmd.Wait(); err != nil {
		c.t.Error("the server ended with ", err)
	}
}

// kill ends the server without a chance to unmount.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// writable is a served with an empty upper directory. What is in the layers
// belongs to who runs the test, so that he may change it.
func writable(t *testing.T, layers ...string) served {
	dir := t.TempDir()
	for i, text := range layers {
		owner := fmt.Sprintf(" %d:%d\n", os.Geteuid(), os.Getegid())
		layers[i] = strings.ReplaceAll(strings.TrimSpace(text)+"\n", "\n", owner)
	}
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	return served{Mountpoint: mnt, Layers: layers, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
}

func readOnly(t *testing.T, layers ...string) served {
	return served{Mountpoint: t.TempDir(), Layers: layers}
}

func wantErrno(t *testing.T, what string, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

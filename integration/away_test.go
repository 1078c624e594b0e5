package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// A cable is between a host and a registry, and can be pulled.
type cable struct {
	t        *testing.T
	addr, to string

	mu    sync.Mutex
	plug  net.Listener
	conns map[net.Conn]bool
}

func newCable(t *testing.T, to string) *cable {
	c := &cable{t: t, addr: "127.0.0.1:0", to: to}
	c.connect()
	t.Cleanup(c.pull)
	return c
}

// connect has the address answer again.
func (c *cable) connect() {
	c.t.Helper()
	l, err := net.Listen("tcp", c.addr)
	must(c.t, err)
	c.mu.Lock()
	c.plug, c.addr, c.conns = l, l.Addr().String(), map[net.Conn]bool{}
	c.mu.Unlock()
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go c.carry(l, in)
		}
	}()
}

func (c *cable) carry(l net.Listener, in net.Conn) {
	out, err := net.Dial("tcp", c.to)
	c.mu.Lock()
	if err != nil || c.plug != l {
		c.mu.Unlock()
		_ = in.Close()
		return
	}
	c.conns[in], c.conns[out] = true, true
	c.mu.Unlock()
	go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
	_, _ = io.Copy(in, out)
	_ = in.Close()
}

// pull breaks every connection; new ones are refused.
func (c *cable) pull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.plug != nil {
		_ = c.plug.Close()
	}
	for conn := range c.conns {
		_ = conn.Close()
	}
	c.plug, c.conns = nil, nil
}

// awayImage has a large file in a layer of each form that is read lazily.
func awayImage(t *testing.T) (*cable, string, map[string][]byte) {
	t.Helper()
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	text := func(name string) string { return "random " + name + "/big 5MiB\nfile " + name + "/small \"x\"" }
	s.PushImage("away:latest", registrytest.Image{Layers: []registrytest.Layer{encoded(t, text("esgz"), "estargz"), encoded(t, text("chunked"), "zstd:chunked")}})
	c := newCable(t, s.Host())
	want := map[string][]byte{}
	h := newHost(t)
	dir := h.mount(s.Host() + "/away")
	for _, name := range []string{"esgz", "chunked"} {
		b, err := os.ReadFile(dir + "/" + name + "/big")
		must(t, err)
		want["/"+name+"/big"] = b
	}
	return c, c.addr + "/away", want
}

// TestRegistryAway: who reads while the registry is away waits and gets the right bytes; what is in the cache is read at once.
func TestRegistryAway(t *testing.T) {
	needMount(t)
	c, ref, want := awayImage(t)
	h := newHost(t)
	dir := h.mount(ref, "--prefetch", "none")
	c.pull()
	var readers sync.WaitGroup
	for path, b := range want {
		readers.Go(func() {
			if got, err := os.ReadFile(dir + path); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %d bytes, %v", path, len(got), err)
			}
		})
	}
	away := func() (s struct {
		Since *time.Time `json:"registry_away_since"`
	}) {
		var all []json.RawMessage
		must(t, json.Unmarshal([]byte(h.run("mounts", "--json")), &all))
		must(t, json.Unmarshal(all[0], &s))
		return s
	}
	eventually(t, "mounts tells that the registry is away", func() bool { return away().Since != nil })
	time.Sleep(5 * time.Second)
	c.connect()
	readers.Wait()
	if s := away(); s.Since != nil {
		t.Errorf("it is back, and mounts says away since %v", s.Since)
	}
}

// TestRegistryGone: EIO comes after the set time, and the next read tries again; a caller who
// wants to leave can; what is in the cache is there, and can be mounted.
func TestRegistryGone(t *testing.T) {
	needMount(t)
	c, ref, want := awayImage(t)
	h := newHost(t)
	dir := h.mount(ref, "--prefetch", "none", "--wait-registry", "3s")
	const path = "/esgz/big"
	if got, err := os.ReadFile(dir + path); err != nil || !bytes.Equal(got, want[path]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	c.pull()
	for range 2 {
		begun := time.Now()
		if _, err := os.ReadFile(dir + "/chunked/big"); !errors.Is(err, syscall.EIO) || time.Since(begun) < 3*time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	}
	h.run("umount", dir)
	r := h.try("mount", "--wait-registry", "1h", ref, dir)
	if r.code != 0 || !strings.Contains(r.stderr, "does not answer") {
		t.Fatalf("mount from the cache: %+v", r)
	}
	if got, err := os.ReadFile(dir + path); err != nil || !bytes.Equal(got, want[path]) {
		t.Errorf("from the cache: %d bytes, %v", len(got), err)
	}
	cat := exec.Command("cat", dir+"/chunked/big")
	must(t, cat.Start())
	time.Sleep(time.Second)
	must(t, cat.Process.Signal(syscall.SIGINT))
	left := make(chan struct{})
	go func() {
		defer close(left)
		_ = cat.Wait() // a signal ends it
	}()
	select {
	case <-left:
	case <-time.After(20 * time.Second):
		t.Error("who is interrupted does not leave")
	}
	c.connect()
	if got, err := os.ReadFile(dir + "/chunked/big"); err != nil || !bytes.Equal(got, want["/chunked/big"]) {
		t.Errorf("when it is back: %d bytes, %v", len(got), err)
	}
	if r := newHost(t).try("mount", "127.0.0.1:1/none", t.TempDir()); r.code != 5 {
		t.Errorf("a registry that never was: %+v", r)
	}
}

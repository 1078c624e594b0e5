//go:build integration

package integration

import (
	"net/url"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// TestBigExpiring reads all of the big image from a registry whose tokens are good for 5 s and whose
// storage has addresses that are good for 2 s.
func TestBigExpiring(t *testing.T) {
	want := unpacked(t, sample(t, "big"))
	for _, name := range []string{"big", "big-estargz"} {
		t.Run(name, func(t *testing.T) {
			addr, _ := dockerRegistry(t)
			push(t, sample(t, name), addr+"/big:latest")
			s := registrytest.New(registrytest.Options{Upstream: &url.URL{Scheme: "http", Host: addr}})
			t.Cleanup(s.Close)
			s.Use(s.SignedBlobs(2*time.Second), expiringTokens(5*time.Second))
			s.Throttle(12_500_000, 10*time.Millisecond)
			h := newHost(t)
			h.env = append(h.env, "DOCKER_CONFIG="+t.TempDir(), "REGISTRY_AUTH_FILE=", "HOME="+t.TempDir())
			begun := time.Now()
			dir := h.mount(s.Host()+"/big", "--prefetch", "none")
			sameTree(t, "unpacked", want, "mounted", tree(t, dir))
			tokens, addresses := renewals(s.Log(), "/token"), renewals(s.Log(), "/blobs/")
			t.Logf("%v, %d tokens and %d addresses renewed", time.Since(begun), tokens, addresses)
			if tokens == 0 || addresses == 0 {
				t.Error("nothing had to be renewed")
			}
		})
	}
}

// TestBigAway takes the registry of the big image away for 20 s and for 5 s, while it is mounted (gzip, which is read
// whole) and while it is read (eStargz).
func TestBigAway(t *testing.T) {
	want := unpacked(t, sample(t, "big"))
	for _, name := range []string{"big", "big-estargz"} {
		t.Run(name, func(t *testing.T) {
			addr, _ := dockerRegistry(t)
			push(t, sample(t, name), addr+"/big:latest")
			s := registrytest.New(registrytest.Options{Upstream: &url.URL{Scheme: "http", Host: addr}})
			t.Cleanup(s.Close)
			s.Throttle(25_000_000, 5*time.Millisecond)
			c := newCable(t, s.Host())
			h := newHost(t)
			done := make(chan time.Duration)
			begun := time.Now()
			go func() {
				dir := h.mount(c.addr+"/big", "--prefetch", "none")
				sameTree(t, "unpacked", want, "mounted", tree(t, dir))
				done <- time.Since(begun)
			}()
			for _, away := range []time.Duration{20 * time.Second, 5 * time.Second} {
				time.Sleep(1500 * time.Millisecond)
				c.pull()
				time.Sleep(away)
				c.connect()
			}
			if took := <-done; took < 25*time.Second {
				t.Errorf("all was read in %v: the registry was not missed", took)
			}
		})
	}
}

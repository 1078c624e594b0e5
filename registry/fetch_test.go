package registry

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// readAtOnce reads n ranges of a blob beside each other.
func readAtOnce(t *testing.T, b *Blob, blob []byte, n int64) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { wantRange(t, b, blob, i*1000, 1000) })
	}
	wg.Wait()
}

// A range that was read to its end gives its connection back, and so does a redirect.
func TestConnectionsAreKept(t *testing.T) {
	const readers = 12
	tests := map[string]struct {
		sign bool
		most int
	}{"direct": {false, readers}, "redirected": {true, 2 * readers}}
	for name, tt := range tests {
		s := start(t, registrytest.Options{})
		blob := noise(100_000)
		s.PushImage("py:1", image(blob))
		if tt.sign {
			s.Use(s.SignedBlobs(50 * time.Millisecond))
		}
		im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
		b := im.Blob(im.Manifest.Layers[0])
		for range 20 {
			wantRange(t, b, blob, 500, 1000)
		}
		if n := s.Total("", "").Connections; n > 1+tt.most/readers {
			t.Errorf("%s: %d connections for ranges one after the other", name, n)
		}
		for range 5 {
			readAtOnce(t, b, blob, readers)
			time.Sleep(20 * time.Millisecond)
		}
		if n := s.Total("", "").Connections; n > tt.most {
			t.Errorf("%s: %d connections for %d readers", name, n, readers)
		}
	}
}

// Where HTTP/2 is offered, all readers share one connection.
func TestHTTP2(t *testing.T) {
	s := start(t, registrytest.Options{TLS: true})
	blob := noise(3_000_000)
	s.PushImage("py:1", image(blob))
	o := anonymous(t)
	o.InsecureSkipTLSVerify = true
	im := mustOpen(t, s.Host()+"/py:1", o)
	b := im.Blob(im.Manifest.Layers[0])
	readAtOnce(t, b, blob, 12)
	wantRange(t, b, blob, 0, 3_000_000)
	s.Use(registrytest.RefuseRanges)
	wantRange(t, b, blob, 7, 1000)
	for _, r := range s.Log() {
		if r.Proto != "HTTP/2.0" || r.Method == "HEAD" {
			t.Errorf("%s %s came by %s", r.Method, r.Path, r.Proto)
		}
	}
	if n := s.Total("", "/blobs/").Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
}

// An address that expires under many readers is renewed once for all of them.
func TestSignedAddressesExpire(t *testing.T) {
	const life = 300 * time.Millisecond
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	b := remoteBlobOf(t, s, blob)
	s.Use(s.SignedBlobs(life))
	wantRange(t, b, blob, 0, 1000)
	for round := range 3 {
		time.Sleep(life + 50*time.Millisecond)
		s.Reset()
		readAtOnce(t, b, blob, 16)
		asked, expired := 0, 0
		for _, r := range s.Log() {
			switch r.Status {
			case 307:
				asked++
			case 403:
				expired++
			}
		}
		if asked != 1 || expired > 16 {
			t.Errorf("round %d: %d requests to the registry, %d with an old address", round, asked, expired)
		}
	}
}

// An address that is stale for good is not followed for ever, and fails with its reason.
func TestAddressNeverGood(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	b := remoteBlobOf(t, s, blob)
	s.Use(s.SignedBlobs(-time.Second))
	if _, err := readRange(t.Context(), b, 0, 10); err == nil {
		t.Error("read from an address that is never good")
	}
	if n := len(s.Log()); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// Tokens that are worthless before their time are renewed, and not by each reader.
func TestTokensExpire(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	s.PushImage("py:1", image(blob))
	auth := registrytest.Bearer("user", "secret")
	auth.Public = true
	s.Use(auth.Wrap)
	im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
	hasten(im)
	b := im.Blob(im.Manifest.Layers[0])
	for range 3 {
		auth.ExpireTokens()
		s.Reset()
		readAtOnce(t, b, blob, 16)
		if n := s.Total("GET", "/token").Requests; n != 1 {
			t.Errorf("%d tokens for 16 readers", n)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 5-5/*", "bytes */10", "bytes 0-9/-1", "bytes 0-99999999999999999999/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, ok := parseContentRange(s)
		if !ok {
			return
		}
		again := fmt.Sprintf("bytes %d-%d/%d", first, last, total)
		if total < 0 {
			again = fmt.Sprintf("bytes %d-%d/*", first, last)
		}
		if a, z, n, ok := parseContentRange(again); !ok || a != first || z != last || n != total || first < 0 || last < 0 || total < -1 {
			t.Errorf("%q is %d-%d/%d, which is %d-%d/%d %v", s, first, last, total, a, z, n, ok)
		}
	})
}

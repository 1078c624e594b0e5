package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

// clientCertificate makes a certificate that is its own authority, and writes it and its key to a file.
func clientCertificate(t *testing.T) (file string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(cert)
	text := certPEM(cert) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}))
	return writeFile(t, filepath.Join(t.TempDir(), "client.pem"), text, 0o600), pool
}

func certPEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// TestClientCertificate: a mirror that wants one gets it, its storage and the registry do not.
func TestClientCertificate(t *testing.T) {
	client, pool := clientCertificate(t)
	mirror := start(t, registrytest.Options{TLS: true, ClientCAs: pool})
	r := newRing(t, 0)
	r.mirrors = []*registrytest.Server{mirror}
	mirror.PushImage("team/app:1", image(r.blob))
	mirror.Use(mirror.SignedBlobs(time.Minute))
	ca := writeFile(t, filepath.Join(t.TempDir(), "ca.pem"), certPEM(mirror.Certificate()), 0o600)
	r.configure(fmt.Sprintf("ca = %q\nclient = [[%q, %q]]", ca, client, client))
	_, b := r.open()
	wantRange(t, b, r.blob, 0, 1000)
	r.wantAsked("", 0, -1)
	for _, q := range mirror.Log() {
		if q.Certificate != (q.Host == mirror.Host()) {
			t.Errorf("%s %s: certificate %v", q.Host, q.Path, q.Certificate)
		}
	}

	for name, more := range map[string]string{"no client certificate": "ca = '" + ca + "'", "an unknown authority": "client = '" + client + "'"} {
		mirror.Reset()
		r.configure(more)
		_, b := r.open()
		wantRange(t, b, r.blob, 0, 1000)
		if n := len(mirror.Log()); n != 0 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
	r.configure(fmt.Sprintf("skip_verify = true\nclient = %q", client))
	_, b = r.open()
	wantRange(t, b, r.blob, 0, 1000)
	r.wantAsked("/team/app/", -1, -1)
}

// TestCertsD: a registry whose authority the user has where podman looks for it is trusted without more.
func TestCertsD(t *testing.T) {
	s := start(t, registrytest.Options{TLS: true})
	blob := noise(10_000)
	s.PushImage("x:1", image(blob))
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	if _, err := Open(t.Context(), s.Host()+"/x:1", anonymous(t)); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("a certificate that nobody trusts: %v", err)
	}
	writeFile(t, filepath.Join(home, ".config/containers/certs.d", s.Host(), "ca.crt"), certPEM(s.Certificate()), 0o600)
	im := mustOpen(t, s.Host()+"/x:1", anonymous(t))
	wantRange(t, im.Blob(im.Manifest.Layers[0]), blob, 0, 10_000)
}

// TestProxies: the environment's proxy is asked for every host but those of NO_PROXY. net/http reads the
// environment once, so that the requests are another process's.
func TestProxies(t *testing.T) {
	if ref := os.Getenv("TEST_PROXIED_IMAGE"); ref != "" {
		o := anonymous(t)
		o.PlainHTTP = true
		im, err := Open(t.Context(), ref, o)
		if err != nil {
			t.Fatal(err)
		}
		_ = im.Close()
		return
	}
	s := start(t, registrytest.Options{})
	s.PushImage("x:1", image(noise(1000)))
	tests := []struct {
		noProxy string
		asked   bool
	}{{"", true}, {"other.example,registry.example", false}, {".example", false}}
	for _, tt := range tests {
		s.Reset()
		// The registry stands in for the proxy too: it gets whole addresses and serves their paths.
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestProxies$")
		cmd.Env = append(os.Environ(), "TEST_PROXIED_IMAGE=registry.example/x:1",
			"HTTP_PROXY="+s.URL(), "HTTPS_PROXY="+s.URL(), "NO_PROXY="+tt.noProxy, "http_proxy=", "https_proxy=", "no_proxy=")
		out, err := cmd.CombinedOutput()
		if asked := s.Total("GET", "/v2/").Requests > 0; asked != tt.asked || (err == nil) != tt.asked {
			t.Errorf("NO_PROXY=%s: proxy asked %v, %v\n%s", tt.noProxy, asked, err, strings.TrimSpace(string(out)))
		}
		connects := s.Total("CONNECT", "").Requests
		if (connects > 0) != tt.asked {
			t.Errorf("NO_PROXY=%s: https was asked for %d times", tt.noProxy, connects)
		}
	}
}

package registry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
)

func verifiable(b []byte) digest.Digest { return digest.FromBytes(b) }

func authJSON(key, user, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, key, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

func writeFile(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// authFile is a file of credentials for one registry.
func authFile(t *testing.T, host, user, password string) string {
	t.Helper()
	return writeFile(t, filepath.Join(t.TempDir(), "auth.json"), authJSON(host, user, password), 0o600)
}

func TestAuthentication(t *testing.T) {
	bearer := registrytest.Bearer("user", "secret")
	public := registrytest.Bearer("user", "secret")
	public.Public = true
	tests := []struct {
		name     string
		fault    registrytest.Fault
		user, pw string
		ok       bool
	}{
		{"basic", registrytest.Basic("user", "secret"), "user", "secret", true},
		{"basic, wrong", registrytest.Basic("user", "secret"), "user", "guess", false},
		{"basic, none", registrytest.Basic("user", "secret"), "", "", false},
		{"bearer", bearer.Wrap, "user", "secret", true},
		{"bearer, wrong", bearer.Wrap, "user", "guess", false},
		{"bearer, none", bearer.Wrap, "", "", false},
		{"bearer, public", public.Wrap, "", "", true},
	}
	for _, tt := range tests {
		s := start(t, registrytest.Options{})
		s.PushImage("py:1", image([]byte("layer")))
		s.Use(tt.fault)
		o := anonymous(t)
		if tt.user != "" {
			o.AuthFile = authFile(t, s.Host(), tt.user, tt.pw)
		}
		im, err := Open(t.Context(), s.Host()+"/py:1", o)
		if tt.ok {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			wantRange(t, im.Blob(im.Manifest.Layers[0]), []byte("layer"), 0, 5)
			_ = im.Close()
			continue
		}
		var e *Error
		if !errors.Is(err, ErrUnauthorized) || !errors.As(err, &e) || !strings.Contains(e.Hint, "docker login") || !strings.Contains(err.Error(), "401 unauthorized") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A token that the server does not take any more is replaced once, for all.
func TestExpiredToken(t *testing.T) {
	s := start(t, registrytest.Options{})
	auth := registrytest.Bearer("user", "secret")
	s.PushImage("py:1", image(noise(1000)))
	s.Use(auth.Wrap)
	o := anonymous(t)
	o.AuthFile = authFile(t, s.Host(), "user", "secret")
	im := mustOpen(t, s.Host()+"/py:1", o)
	b := im.Blob(im.Manifest.Layers[0])
	wantRange(t, b, noise(1000), 0, 10)
	s.Reset()
	auth.ExpireTokens()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { wantRange(t, b, noise(1000), 500, 10) })
	}
	wg.Wait()
	if n := s.Total("GET", "/token").Requests; n != 1 {
		t.Errorf("%d new tokens for 8 readers", n)
	}
}

// "docker login" beside a running mount takes effect at the next 401.
func TestCredentialsAreReadAgain(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		s := start(t, registrytest.Options{})
		s.PushImage("py:1", image(noise(1000)))
		use := func(password string) {
			s.Heal()
			if bearer {
				s.Use(registrytest.Bearer("user", password).Wrap)
			} else {
				s.Use(registrytest.Basic("user", password))
			}
		}
		use("old")
		o := anonymous(t)
		o.AuthFile = authFile(t, s.Host(), "user", "old")
		im := mustOpen(t, s.Host()+"/py:1", o)
		b := im.Blob(im.Manifest.Layers[0])
		wantRange(t, b, noise(1000), 0, 10)
		use("new")
		if _, err := readRange(t.Context(), b, 0, 10); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("bearer %v, old password: %v", bearer, err)
		}
		writeFile(t, o.AuthFile, authJSON(s.Host(), "user", "new"), 0o600)
		wantRange(t, b, noise(1000), 0, 10)
	}
}

func TestFindCredentials(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_RUNTIME_DIR", home+"/run")
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("REGISTRY_AUTH_FILE", "")
	helper := filepath.Join(home, "bin", "docker-credential-test")
	writeFile(t, helper, "#!/bin/sh\nread h; echo \"{\\\"ServerURL\\\":\\\"$h\\\",\\\"Username\\\":\\\"from-helper\\\",\\\"Secret\\\":\\\"$h\\\"}\"\n", 0o755)
	t.Setenv("PATH", filepath.Join(home, "bin")+":/usr/bin:/bin")
	writeFile(t, home+"/run/containers/auth.json", authJSON("r.example/org", "podman-org", "x"), 0o600)
	writeFile(t, home+"/.config/containers/auth.json", authJSON("docker.io", "podman-hub", "x"), 0o600)
	docker := `{"auths":{"r.example":{"auth":"ZG9ja2VyOng="},"empty.example":{}},"credHelpers":{"h.example":"test","broken.example":"missing"}}`
	writeFile(t, home+"/.docker/config.json", docker, 0o600)
	tests := []struct{ ref, file, user string }{
		{"r.example/org/repo", "", "podman-org"},
		{"r.example/other/repo", "", "docker"},
		{"alpine", "", "podman-hub"},
		{"h.example/x", "", "from-helper"},
		{"broken.example/x", "", ""},
		{"empty.example/x", "", ""},
		{"unknown.example/x", "", ""},
		{"r.example/x", authFile(t, "r.example", "explicit", "x"), "explicit"},
		{"r.example/x", authFile(t, "https://r.example", "explicit", "x"), "explicit"},
		{"alpine", authFile(t, hubKey, "hub", "x"), "hub"},
	}
	for _, tt := range tests {
		r, err := ParseRef(tt.ref)
		if err != nil {
			t.Fatal(err)
		}
		c := &credentials{file: tt.file, ref: r, log: Options{}.logger()}
		cfg, err := c.get()
		if err != nil || cfg.Username != tt.user {
			t.Errorf("%s %s: %q %v, want %q", tt.ref, tt.file, cfg.Username, err, tt.user)
		}
	}
	for _, file := range []string{home + "/none", writeFile(t, home+"/bad", "{", 0o600)} {
		c := &credentials{file: file, log: Options{}.logger()}
		if _, err := c.get(); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: %v", file, err)
		}
	}
	t.Setenv("REGISTRY_AUTH_FILE", authFile(t, "r.example", "env", "x"))
	c := &credentials{ref: Ref{Host: "r.example", Repo: "org/x"}, log: Options{}.logger()}
	if cfg, err := c.get(); err != nil || cfg.Username != "env" {
		t.Errorf("REGISTRY_AUTH_FILE: %q %v", cfg.Username, err)
	}
}

func TestTLS(t *testing.T) {
	s := start(t, registrytest.Options{TLS: true})
	s.PushImage("py:1", image([]byte("layer")))
	_, err := Open(t.Context(), s.Host()+"/py:1", anonymous(t))
	var e *Error
	if !errors.Is(err, ErrUnreachable) || !errors.As(err, &e) || !strings.Contains(e.Hint, "--insecure-skip-tls-verify") {
		t.Errorf("a certificate of nobody: %v", err)
	}
	o := anonymous(t)
	o.InsecureSkipTLSVerify = true
	mustOpen(t, s.Host()+"/py:1", o)
	o = anonymous(t)
	o.Transport = s.Client().Transport
	mustOpen(t, s.Host()+"/py:1", o)
}

// Names on other machines are never asked without encryption, private networks
// included, unless the user says so.
func TestPlainHTTPIsRefused(t *testing.T) {
	var schemes []string
	var mu sync.Mutex
	fake := roundTripper(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		schemes = append(schemes, r.URL.Scheme)
		return nil, io.ErrUnexpectedEOF
	})
	for host, plain := range map[string]bool{"10.0.0.1:5000": false, "r.example": false, "r.example:5000": true, "127.0.0.2:5000": true} {
		schemes = nil
		o := anonymous(t)
		o.Transport = fake
		o.PlainHTTP = host == "r.example:5000"
		_, err := Open(t.Context(), host+"/py", o)
		if err == nil || strings.Contains(strings.Join(schemes, " "), "http ") || (schemes[len(schemes)-1] == "http") != plain {
			t.Errorf("%s: asked by %v: %v", host, schemes, err)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

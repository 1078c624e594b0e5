package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// start starts a registry that ends with the test.
func start(t *testing.T, o registrytest.Options) *registrytest.Server {
	t.Helper()
	s := registrytest.New(o)
	t.Cleanup(s.Close)
	return s
}

// noise returns n bytes that are the same in every run.
func noise(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{7})
	_, _ = src.Read(b)
	return b
}

// image is an image of one layer with these bytes.
func image(layer []byte) registrytest.Image {
	return registrytest.Image{Layers: []registrytest.Layer{{Blob: layer}}}
}

// memory is Records in memory.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (r *memory) Load(name string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (r *memory) Save(name string, b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[string][]byte{}
	}
	r.m[name] = b
	return nil
}

// anonymous keeps the credentials of whoever runs the tests out of them.
func anonymous(t *testing.T) Options {
	t.Helper()
	name := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(name, []byte(`{}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{AuthFile: name, TempDir: t.TempDir(), Platform: "linux/amd64"}
}

func mustOpen(t *testing.T, ref string, o Options) *Image {
	t.Helper()
	im, err := Open(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// hasten makes the pauses between tries short.
func hasten(im *Image) {
	im.src.(*recorded).inner.(*remote).cl.backoff = backoff{tries: 5, min: time.Millisecond, max: 5 * time.Millisecond, longest: 10 * time.Millisecond}
}

func readRange(ctx context.Context, b *Blob, off, n int64) ([]byte, error) {
	rc, err := b.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func wantRange(t *testing.T, b *Blob, all []byte, off, n int64) {
	t.Helper()
	got, err := readRange(t.Context(), b, off, n)
	if err != nil {
		t.Errorf("range %d+%d: %v", off, n, err)
	} else if !bytes.Equal(got, all[off:off+n]) {
		t.Errorf("range %d+%d: wrong bytes (%d of them)", off, n, len(got))
	}
}

func TestOpenRegistry(t *testing.T) {
	s := start(t, registrytest.Options{})
	blob := noise(100_000)
	desc := s.PushImage("org/py:1", image(blob))
	for _, ref := range []string{"org/py:1", "org/py@" + desc.Digest.String(), "org/py:nope@" + desc.Digest.String()} {
		full := s.Host() + "/" + ref
		for _, prefix := range []string{"", "docker://"} {
			im := mustOpen(t, prefix+full, anonymous(t))
			if im.Desc.Digest != desc.Digest || im.Name != s.Host()+"/org/py@"+desc.Digest.String() || im.Ref != prefix+full {
				t.Errorf("%s: desc %v, name %s, ref %s", ref, im.Desc, im.Name, im.Ref)
			}
			if im.Config.Architecture != "amd64" || digest.FromBytes(im.RawConfig) != im.Manifest.Config.Digest {
				t.Errorf("%s: config %+v", ref, im.Config)
			}
			b := im.Blob(im.Manifest.Layers[0])
			wantRange(t, b, blob, 0, 100_000)
			wantRange(t, b, blob, 99_999, 1)
			wantRange(t, b, blob, 5, 0)
			if reqs, n := b.Stats(); reqs != 2 || n != 100_001 {
				t.Errorf("%s: %d requests, %d bytes", ref, reqs, n)
			}
			if r1, n1 := im.Stats(); r1 != 2 || n1 != 100_001 {
				t.Errorf("image: %d requests, %d bytes", r1, n1)
			}
		}
	}
}

func TestOpenErrors(t *testing.T) {
	s := start(t, registrytest.Options{})
	good := s.PushImage("py:1", image([]byte("layer")))
	h := s.Host()
	put := func(tag, mediaType, body string) { s.PutManifest("py", tag, mediaType, []byte(body)) }
	put("schema1", dockerSchema1Signed, `{"schemaVersion":1,"fsLayers":[]}`)
	put("both", ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}`)
	put("notjson", ocispec.MediaTypeImageManifest, `<html>`)
	put("chart", ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"},"layers":[]}`)
	put("nydus", ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json"},"layers":[{"mediaType":"application/vnd.oci.image.layer.nydus.blob.v1","digest":"`+good.Digest.String()+`","size":1}]}`)
	put("bigconfig", ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"`+good.Digest.String()+`","size":99999999},"layers":[]}`)
	put("baddigest", ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"digest":"md5:ab","size":9},"layers":[]}`)
	put("big", ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":"`+strings.Repeat("x", maxManifest)+`"}`)
	tests := []struct {
		ref, text string
		is        error
	}{
		{h + "/py:nope", "open " + h + "/py:nope: manifest unknown", ErrNotFound},
		{h + "/none:1", "open " + h + "/none:1: manifest unknown", ErrNotFound},
		{h + "/py:schema1", "schema 1", ErrUnsupported},
		{h + "/py:both", "an image and an index at once", ErrIntegrity},
		{h + "/py:notjson", "manifest is no JSON", ErrIntegrity},
		{h + "/py:chart", "not an image but an artifact of type application/vnd.cncf.helm.config.v1+json", ErrUnsupported},
		{h + "/py:nydus", "a nydus image", ErrUnsupported},
		{h + "/py:bigconfig", "more than the limit of 8388608", ErrUnsupported},
		{h + "/py:baddigest", "digest \"md5:ab\"", ErrIntegrity},
		{h + "/py:big", "more than the limit of 4194304 bytes", ErrUnsupported},
		{"localhost:1/py", "open localhost:1/py: dial ", ErrUnreachable},
		{"Upper Case", "malformed", ErrUsage},
		{"oci:" + t.TempDir() + "/none", "no such directory", ErrNotFound},
		{"docker-archive:/none", "no such file", ErrNotFound},
	}
	for _, tt := range tests {
		_, err := Open(t.Context(), tt.ref, anonymous(t))
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %v: %s", tt.ref, err, tt.is, tt.text)
		}
	}
}

func TestOpenCorruptManifest(t *testing.T) {
	s := start(t, registrytest.Options{})
	desc := s.PushImage("py:1", image([]byte("layer")))
	im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
	for _, d := range []digest.Digest{desc.Digest, im.Manifest.Config.Digest} {
		s.Use(registrytest.Corrupt(d, 0))
		_, err := Open(t.Context(), s.Host()+"/py:1", anonymous(t))
		if !errors.Is(err, ErrIntegrity) {
			t.Errorf("corrupt %s: %v", d, err)
		}
		s.Heal()
	}
}

func TestOpenSHA512(t *testing.T) {
	s := start(t, registrytest.Options{})
	im := mustOpen(t, s.Host()+"/py@"+s.PushImage("py:1", image([]byte("layer"))).Digest.String(), anonymous(t))
	d := digest.SHA512.FromBytes(im.RawManifest)
	s.PutManifest("py", d.String(), ocispec.MediaTypeImageManifest, im.RawManifest)
	if got := mustOpen(t, s.Host()+"/py@"+d.String(), anonymous(t)); got.Desc.Digest != d {
		t.Errorf("digest %s, want %s", got.Desc.Digest, d)
	}
	s.PutManifest("py", d.String(), ocispec.MediaTypeImageManifest, append(im.RawManifest, '\n'))
	if _, err := Open(t.Context(), s.Host()+"/py@"+d.String(), anonymous(t)); !errors.Is(err, ErrIntegrity) {
		t.Errorf("other bytes under a sha512 digest: %v", err)
	}
}

func TestOpenIndex(t *testing.T) {
	s := start(t, registrytest.Options{})
	entry := func(arch, variant string) ocispec.Descriptor {
		p := ocispec.Platform{OS: "linux", Architecture: arch, Variant: variant}
		im := image([]byte(arch + variant))
		im.Config.Platform = p
		d := s.PushImage("py:"+arch+variant, im)
		d.Platform = &p
		return d
	}
	amd, arm := entry("amd64", ""), entry("arm64", "v8")
	soci := s.PutManifest("py", "soci", ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.amazon.soci.index.v2+json"},"layers":[]}`))
	soci.Platform = amd.Platform
	s.PushIndex("py:1", soci, amd, arm)
	for want, d := range map[string]ocispec.Descriptor{"linux/amd64": amd, "arm64": arm, "linux/arm64/v8": arm} {
		o := anonymous(t)
		o.Platform = want
		if im := mustOpen(t, s.Host()+"/py:1", o); im.Desc.Digest != d.Digest {
			t.Errorf("%s: %s", want, im.Desc.Digest)
		}
	}
	o := anonymous(t)
	o.Platform = "linux/s390x"
	_, err := Open(t.Context(), s.Host()+"/py:1", o)
	var e *Error
	if !errors.Is(err, ErrNotFound) || !errors.As(err, &e) || !strings.Contains(e.Hint, "linux/arm64") {
		t.Errorf("a missing platform: %v, %+v", err, e)
	}
	if _, err := Open(t.Context(), s.Host()+"/py:amd64", o); !errors.Is(err, ErrNotFound) {
		t.Errorf("a single image of another platform: %v", err)
	}
}

func TestOffline(t *testing.T) {
	s := start(t, registrytest.Options{})
	p := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	d := s.PushImage("py:amd", image([]byte("layer")))
	d.Platform = &p
	s.PushIndex("py:1", d)
	o := anonymous(t)
	o.Records = &memory{}
	online := mustOpen(t, s.Host()+"/py:1", o)
	s.Reset()
	again := mustOpen(t, s.Host()+"/py:1", o)
	if n := s.Total("GET", "/v2/py/").Requests; n != 1 {
		t.Errorf("%d requests to open a known image, want that for the tag only", n)
	}
	s.Close()
	o.Offline = true
	for _, ref := range []string{"/py:1", "/py@" + d.Digest.String()} {
		im := mustOpen(t, s.Host()+ref, o)
		if !bytes.Equal(im.RawManifest, online.RawManifest) || !bytes.Equal(im.RawConfig, again.RawConfig) {
			t.Errorf("%s: another image offline", ref)
		}
		if _, err := readRange(t.Context(), im.Blob(im.Manifest.Layers[0]), 0, 1); !errors.Is(err, ErrOffline) {
			t.Errorf("blob offline: %v", err)
		}
	}
	for _, ref := range []string{"/py:2", "/py@" + digest.FromString("x").String()} {
		if _, err := Open(t.Context(), s.Host()+ref, o); !errors.Is(err, ErrOffline) {
			t.Errorf("%s offline: %v", ref, err)
		}
	}
	for name, b := range o.Records.(*memory).m { // a record that was damaged is no record
		o.Records.(*memory).m[name] = b[:len(b)-1]
	}
	if _, err := Open(t.Context(), s.Host()+"/py:1", o); !errors.Is(err, ErrOffline) {
		t.Errorf("damaged records: %v", err)
	}
}

// The limit of the descriptor's data field is the same digest rule as for
// everything else: embedded bytes that do not match are fetched.
func TestEmbeddedData(t *testing.T) {
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	for _, data := range [][]byte{config, bytes.Repeat([]byte("x"), len(config))} {
		s := start(t, registrytest.Options{})
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
		m.SchemaVersion = 2
		m.Config = s.PutBlob("py", config)
		m.Config.MediaType, m.Config.Data = ocispec.MediaTypeImageConfig, data
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		s.PutManifest("py", "1", m.MediaType, raw)
		if im := mustOpen(t, s.Host()+"/py:1", anonymous(t)); !bytes.Equal(im.RawConfig, config) {
			t.Errorf("config %q", im.RawConfig)
		}
	}
}

package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// large are two layers that an index has zTOCs of, and a small one between.
func large() registrytest.Image {
	return registrytest.Image{Layers: []registrytest.Layer{{Blob: noise(11 << 20)}, {Blob: noise(1000)}, {Blob: noise(12 << 20)}}}
}

// someZTOCs stand for the zTOCs of an image's large layers: this package does not look into them.
func someZTOCs(t *testing.T, im *Image) []ZTOC {
	t.Helper()
	var list []ZTOC
	for i, l := range im.SOCILayers(MinSOCILayer) {
		list = append(list, ZTOC{Layer: l, Span: 4 << 20, Blob: noise(50_000 + i)})
	}
	if len(list) != 2 {
		t.Fatalf("%d layers are to be indexed", len(list))
	}
	return list
}

func sociOptions(t *testing.T) SOCIOptions {
	return SOCIOptions{Options: anonymous(t), Tool: "test"}
}

// wantSOCI checks what SOCI found, and reads the zTOCs.
func wantSOCI(t *testing.T, im *Image, s SOCIIndex, bound bool, want []ZTOC) {
	t.Helper()
	if len(s.ZTOCs) != len(want) || s.Bound != bound || s.Desc.Digest.Validate() != nil {
		t.Fatalf("%+v", s)
	}
	for _, z := range want {
		d, ok := s.ZTOCs[z.Layer.Digest]
		if !ok || d.Digest != digest.FromBytes(z.Blob) {
			t.Fatalf("zTOC of %s: %+v", z.Layer.Digest, d)
		}
		wantRange(t, im.Blob(d), z.Blob, 0, d.Size)
		if d.Annotations[sociSpanSize] != "4194304" || d.Annotations[sociLayerType] != z.Layer.MediaType {
			t.Errorf("annotations %v", d.Annotations)
		}
	}
}

func mustSOCI(t *testing.T, im *Image, referrers bool) SOCIIndex {
	t.Helper()
	s, err := im.SOCI(t.Context(), referrers)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// attachTwice attaches to an image and finds what it attached.
func attachTwice(t *testing.T, ref string) {
	t.Helper()
	im := mustOpen(t, ref, anonymous(t))
	z := someZTOCs(t, im)
	if s := mustSOCI(t, im, true); s.ZTOCs != nil {
		t.Fatalf("before anything was attached: %+v", s)
	}
	d, err := AttachSOCI(t.Context(), im, z, sociOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	again, err := AttachSOCI(t.Context(), im, z, sociOptions(t))
	if err != nil || again.Digest != d.Digest {
		t.Fatalf("attached again: %v, %v", again, err)
	}
	im = mustOpen(t, ref, anonymous(t))
	if s := mustSOCI(t, im, false); s.ZTOCs != nil {
		t.Errorf("an index that anybody may have attached was used unasked: %+v", s)
	}
	s := mustSOCI(t, im, true)
	wantSOCI(t, im, s, false, z)
	if s.Desc.Digest != d.Digest || s.Desc.ArtifactType != sociV1 || s.Desc.Annotations[sociBuildTool] != "test" {
		t.Errorf("found %+v, attached %s", s.Desc, d.Digest)
	}
}

func TestAttachSOCI(t *testing.T) {
	for name, faults := range map[string][]registrytest.Fault{
		"referrers": nil, "none": {registrytest.NoReferrers}, "login page": {registrytest.NoReferrers, loginPage},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, registrytest.Options{})
			s.PushImage("py:1", large())
			s.Use(faults...)
			attachTwice(t, s.Host()+"/py:1")
			im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
			list, err := im.src.(*recorded).inner.(*remote).taggedReferrers(t.Context(), im.Desc.Digest)
			if want := min(len(faults), 1); err != nil || len(list) != want {
				t.Errorf("%d are listed under the fallback tag, want %d: %v", len(list), want, err)
			}
		})
	}
}

// loginPage is what a registry answers that knows no such address and takes the client for a browser.
func loginPage(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte("<html>log in</html>"))
	})
}

func TestAttachSOCIDistribution(t *testing.T) {
	host := distribution(t)
	s := start(t, registrytest.Options{})
	s.PushImage("py:1", large())
	base := mustOpen(t, s.Host()+"/py:1", anonymous(t))
	im := mustPush(t, base, host+"/py:1", pushOptions(t, noise(100)))
	attachTwice(t, host+"/py:1")
	z := someZTOCs(t, im)
	if _, _, err := PushSOCI(t.Context(), im, host+"/py:soci", z, sociOptions(t)); err != nil {
		t.Fatal(err)
	}
	im = mustOpen(t, host+"/py:soci", anonymous(t))
	wantSOCI(t, im, mustSOCI(t, im, false), true, z)
}

// TestAttachSOCIOthers: what others attached stays, and indexes of no use are passed by.
func TestAttachSOCIOthers(t *testing.T) {
	for _, faults := range [][]registrytest.Fault{nil, {registrytest.NoReferrers}} {
		s := start(t, registrytest.Options{})
		d := s.PushImage("py:1", large())
		config := s.PutBlob("py", []byte("{}"))
		var list []ocispec.Descriptor
		artifact := func(m ocispec.Manifest, mediaType string) {
			m.Versioned = specs.Versioned{SchemaVersion: 2}
			m.MediaType, m.Config = ocispec.MediaTypeImageManifest, config
			m.Config.MediaType = mediaType
			raw := toJSON(t, m)
			e := s.PutManifest("py", digest.FromString(raw).String(), m.MediaType, []byte(raw))
			e.ArtifactType = mediaType
			list = append(list, e)
		}
		layer := ocispec.Descriptor{MediaType: octetStream, Digest: "sha256:0", Annotations: map[string]string{sociLayerDigest: digest.FromBytes(noise(11 << 20)).String()}}
		artifact(ocispec.Manifest{Subject: &d, Annotations: map[string]string{"a": "signature"}}, "application/vnd.example.signature")
		artifact(ocispec.Manifest{Subject: &d, Layers: []ocispec.Descriptor{layer}}, sociV1)
		other := d
		other.Digest = digest.FromString("other")
		artifact(ocispec.Manifest{Subject: &other}, sociV1)
		for i := range 3 {
			artifact(ocispec.Manifest{Subject: &d, Annotations: map[string]string{"n": string(rune('a' + i))}}, "application/vnd.example.sbom")
		}
		s.PushIndex("py:"+fallbackTag(d.Digest), list...)
		s.Use(faults...)
		im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
		if _, err := im.SOCI(t.Context(), true); !errors.Is(err, ErrIntegrity) {
			t.Errorf("an index with a malformed zTOC: %v", err)
		}
		z := someZTOCs(t, im)
		if _, err := AttachSOCI(t.Context(), im, z, sociOptions(t)); err != nil {
			t.Fatal(err)
		}
		wantSOCI(t, im, mustSOCI(t, im, true), false, z)
		src := im.src.(referring)
		if sboms, err := src.referrers(t.Context(), d.Digest, "application/vnd.example.sbom"); err != nil || len(sboms) != 3 {
			t.Errorf("%d of 3 other artifacts are left: %v", len(sboms), err)
		}
	}
}

// TestAttachSOCIRace: somebody else writes the tag at the same time.
func TestAttachSOCIRace(t *testing.T) {
	s := start(t, registrytest.Options{})
	d := s.PushImage("py:1", large())
	var once sync.Once
	s.Use(registrytest.NoReferrers, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r)
			if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, fallbackTag(d.Digest)) {
				once.Do(func() { s.PushIndex("py:" + fallbackTag(d.Digest)) })
			}
		})
	})
	attachTwice(t, s.Host()+"/py:1")
}

func TestPushSOCI(t *testing.T) {
	s := start(t, registrytest.Options{})
	for _, mediaType := range []string{ocispec.MediaTypeImageManifest, dockerManifest} {
		img := large()
		img.MediaType, img.Annotations = mediaType, map[string]string{"keep": "me"}
		s.PushImage("py:1", img)
		base := mustOpen(t, s.Host()+"/py:1", anonymous(t))
		z := someZTOCs(t, base)
		dir := t.TempDir()
		for _, dest := range []string{s.Host() + "/py:soci", s.Host() + "/other:soci", "oci:" + dir + "/layout:soci", "oci-archive:" + dir + "/a.tar:soci"} {
			d, name, err := PushSOCI(t.Context(), base, dest, z, sociOptions(t))
			if err != nil || name != dest+"@"+d.Digest.String() {
				t.Fatalf("%s: %s, %v", dest, name, err)
			}
			im := mustOpen(t, dest, anonymous(t))
			if im.Desc.MediaType != ocispec.MediaTypeImageManifest || im.Manifest.Config.MediaType != ocispec.MediaTypeImageConfig ||
				im.Manifest.Annotations["keep"] != "me" || !bytes.Equal(im.RawConfig, base.RawConfig) {
				t.Errorf("%s: manifest %s", dest, im.RawManifest)
			}
			got := mustSOCI(t, im, false)
			wantSOCI(t, im, got, true, z)
			wantRange(t, im.Blob(im.Manifest.Layers[2]), noise(12<<20), 5_000_000, 100)
			var index ocispec.Index
			_, raw, err := im.src.resolve(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(raw, &index); err != nil {
				t.Fatal(err)
			}
			if len(index.Manifests) != 2 || index.Manifests[1].Digest != got.Desc.Digest || index.Manifests[1].ArtifactType != sociV2 ||
				index.Manifests[1].Annotations[sociManifestDigest] != im.Desc.Digest.String() || index.Manifests[0].Platform.Architecture != "amd64" {
				t.Errorf("%s: index %s", dest, raw)
			}
		}
	}
}

func TestAttachSOCILayout(t *testing.T) {
	s := start(t, registrytest.Options{})
	s.PushImage("py:1", large())
	base := mustOpen(t, s.Host()+"/py:1", anonymous(t))
	dir := t.TempDir()
	mustPush(t, base, "oci:"+dir+":1", pushOptions(t, noise(100)))
	attachTwice(t, "oci:"+dir) // which stays the only image, whatever is attached
	im := mustOpen(t, "oci:"+dir+":1", anonymous(t))
	z := someZTOCs(t, im)
	archive := "oci-archive:" + filepath.Join(t.TempDir(), "a.tar") + ":1"
	mustPush(t, base, archive, pushOptions(t, noise(100)))
	if _, err := AttachSOCI(t.Context(), mustOpen(t, archive, anonymous(t)), z, sociOptions(t)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("attach to an archive: %v", err)
	}
	// The list under the fallback tag, as copies from registries without one have it.
	index := toJSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{mustSOCI(t, im, true).Desc}})
	tag := described(ocispec.MediaTypeImageIndex, index)
	tag.Annotations = map[string]string{ocispec.AnnotationRefName: fallbackTag(im.Desc.Digest)}
	image := im.Desc
	image.Annotations = map[string]string{ocispec.AnnotationRefName: "1"}
	writeFile(t, filepath.Join(dir, blobPath(tag.Digest)), index, 0o644)
	writeFile(t, filepath.Join(dir, "index.json"), toJSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{image, tag}}), 0o644)
	im = mustOpen(t, "oci:"+dir+":1", anonymous(t))
	wantSOCI(t, im, mustSOCI(t, im, true), false, z)
}

// TestSOCIOffline: an index that was found once needs no registry any more.
func TestSOCIOffline(t *testing.T) {
	s := start(t, registrytest.Options{})
	s.PushImage("py:1", large())
	base := mustOpen(t, s.Host()+"/py:1", anonymous(t))
	z := someZTOCs(t, base)
	if _, _, err := PushSOCI(t.Context(), base, s.Host()+"/py:soci", z, sociOptions(t)); err != nil {
		t.Fatal(err)
	}
	o := anonymous(t)
	o.Records = &memory{}
	mustSOCI(t, mustOpen(t, s.Host()+"/py:soci", o), false)
	mustOpen(t, s.Host()+"/py:1", o)
	o.Offline = true
	s.Reset()
	if got := mustSOCI(t, mustOpen(t, s.Host()+"/py:soci", o), false); len(got.ZTOCs) != 2 || !got.Bound {
		t.Errorf("%+v", got)
	}
	if _, err := mustOpen(t, s.Host()+"/py:1", o).SOCI(t.Context(), true); !errors.Is(err, ErrOffline) {
		t.Errorf("referrers while offline: %v", err)
	}
	if n := s.Total("", "").Requests; n != 0 {
		t.Errorf("%d requests while offline", n)
	}
}

func TestSOCIErrors(t *testing.T) {
	s := start(t, registrytest.Options{})
	open := func(digest string) *Image {
		img := large()
		img.Annotations = map[string]string{sociIndexDigest: digest}
		s.PushImage("py:1", img)
		return mustOpen(t, s.Host()+"/py:1", anonymous(t))
	}
	image := s.PushImage("py:2", image([]byte("x")))
	for index, want := range map[string]error{
		"nonsense":                         ErrIntegrity,
		digest.FromString("gone").String(): ErrNotFound,
		image.Digest.String():              ErrUnsupported,
	} {
		if _, err := open(index).SOCI(t.Context(), false); !errors.Is(err, want) {
			t.Errorf("index %s: %v", index, err)
		}
	}
	im := open(image.Digest.String())
	s.Use(registrytest.Corrupt(image.Digest, 10))
	if _, err := im.SOCI(t.Context(), true); !errors.Is(err, ErrIntegrity) {
		t.Errorf("a damaged index: %v", err)
	}
	s.Heal()
	plain := mustOpen(t, s.Host()+"/py:2", anonymous(t))
	hasten(plain)
	s.Use(registrytest.Status(http.StatusServiceUnavailable, -1))
	if _, err := plain.SOCI(t.Context(), true); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a registry that is down: %v", err)
	}
	s.Heal()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := plain.SOCI(ctx, true); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := AttachSOCI(t.Context(), plain, nil, sociOptions(t)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("nothing to attach: %v", err)
	}
	for _, dest := range []string{"docker-archive:" + t.TempDir() + "/a.tar", s.Host() + "/py@" + image.Digest.String(), "UPPER"} {
		if _, _, err := PushSOCI(t.Context(), plain, dest, []ZTOC{{Layer: plain.Manifest.Layers[0]}}, sociOptions(t)); !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrUsage) {
			t.Errorf("%s: %v", dest, err)
		}
	}
	if _, err := AttachSOCI(t.Context(), plain, []ZTOC{{Layer: im.Manifest.Layers[0]}}, sociOptions(t)); !errors.Is(err, ErrUsage) {
		t.Errorf("a zTOC of another image: %v", err)
	}
	if _, err := os.Stat("UPPER"); err == nil {
		t.Error("a file was made")
	}
}

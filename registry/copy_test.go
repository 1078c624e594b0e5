package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func mustCopy(t *testing.T, src, dest string, o CopyOptions) ocispec.Descriptor {
	t.Helper()
	d, name, err := Copy(t.Context(), src, dest, o)
	if err != nil {
		t.Fatal(err)
	}
	if name != dest+"@"+d.Digest.String() {
		t.Errorf("name %s", name)
	}
	return d
}

// sameImage compares what two references lead to, byte by byte.
func sameImage(t *testing.T, a, b *Image) {
	t.Helper()
	if !bytes.Equal(a.RawManifest, b.RawManifest) || !bytes.Equal(a.RawConfig, b.RawConfig) || a.Desc.MediaType != b.Desc.MediaType {
		t.Fatalf("%s is\n%s\nand %s is\n%s", a.Ref, a.RawManifest, b.Ref, b.RawManifest)
	}
	for _, l := range a.Manifest.Layers {
		if IsForeign(l.MediaType) {
			continue
		}
		want, err := readRange(t.Context(), a.Blob(l), 0, l.Size)
		if err != nil {
			t.Fatal(err)
		}
		wantRange(t, b.Blob(l), want, 0, l.Size)
	}
}

// TestCopy goes through all places and back, and every byte stays.
func TestCopy(t *testing.T) {
	o := CopyOptions{Options: anonymous(t)}
	from, to := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	from.PushImage("org/app:1", registrytest.Image{Layers: []registrytest.Layer{{Blob: noise(9_000_000)}, {Blob: []byte("second")}, {Blob: []byte("second")}}})
	dir := t.TempDir()
	places := []string{from.Host() + "/org/app:1", from.Host() + "/other:2", to.Host() + "/app:3", "oci:" + dir + "/layout:v1", "oci-archive:" + dir + "/oci.tar:v1", to.Host() + "/again"}
	for i, dest := range places[1:] {
		from.Reset()
		mustCopy(t, places[i], dest, o)
		sameImage(t, mustOpen(t, places[0], o.Options), mustOpen(t, dest, o.Options))
		if n := from.Total("GET", "/org/app/blobs/sha256:"+digest.FromBytes(noise(9_000_000)).Encoded()); i == 0 && n.Requests > 1 {
			t.Errorf("mounting: %d requests for the layer beside the comparison's", n.Requests)
		}
	}
	to.Reset()
	mustCopy(t, places[0], places[2], o)
	if n := to.Total("", "/uploads/"); n.Requests != 0 {
		t.Errorf("%d requests of uploads for what is there", n.Requests)
	}
	docker := "docker-archive:" + dir + "/d.tar:app:1"
	mustCopy(t, places[0], docker, o)
	im, got := mustOpen(t, places[0], o.Options), mustOpen(t, docker, o.Options)
	if !bytes.Equal(im.RawConfig, got.RawConfig) || len(got.Manifest.Layers) != 3 || got.Manifest.Layers[0].Digest != im.Manifest.Layers[0].Digest {
		t.Errorf("a docker archive has config\n%s\nand layers %v", got.RawConfig, got.Manifest.Layers)
	}
	mustCopy(t, docker, to.Host()+"/from-docker:1", o)
	sameImage(t, got, mustOpen(t, to.Host()+"/from-docker:1", o.Options))
	if list, err := filepath.Glob(dir + "/.*"); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v %v", list, err)
	}
}

// platforms pushes an index of two platforms, an attestation and an index in the index.
func platforms(t *testing.T, s *registrytest.Server) (index ocispec.Descriptor) {
	t.Helper()
	arm := registrytest.Image{Layers: []registrytest.Layer{{Blob: []byte("arm")}}}
	arm.Config.Architecture = "arm64"
	a, b := s.PushImage("multi:amd64", image([]byte("amd"))), s.PushImage("multi:arm64", arm)
	a.Platform, b.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}, &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	proof := s.PutBlob("multi", []byte(`{"predicate":1}`))
	proof.MediaType = "application/vnd.in-toto+json"
	config := s.PutBlob("multi", []byte("{}"))
	raw, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{proof}})
	if err != nil {
		t.Fatal(err)
	}
	att := s.PutManifest("multi", digest.FromBytes(raw).String(), ocispec.MediaTypeImageManifest, raw)
	att.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	att.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": a.Digest.String()}
	inner := s.PushIndex("multi:inner", b)
	return s.PushIndex("multi:all", a, att, b, inner, a)
}

func TestCopyAll(t *testing.T) {
	s := start(t, registrytest.Options{})
	index := platforms(t, s)
	o := CopyOptions{Options: anonymous(t), All: true}
	o.Platform = ""
	dir := t.TempDir()
	to := start(t, registrytest.Options{})
	src := s.Host() + "/multi:all"
	for _, dest := range []string{s.Host() + "/mine:1", to.Host() + "/there:1", "oci:" + dir + "/layout:v1", "oci-archive:" + dir + "/a.tar:v1"} {
		if d := mustCopy(t, src, dest, o); d.Digest != index.Digest || d.MediaType != ocispec.MediaTypeImageIndex {
			t.Errorf("%s is %+v, want %s", dest, d, index.Digest)
		}
		for _, platform := range []string{"linux/amd64", "linux/arm64"} {
			p := o.Options
			p.Platform = platform
			sameImage(t, mustOpen(t, src, p), mustOpen(t, dest, p))
		}
		if again := mustCopy(t, dest, to.Host()+"/again:1", o); again.Digest != index.Digest {
			t.Errorf("back from %s it is %s", dest, again.Digest)
		}
	}
	if to.Total("HEAD", digest.FromString(`{"predicate":1}`).String()).Requests == 0 {
		t.Error("the attestation was not copied")
	}
	if _, _, err := Copy(t.Context(), src, "docker-archive:"+dir+"/d.tar:x", o); !errors.Is(err, ErrUsage) {
		t.Errorf("an index into a docker archive: %v", err)
	}
	o.All, o.Platform = false, "linux/arm64"
	d := mustCopy(t, src, to.Host()+"/arm:1", o)
	if im := mustOpen(t, to.Host()+"/arm:1", o.Options); im.Desc.Digest != d.Digest || im.Config.Architecture != "arm64" || d.Digest == index.Digest {
		t.Errorf("one platform: %+v %s", d, im.RawConfig)
	}
}

func TestCopyErrors(t *testing.T) {
	s, to := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	layer := noise(100_000)
	s.PushImage("app:1", image(layer))
	before := to.PushImage("app:1", image([]byte("old")))
	o := CopyOptions{Options: anonymous(t)}
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		src, dest string
		is        error
	}{
		"no source":      {s.Host() + "/none:1", to.Host() + "/app:1", ErrNotFound},
		"to a digest":    {s.Host() + "/app:1", to.Host() + "/app@" + someDigest, ErrUsage},
		"no destination": {s.Host() + "/app:1", "docker-daemon:x", ErrUsage},
	} {
		for _, all := range []bool{false, true} {
			o.All = all
			if _, _, err := Copy(t.Context(), tt.src, tt.dest, o); !errors.Is(err, tt.is) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	s.Use(registrytest.Corrupt(digest.FromBytes(layer), 99_999))
	for _, dest := range []string{to.Host() + "/app:1", "oci:" + dir + "/l:1", "oci-archive:" + dir + "/a.tar:1"} {
		if _, _, err := Copy(t.Context(), s.Host()+"/app:1", dest, o); !errors.Is(err, ErrIntegrity) {
			t.Errorf("a corrupt blob to %s: %v", dest, err)
		}
	}
	if im := mustOpen(t, to.Host()+"/app:1", o.Options); im.Desc.Digest != before.Digest {
		t.Error("the tag has moved")
	}
	if n := to.OpenUploads(); n != 0 {
		t.Errorf("%d uploads were left open", n)
	}
	if _, err := os.Stat(dir + "/a.tar"); err == nil {
		t.Error("an archive was left")
	}
}

// rewritten is a base of four layers of which the second is foreign, and what Rewrite
// makes of it with other bytes for the first and the last.
func rewritten(t *testing.T, mediaType, newType string, edit func(*RewriteOptions)) (base, im *Image) {
	t.Helper()
	s := start(t, registrytest.Options{})
	layers := []registrytest.Layer{{Blob: []byte("one")}, {Blob: []byte("gone")}, {Blob: []byte("three")}, {Blob: []byte("one")}}
	layers[0].Desc.Annotations = map[string]string{"mine": "kept", tocAnnotation: "old", "com.amazon.soci.x": "y"}
	layers[1].Desc.MediaType, layers[1].Desc.URLs = ociForeignLayerGzip, []string{"https://layers.example/gone"}
	if mediaType == dockerManifest {
		layers[1].Desc.MediaType = dockerForeignLayer
		for _, i := range []int{0, 2, 3} {
			layers[i].Desc.MediaType = dockerLayerGzip
		}
	}
	s.PushImage("base:1", registrytest.Image{MediaType: mediaType, Layers: layers, Annotations: map[string]string{"title": "t", "com.amazon.soci.index-digest": "d"}})
	base = mustOpen(t, s.Host()+"/base:1", anonymous(t))
	o := RewriteOptions{Options: anonymous(t), Parallel: 2, Layers: map[digest.Digest]NewLayer{digest.FromString("one"): *layerOf([]byte("new"), newType)}}
	if edit != nil {
		edit(&o)
	}
	d, _, err := Rewrite(t.Context(), base, "oci:"+t.TempDir()+":v1", o)
	if err != nil {
		t.Fatal(err)
	}
	again, name, err := Rewrite(t.Context(), base, s.Host()+"/new:1", o)
	if err != nil || again.Digest != d.Digest || name != s.Host()+"/new:1@"+d.Digest.String() {
		t.Fatalf("the second time it is %s %s: %v", name, again.Digest, err)
	}
	return base, mustOpen(t, s.Host()+"/new:1", anonymous(t))
}

const tocAnnotation = "containerd.io/snapshot/stargz/toc.digest"

func TestRewrite(t *testing.T) {
	base, im := rewritten(t, "", ocispec.MediaTypeImageLayerZstd, nil)
	var types []string
	for _, l := range im.Manifest.Layers {
		types = append(types, l.MediaType)
	}
	if want := []string{ocispec.MediaTypeImageLayerZstd, ociForeignLayerGzip, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd}; !slices.Equal(types, want) {
		t.Errorf("types %v", types)
	}
	if !slices.Equal(im.Manifest.Layers[1].URLs, base.Manifest.Layers[1].URLs) {
		t.Errorf("the foreign layer is at %v", im.Manifest.Layers[1].URLs)
	}
	if l := im.Manifest.Layers[0]; l.Digest != digest.FromString("new") || !maps.Equal(l.Annotations, map[string]string{"mine": "kept", "k": "v"}) {
		t.Errorf("new layer %+v", l)
	}
	diff, ids := digest.FromString("diff"), base.Config.RootFS.DiffIDs
	if want := []digest.Digest{diff, ids[1], ids[2], diff}; !slices.Equal(im.Config.RootFS.DiffIDs, want) {
		t.Errorf("diff IDs %v", im.Config.RootFS.DiffIDs)
	}
	if got := strings.ReplaceAll(string(im.RawConfig), diff.String(), ids[0].String()); got != string(base.RawConfig) {
		t.Errorf("more than diff IDs have changed in the config:\n%s\n%s", base.RawConfig, im.RawConfig)
	}
	if !maps.Equal(im.Manifest.Annotations, map[string]string{"title": "t"}) {
		t.Errorf("annotations %v", im.Manifest.Annotations)
	}
}

// TestRewriteSameTar: where every tar is what it was, the config keeps its digest.
func TestRewriteSameTar(t *testing.T) {
	base, im := rewritten(t, dockerManifest, ocispec.MediaTypeImageLayerGzip, func(o *RewriteOptions) {
		one := digest.FromString("one")
		o.Layers[one] = NewLayer{Write: func(_ context.Context, w io.Writer) (ocispec.Descriptor, digest.Digest, error) {
			_, err := w.Write([]byte("new"))
			return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("new"), Size: 3}, one, err
		}}
	})
	if im.Manifest.Config.Digest != base.Manifest.Config.Digest || im.Desc.MediaType != dockerManifest || im.Manifest.Layers[0].MediaType != dockerLayerGzip {
		t.Errorf("%s\n%s", base.RawManifest, im.RawManifest)
	}
}

// TestRewriteDocker: what a docker manifest cannot say makes it an OCI one.
func TestRewriteDocker(t *testing.T) {
	_, im := rewritten(t, dockerManifest, ocispec.MediaTypeImageLayerGzip, nil) // with annotations
	if im.Desc.MediaType != ocispec.MediaTypeImageManifest || im.Manifest.Layers[1].MediaType != ociForeignLayerGzip || im.Manifest.Config.MediaType != ocispec.MediaTypeImageConfig {
		t.Errorf("%s", im.RawManifest)
	}
}

func TestRewriteErrors(t *testing.T) {
	s := start(t, registrytest.Options{})
	s.PushImage("base:1", image([]byte("one")))
	base := mustOpen(t, s.Host()+"/base:1", anonymous(t))
	mine := errors.New("mine")
	o := RewriteOptions{Options: anonymous(t), Layers: map[digest.Digest]NewLayer{
		digest.FromString("one"): {Repeatable: true, Write: func(context.Context, io.Writer) (ocispec.Descriptor, digest.Digest, error) {
			return ocispec.Descriptor{}, "", mine
		}},
	}}
	for _, dest := range []string{s.Host() + "/new:1", "oci:" + t.TempDir() + ":x"} {
		var e *Error
		if _, _, err := Rewrite(t.Context(), base, dest, o); !errors.Is(err, mine) || !errors.As(err, &e) {
			t.Errorf("%s: %v", dest, err)
		}
	}
	base.Config.RootFS.DiffIDs = nil
	if _, _, err := Rewrite(t.Context(), base, s.Host()+"/new:1", o); !errors.Is(err, ErrIntegrity) {
		t.Errorf("without diff IDs: %v", err)
	}
}

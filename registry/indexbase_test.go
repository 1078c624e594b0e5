package registry

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// multiIndex pushes an index of two platforms, with an attestation of each, and a field that nobody knows.
func multiIndex(t *testing.T, s *registrytest.Server, repo string) (amd, arm ocispec.Descriptor) {
	t.Helper()
	im := image(noise(40_000))
	im.Config.OS, im.Config.Architecture, im.Config.Variant = "linux", "arm64", "v8"
	arm = s.PushImage(repo+":arm", im)
	amd = s.PushImage(repo+":amd", image(noise(60_000)))
	amd.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	amd.Annotations = map[string]string{"org.opencontainers.image.base.name": "old", "kept": "yes"}
	attest := func(of ocispec.Descriptor, size int) ocispec.Descriptor {
		d := s.PushImage(repo+":att", image(noise(size)))
		d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		d.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of.Digest.String()}
		return d
	}
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "unknown": "field",
		"manifests": []ocispec.Descriptor{arm, amd, attest(arm, 700), attest(amd, 800)},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.PutManifest(repo, "1", ocispec.MediaTypeImageIndex, raw)
	return amd, arm
}

func TestPushIndexBase(t *testing.T) {
	s, elsewhere := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	amd, arm := multiIndex(t, s, "org/multi")
	dests := map[string]string{
		"same repository": s.Host() + "/org/multi:2", "other repository": s.Host() + "/other/app:2", "other registry": elsewhere.Host() + "/app:2",
		"layout": "oci:" + filepath.Join(t.TempDir(), "l") + ":x", "archive": "oci-archive:" + filepath.Join(t.TempDir(), "a.tar") + ":x",
	}
	for name, dest := range dests {
		for _, squash := range []bool{false, true} {
			o := pushOptions(t, noise(3000))
			o.Platform, o.Squash, o.BaseName = "linux/amd64", squash, s.Host()+"/org/multi:1"
			base := mustOpen(t, s.Host()+"/org/multi:1", o.Options)
			if base.Desc.Digest != amd.Digest {
				t.Fatalf("the base is %s", base.Desc.Digest)
			}
			d, _, err := Push(t.Context(), base, dest, o)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			im := mustOpen(t, dest, o.Options)
			if im.index == nil || im.index.desc.Digest != d.Digest {
				t.Fatalf("%s: what was pushed is not the index", name)
			}
			wantReplaced(t, name, im.index.raw, im.Desc.Digest, amd, arm)
			o.Platform = "linux/arm64"
			other := mustOpen(t, dest, o.Options)
			if other.Desc.Digest != arm.Digest || len(other.Manifest.Layers) != 1 {
				t.Errorf("%s: the other platform is %s", name, other.Desc.Digest)
			}
			for _, l := range other.Manifest.Layers {
				wantRange(t, other.Blob(l), noise(40_000), 0, l.Size)
			}
		}
	}
}

func wantReplaced(t *testing.T, name string, raw []byte, made digest.Digest, amd, arm ocispec.Descriptor) {
	t.Helper()
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 3 || index.Manifests[0].Digest != arm.Digest || index.Manifests[1].Digest != made {
		t.Fatalf("%s: index %s", name, raw)
	}
	d := index.Manifests[1]
	if d.Platform == nil || d.Platform.Architecture != "amd64" || d.Annotations["kept"] != "yes" || d.Annotations[annotationBaseName] != "" {
		t.Errorf("%s: the new entry is %+v", name, d)
	}
	if index.Manifests[2].Annotations["vnd.docker.reference.digest"] != arm.Digest.String() {
		t.Errorf("%s: the attestation of the other image: %+v", name, index.Manifests[2])
	}
	kept, err := json.Marshal(arm)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(raw, kept) || !bytes.Contains(raw, []byte(`"unknown":"field"`)) || bytes.Contains(raw, []byte(amd.Digest)) {
		t.Errorf("%s: index %s", name, raw)
	}
}

// Of an index of docker's with an image that is OCI's by now, an OCI index must be made.
func TestReplacedIndexType(t *testing.T) {
	x := &foundIndex{desc: ocispec.Descriptor{MediaType: dockerIndex}, raw: []byte(`{"manifests":[{"digest":"sha256:a"},{"digest":"sha256:a"}]}`), chosen: ocispec.Descriptor{Digest: "sha256:a"}}
	for of, want := range map[string]string{dockerManifest: dockerIndex, ocispec.MediaTypeImageManifest: ocispec.MediaTypeImageIndex} {
		raw, kind, err := x.replaced(ocispec.Descriptor{MediaType: of, Digest: "sha256:b", Size: 1}, "")
		if err != nil || kind != want {
			t.Errorf("%s: %s, %v", of, kind, err)
		}
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil || index.MediaType != want || !slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == "sha256:a" }) {
			t.Errorf("exactly one entry is to be replaced: %s, %v", raw, err)
		}
	}
	for _, broken := range []string{"", "[]", `{"manifests":{}}`, `{"manifests":[1]}`} {
		x.raw = []byte(broken)
		if _, _, err := x.replaced(ocispec.Descriptor{}, ""); err == nil {
			t.Errorf("%q: no error", broken)
		}
	}
}

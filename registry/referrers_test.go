package registry

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A tag that is not ours stays what it is, and is no empty list.
func TestFallbackTagTaken(t *testing.T) {
	s := start(t, registrytest.Options{})
	d := s.PushImage("py:1", large())
	taken := s.PushImage("py:"+fallbackTag(d.Digest), image(noise(100)))
	s.Use(registrytest.NoReferrers)
	im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
	_, err := AttachSOCI(t.Context(), im, someZTOCs(t, im), sociOptions(t))
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), fallbackTag(d.Digest)) {
		t.Errorf("attach: %v", err)
	}
	if _, err := im.src.(referring).referrers(t.Context(), d.Digest, sociV1); !errors.Is(err, ErrUnsupported) {
		t.Errorf("list: %v", err)
	}
	if now := mustOpen(t, s.Host()+"/py:"+fallbackTag(d.Digest), anonymous(t)); now.Desc.Digest != taken.Digest {
		t.Error("the tag was written over")
	}
}

// What others wrote into the list stays byte by byte.
func TestWithReferrer(t *testing.T) {
	entry := `{"digest":"sha256:` + strings.Repeat("a", 64) + `", "size":1,  "of":{"the":"future"}}`
	list := []byte(`{"schemaVersion":2,"later":[1, 2],"manifests":[` + entry + `]}`)
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 2}
	got, listed, err := withReferrer(list, d)
	if err != nil || listed || !bytes.Contains(got, []byte(entry)) || !bytes.Contains(got, []byte(`"later":[1, 2]`)) {
		t.Errorf("%s, %v, %v", got, listed, err)
	}
	if have, err := parseReferrers(got); err != nil || len(have) != 2 || have[1].Digest != d.Digest {
		t.Errorf("%v, %v", have, err)
	}
	if again, listed, err := withReferrer(got, d); again != nil || !listed || err != nil {
		t.Errorf("once more: %s, %v, %v", again, listed, err)
	}
	if first, _, err := withReferrer(nil, d); err != nil || !bytes.Contains(first, []byte(ocispec.MediaTypeImageIndex)) {
		t.Errorf("the first: %s, %v", first, err)
	}
	for _, broken := range []string{"", "[]", `{"manifests":3}`} {
		if _, _, err := withReferrer([]byte(broken), d); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%q: %v", broken, err)
		}
	}
}

// Whatever a registry without the list answers, the tag is looked at.
func TestNoReferrersAnswers(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented} {
		s := start(t, registrytest.Options{})
		d := s.PushImage("py:1", image(noise(100)))
		s.PushIndex("py:"+fallbackTag(d.Digest), ocispec.Descriptor{Digest: digest.FromString("x"), ArtifactType: "a"})
		s.Use(registrytest.On(func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/referrers/") }, registrytest.Status(code, 1000)))
		im := mustOpen(t, s.Host()+"/py:1", anonymous(t))
		if list, err := im.src.(referring).referrers(t.Context(), d.Digest, "a"); err != nil || len(list) != 1 {
			t.Errorf("%d: %v, %v", code, list, err)
		}
	}
}

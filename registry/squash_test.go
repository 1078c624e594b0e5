package registry

import (
	"bytes"
	"maps"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A squashed image has one layer, and what the base says of itself but for that.
func TestPushSquashed(t *testing.T) {
	for _, manifestType := range []string{ocispec.MediaTypeImageManifest, dockerManifest} {
		s := start(t, registrytest.Options{})
		old := s.PutBlob("base", []byte("old"))
		diff := digest.FromString("1").String()
		config := s.PutBlob("base", []byte(`{"x-zeta":{"b":1,"a":1e2},"architecture":"amd64","os":"linux","config":{"Env":["A=<b>"],"x-inner":[1]},"history":[{"created_by":"one"},{"created_by":"two","empty_layer":true}],"rootfs":{"type":"layers","diff_ids":["`+diff+`"]}}`))
		layerType, annotations := ocispec.MediaTypeImageLayerGzip, `"annotations":{"keep":"me","`+annotationBaseName+`":"a","`+annotationBaseDigest+`":"b"},`
		if manifestType == dockerManifest {
			layerType, annotations = dockerLayerGzip, ""
		}
		s.PutManifest("base", "1", manifestType, []byte(`{"schemaVersion":2,`+annotations+`"mediaType":"`+manifestType+`","config":{"mediaType":"`+configType(manifestType)+
			`","size":`+toJSON(t, config.Size)+`,"digest":"`+config.Digest.String()+`"},"layers":[{"mediaType":"`+layerType+`","size":3,"digest":"`+old.Digest.String()+`"}],"x-top":1}`))
		base := mustOpen(t, s.Host()+"/base:1", anonymous(t))
		o := pushOptions(t, []byte("new"))
		o.Squash = true
		s.Reset()
		im := mustPush(t, base, s.Host()+"/flat:1", o)
		if n := s.Total("", "/flat/blobs/"+old.Digest.String()).Requests; n != 0 {
			t.Errorf("%d requests for the base's layer", n)
		}
		if len(im.Manifest.Layers) != 1 || im.Manifest.Layers[0].Digest != digest.FromString("new") || im.Desc.MediaType != manifestType {
			t.Errorf("manifest %s", im.RawManifest)
		}
		c := im.Config
		if len(c.RootFS.DiffIDs) != 1 || c.RootFS.DiffIDs[0] != digest.FromString("diff") || len(c.History) != 1 || c.History[0].EmptyLayer || c.History[0].Comment != o.Message {
			t.Errorf("config %s", im.RawConfig)
		}
		for _, want := range []string{`"x-zeta":{"b":1,"a":1e2}`, `"x-inner":[1]`, `"A=<b>"`, `"Cmd":["x"]`} {
			if !bytes.Contains(im.RawConfig, []byte(want)) {
				t.Errorf("config lacks %s: %s", want, im.RawConfig)
			}
		}
		if want := map[string]string{"keep": "me"}; manifestType != dockerManifest && !maps.Equal(im.Manifest.Annotations, want) {
			t.Errorf("annotations %v", im.Manifest.Annotations)
		}
		if len(base.Manifest.Layers) != 1 || len(base.Config.History) != 2 {
			t.Error("the base was changed")
		}
	}
}

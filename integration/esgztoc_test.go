package integration

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// TestExternalTOC: an image whose TOCs lie in another one is read lazily by its tag, and
// whole when the other one is not there.
func TestExternalTOC(t *testing.T) {
	tar := layertest.Tar("dir d\nrandom d/big 6MiB\nfile d/f \"text\"")
	c := externaltoc.NewGzipCompressionWithLevel(nil, 6).(*externaltoc.GzipCompression)
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))), estargz.WithCompression(c))
	if err != nil {
		t.Fatal(err)
	}
	defer built.Close()
	blob, err := io.ReadAll(built)
	if err != nil {
		t.Fatal(err)
	}
	var toc bytes.Buffer
	if _, err := c.WriteTOCTo(&toc); err != nil {
		t.Fatal(err)
	}
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	lay := registrytest.Layer{Blob: blob, DiffID: built.DiffID()}
	lay.Desc.Annotations = map[string]string{estargz.TOCJSONDigestAnnotation: built.TOCDigest().String()}
	s.PushImage("small:v1", registrytest.Image{Layers: []registrytest.Layer{lay}})
	s.PushImage("alone:v1", registrytest.Image{Layers: []registrytest.Layer{lay}})
	layers := ocispec.Descriptor{Annotations: map[string]string{"containerd.io/snapshot/stargz/layer.digest": s.PutBlob("small", blob).Digest.String()}}
	s.PushImage("small:v1-esgztoc", registrytest.Image{Layers: []registrytest.Layer{{Blob: toc.Bytes(), Desc: layers}}})

	for name, lazy := range map[string]bool{"small": true, "alone": false} {
		s.Reset()
		if got := newHost(t).run("cat", s.Host()+"/"+name+":v1", "d/f"); got != "text" {
			t.Errorf("%s: d/f is %q", name, got)
		}
		if n := s.Total("GET", "/blobs/").Out; lazy != (n < 2<<20) {
			t.Errorf("%s: %d bytes of blobs fetched", name, n)
		}
	}
	if r := newHost(t).try("-v", "cat", s.Host()+"/alone:v1", "d/f"); !strings.Contains(r.stderr, "another image") {
		t.Errorf("no word about the TOC:\n%s", r.stderr)
	}
}

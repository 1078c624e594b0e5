package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// externalTOC is an eStargz layer and the TOC that goes into another image, by the
// format's reference implementation.
func externalTOC(t *testing.T, tar []byte) (blob []byte, desc ocispec.Descriptor, diffID digest.Digest, toc []byte) {
	t.Helper()
	c := externaltoc.NewGzipCompressionWithLevel(nil, 6).(*externaltoc.GzipCompression)
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))),
		estargz.WithCompression(c), estargz.WithChunkSize(64<<10), estargz.WithParallelism(1))
	if err != nil {
		t.Fatal(err)
	}
	defer built.Close()
	if blob, err = io.ReadAll(built); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if _, err := c.WriteTOCTo(&packed); err != nil {
		t.Fatal(err)
	}
	desc = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob)),
		Annotations: map[string]string{tocAnnotation: built.TOCDigest().String()},
	}
	return blob, desc, built.DiffID(), packed.Bytes()
}

// TestExternalTOC: a layer whose TOC lies in another image is lazy when that can be had,
// and says why when it cannot.
func TestExternalTOC(t *testing.T) {
	b, desc, diffID, toc := externalTOC(t, layertest.Tar("dir d\nfile d/f \"text\"\nrandom r 3MiB"))
	from := func(b []byte, err error) func(context.Context) (io.ReadCloser, error) {
		return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), err }
	}
	for name, tc := range map[string]struct {
		fetch func(context.Context) (io.ReadCloser, error)
		lazy  bool
		why   string
	}{
		"there":      {from(toc, nil), true, ""},
		"not wanted": {nil, false, "another image"},
		"not there":  {from(nil, errors.New("no such image")), false, "no such image"},
	} {
		l, err := layer.Open(t.Context(), desc, &blob{b: b}, newStore(t), layer.Options{DiffID: diffID, ExternalTOC: tc.fetch})
		if err != nil {
			t.Fatal(err)
		}
		if st := l.Status(); st.Lazy != tc.lazy || !strings.Contains(st.Why, tc.why) {
			t.Errorf("%s: %+v", name, st)
		}
		wantFile(t, l)
		closing(t, l)
	}
	toc[len(toc)/2] ^= 1
	_, err := layer.Open(t.Context(), desc, &blob{b: b}, newStore(t), layer.Options{ExternalTOC: from(toc, nil)})
	if !errors.Is(err, layer.ErrDigest) {
		t.Errorf("damaged: %v", err)
	}
}

// TestWhole: what a format with a TOC has for itself is hidden in its tar, too.
func TestWhole(t *testing.T) {
	for algorithm := range hasTOC {
		b, e := encode(t, layertest.Tar("dir d\nfile d/f \"text\"\nrandom r 1MiB"), layer.Compression{Algorithm: algorithm, Prioritized: []string{"d/f"}})
		l, err := layer.Open(t.Context(), e.Descriptor, &blob{b: b}, newStore(t), layer.Options{DiffID: e.DiffID, Whole: true})
		if err != nil {
			t.Fatal(err)
		}
		if st := l.Status(); st.Lazy || st.Index != "tar" || l.Len() != 4 {
			t.Errorf("%s: %d entries, %+v", algorithm, l.Len(), st)
		}
		wantFile(t, l)
		closing(t, l)
	}
}

package layer_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/suite"
	"github.com/layerfs/layerfs/union/layer/ztoc"
)

// zTOC makes the zTOC of a gzip blob, with short spans; nil for what none can describe.
func zTOC(t *testing.T, b []byte, span int64) []byte {
	t.Helper()
	z, err := ztoc.Build(bytes.NewReader(b), ztoc.BuildOptions{Span: span, Tool: "test"})
	if errors.Is(err, ztoc.ErrUnsupported) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return z.Encode()
}

func zTOCFrom(b []byte) *layer.ZTOC {
	return &layer.ZTOC{Digest: digest.FromBytes(b), Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// TestSuiteSOCI is the suite on gzip layers that are read by their zTOC alone.
func TestSuiteSOCI(t *testing.T) {
	described := 0
	suite.Run(t, func(t *testing.T, b []byte, desc ocispec.Descriptor, diffID digest.Digest) suite.Layer {
		var o layer.Options
		if len(desc.Annotations) == 0 && bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
			if z := zTOC(t, b, 50_000); z != nil {
				o.ZTOC = zTOCFrom(z)
			}
		}
		r := &blob{b: b}
		l, err := layer.Open(t.Context(), desc, r, newStore(t), o)
		if err != nil {
			t.Fatal(err)
		}
		if st := l.Status(); o.ZTOC != nil {
			described++
			if r.requests.Load() != 0 || st.Index != "soci" || !st.Lazy {
				t.Errorf("%d requests to open it, %+v", r.requests.Load(), st)
			}
		}
		return l
	})
	if described < 20 {
		t.Errorf("only %d cases were read by their zTOC", described)
	}
}

func openSOCI(t *testing.T, z []byte) (*layer.Layer, *blob, ocispec.Descriptor, error) {
	t.Helper()
	b, desc, _ := layertest.Blob(sectionsText, "gzip", nil)
	if z == nil {
		z = zTOC(t, b, 1<<20)
	}
	r, s := &blob{b: b}, newStore(t)
	l, err := layer.Open(t.Context(), desc, r, s, layer.Options{ZTOC: zTOCFrom(z)})
	return l, r, desc, err
}

func TestSOCI(t *testing.T) {
	l, r, desc, err := openSOCI(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, l)
	wantContent(t, l, "d/f", 100)
	if st := l.Status(); st.Fetched > 2<<20 || st.Requests != 1 {
		t.Errorf("for a small file: %+v", st)
	}
	r.b = bytes.Clone(r.b)
	for i := range 17 {
		r.b[len(r.b)*i/17] ^= 1
	}
	failed := 0
	for _, name := range []string{"d/a", "d/b", "e"} {
		if _, err := readFile(t.Context(), l, name, 1<<20); errors.Is(err, layer.ErrDigest) {
			failed++
		}
	}
	if failed != 3 || l.Status().Total != desc.Size {
		t.Errorf("of three files in a damaged blob %d failed", failed)
	}
}

// TestSOCIPadding reads a layer by the zTOC that soci-snapshotter made of it, which has a
// checkpoint behind the end of the tar.
func TestSOCIPadding(t *testing.T) {
	packed, err := os.ReadFile("ztoc/testdata/soci.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	z, err := os.ReadFile("ztoc/testdata/soci.ztoc.gz")
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(packed), Size: int64(len(packed))}
	l, err := layer.Open(t.Context(), desc, &blob{b: packed}, newStore(t), layer.Options{ZTOC: zTOCFrom(gunzip(t, z))})
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, l)
	if st := l.Status(); st.Index != "soci" || !st.Lazy {
		t.Fatalf("%+v", st)
	}
	files := 0
	for r := tar.NewReader(bytes.NewReader(gunzip(t, packed))); ; files++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		want, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg || h.Size == 0 {
			continue
		}
		if got, err := readFile(t.Context(), l, strings.TrimPrefix(h.Name, "./"), int(h.Size)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", h.Name, len(got), err)
		}
	}
	if files < 10 {
		t.Errorf("%d entries", files)
	}
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err == nil {
		b, err = io.ReadAll(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSOCIUnusable: a zTOC that is damaged, or another layer's, costs the laziness and no more.
func TestSOCIUnusable(t *testing.T) {
	other, _, _ := layertest.Blob("dir d\ntext d/x 3MiB", "gzip", nil)
	for name, z := range map[string][]byte{"nothing": {}, "garbage": bytes.Repeat([]byte("garbage "), 1000), "of another layer": zTOC(t, other, 1<<20)} {
		l, _, _, err := openSOCI(t, z)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if st := l.Status(); st.Lazy || st.Index != "tar" || st.Why == "" {
			t.Errorf("%s: %+v", name, st)
		}
		wantContent(t, l, "d/f", 100)
		closing(t, l)
	}
}

// TestSOCIKept: what one zTOC vouched for is not taken for what nobody or another one
// vouches for, though it is in the cache.
func TestSOCIKept(t *testing.T) {
	b, desc, _ := layertest.Blob(sectionsText, "gzip", nil)
	dir := t.TempDir()
	z1, z2 := zTOC(t, b, 1<<20), zTOC(t, b, 2<<20)
	for _, step := range []struct {
		z        []byte
		index    string
		requests int64 // to open it and to read a file
	}{{z1, "soci", 1}, {z1, "soci", 0}, {z2, "soci", 1}, {nil, "tar", 1}, {z1, "tar", 0}} {
		r, s := &blob{b: b}, openStore(t, dir)
		var o layer.Options
		if step.z != nil {
			o.ZTOC = zTOCFrom(step.z)
		}
		l, err := layer.Open(t.Context(), desc, r, s, o)
		if err != nil {
			t.Fatal(err)
		}
		wantContent(t, l, "d/f", 100)
		if st := l.Status(); st.Index != step.index || r.requests.Load() != step.requests {
			t.Errorf("%+v: %d requests, %+v", step.requests, r.requests.Load(), st)
		}
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

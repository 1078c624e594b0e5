package layer_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

func readTarOf(t *testing.T, b []byte, d ocispec.Descriptor, diffID digest.Digest) ([]byte, error) {
	t.Helper()
	r, err := layer.Tar(t.Context(), d, &blob{b: b}, diffID)
	if err != nil {
		return nil, err
	}
	defer closing(t, r)
	return io.ReadAll(r)
}

// TestTarOf: what goes in comes out, of every form, and the form is known.
func TestTarOf(t *testing.T) {
	tar := layertest.Tar(faultText)
	for _, algorithm := range algorithms {
		b, e := encode(t, tar, layer.Compression{Algorithm: algorithm})
		got, err := readTarOf(t, b, e.Descriptor, e.DiffID)
		if err != nil || digest.FromBytes(got) != e.DiffID {
			t.Errorf("%s: %d bytes, %v", algorithm, len(got), err)
		}
		if form, err := layer.FormOf(t.Context(), e.Descriptor, &blob{b: b}); err != nil || form != algorithm {
			t.Errorf("%s is taken for %q, %v", algorithm, form, err)
		}
		bare := e.Descriptor
		bare.Annotations = nil
		if form, err := layer.FormOf(t.Context(), bare, &blob{b: b}); err != nil || form == "estargz" {
			t.Errorf("%s without annotations is taken for %q, %v", algorithm, form, err)
		}
		stripped, err := io.ReadAll(layer.WithoutTOC(bytes.NewReader(got)))
		if err != nil || !bytes.Equal(stripped, tar) {
			t.Errorf("%s: without its TOC the tar has %d bytes, want %d: %v", algorithm, len(stripped), len(tar), err)
		}
	}
}

func TestTarOfDamaged(t *testing.T) {
	tar := layertest.Tar(faultText)
	for _, algorithm := range algorithms {
		b, e := encode(t, tar, layer.Compression{Algorithm: algorithm})
		for _, at := range []int{0, 5, len(b) / 2, len(b) - 1} {
			bad := bytes.Clone(b)
			bad[at] ^= 0x40
			if got, err := readTarOf(t, bad, e.Descriptor, e.DiffID); !errors.Is(err, layer.ErrDigest) {
				t.Errorf("%s, byte %d: %d bytes, %v", algorithm, at, len(got), err)
			}
		}
		if _, err := readTarOf(t, b, e.Descriptor, digest.FromString("another")); !errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: with another diff ID: %v", algorithm, err)
		}
		short := e.Descriptor
		cut := b[:len(b)/2]
		short.Digest, short.Size = digest.FromBytes(cut), int64(len(cut))
		if _, err := readTarOf(t, cut, short, e.DiffID); err == nil {
			t.Errorf("%s: half a blob gives a tar", algorithm)
		}
	}
	text := []byte("this is no layer")
	d := ocispec.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}
	if _, err := readTarOf(t, text, d, ""); !errors.Is(err, layer.ErrUnsupported) {
		t.Errorf("text: %v", err)
	}
	d.MediaType = ocispec.MediaTypeImageLayerGzip + "+encrypted"
	if _, err := readTarOf(t, text, d, ""); !errors.Is(err, layer.ErrUnsupported) {
		t.Errorf("encrypted: %v", err)
	}
}

// TestWithoutTOC: only regular files in the root go, with all that stands in front of them.
func TestWithoutTOC(t *testing.T) {
	in := "file a \"a\"\nfile .no.prefetch.landmark \"\\x0f\" user.k=\"v\"\ndir stargz.index.json\nfile d/.prefetch.landmark \"x\"\nrandom b 1MiB\nfile .prefetch.landmark \"\\x0f\"\nfile stargz.index.json \"{}\""
	want := "file a \"a\"\ndir stargz.index.json\nfile d/.prefetch.landmark \"x\"\nrandom b 1MiB"
	got, err := io.ReadAll(layer.WithoutTOC(bytes.NewReader(layertest.Tar(in))))
	if err != nil || !bytes.Equal(got, layertest.Tar(want)) {
		t.Errorf("%d bytes, want %d: %v", len(got), len(layertest.Tar(want)), err)
	}
	mine := errors.New("mine")
	if _, err := io.ReadAll(layer.WithoutTOC(io.MultiReader(bytes.NewReader(layertest.Tar(in)), failing{mine}))); !errors.Is(err, mine) {
		t.Errorf("an error behind the archive: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// FuzzWithoutTOC: no archive makes it panic or hang, and what it changes is only what it takes out.
func FuzzWithoutTOC(f *testing.F) {
	f.Add(layertest.Tar(faultText))
	f.Add(layertest.Tar("file stargz.index.json \"{}\"\nfile x \"y\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 { // more teaches nothing
			t.Skip()
		}
		got, err := io.ReadAll(layer.WithoutTOC(bytes.NewReader(b)))
		if err == nil && len(got) > len(b) {
			t.Fatalf("%d bytes became %d", len(b), len(got))
		}
		if err == nil && !bytes.Contains(b, []byte("stargz.index.json")) && !bytes.Contains(b, []byte("prefetch.landmark")) && !bytes.Equal(got, b) {
			t.Fatal("the archive has changed")
		}
	})
}

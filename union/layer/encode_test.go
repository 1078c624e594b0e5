package layer_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/suite"
)

var algorithms = []string{"gzip", "zstd", "estargz", "zstd:chunked", "none"}

// hasTOC tells of an algorithm whether its layers are read lazily.
var hasTOC = map[string]bool{"estargz": true, "zstd:chunked": true}

// TestSuiteEncoded is the suite on what Encode makes of the archives.
func TestSuiteEncoded(t *testing.T) {
	s := newStore(t)
	for _, algorithm := range algorithms {
		t.Run(algorithm, func(t *testing.T) {
			suite.Run(t, func(t *testing.T, tar []byte, _ ocispec.Descriptor, _ digest.Digest) suite.Layer {
				b, e := encode(t, tar, layer.Compression{Algorithm: algorithm})
				l, err := layer.Open(t.Context(), e.Descriptor, &blob{b: b}, s, layer.Options{DiffID: e.DiffID})
				if err != nil {
					t.Fatal(err)
				}
				if lazy := l.Status().Lazy; lazy != hasTOC[algorithm] {
					t.Errorf("lazy is %v: %s", lazy, l.Status().Why)
				}
				return l
			}, "tar")
		})
	}
}

// encode skips what the format cannot hold, and checks what Encode says of its output.
func encode(t *testing.T, tar []byte, c layer.Compression) ([]byte, layer.Encoded) {
	t.Helper()
	var b bytes.Buffer
	e, err := layer.Encode(t.Context(), &b, bytes.NewReader(tar), c)
	if errors.Is(err, layer.ErrUnsupported) && hasTOC[c.Algorithm] {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if e.Descriptor.Digest != digest.FromBytes(b.Bytes()) || e.Descriptor.Size != int64(b.Len()) {
		t.Errorf("descriptor %+v is not that of the %d bytes", e.Descriptor, b.Len())
	}
	inside := unpack(t, b.Bytes(), e.Descriptor.MediaType)
	if e.DiffID != digest.FromBytes(inside) || e.TarSize != int64(len(inside)) {
		t.Errorf("%s: diff ID %s of %d bytes, want %s of %d", c.Algorithm, e.DiffID, e.TarSize, digest.FromBytes(inside), len(inside))
	}
	if c.Algorithm != "estargz" && c.Prioritized == nil && !bytes.Equal(inside, tar) {
		t.Errorf("%s: the tar has changed", c.Algorithm)
	}
	return b.Bytes(), e
}

// unpack decodes with other code than the package's own.
func unpack(t *testing.T, b []byte, mediaType string) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(b)
	var err error
	switch mediaType {
	case ocispec.MediaTypeImageLayerGzip:
		r, err = gzip.NewReader(r)
	case ocispec.MediaTypeImageLayerZstd:
		r, err = zstd.NewReader(r)
	case ocispec.MediaTypeImageLayer:
	default:
		t.Fatalf("media type %s", mediaType)
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const encodeText = `
	dir usr 0755 1:2
	file usr/a "some text" 04755 user.x="\x00\xff"
	random usr/big 9MiB
	zero usr/zero 5MiB
	link usr/b usr/a
	symlink s usr/big
	char c 1:3
	fifo p
	file empty ""
	whiteout gone
	random last 100KiB`

// TestEncodeStable: the bytes depend on the tar and the level, not on cores or the size of reads.
func TestEncodeStable(t *testing.T) {
	tar := layertest.Tar(encodeText)
	for _, algorithm := range algorithms {
		for _, level := range []int{0, 1} {
			if algorithm == "none" && level > 0 {
				continue
			}
			var want digest.Digest
			for _, cores := range []int{1, 2, 7} {
				var r io.Reader = bytes.NewReader(tar)
				if cores == 2 {
					r = &pieces{r: r}
				}
				e, err := layer.EncodeWith(t.Context(), io.Discard, r, layer.Compression{Algorithm: algorithm, Level: level}, cores)
				if err != nil {
					t.Fatal(err)
				}
				if want == "" {
					want = e.Descriptor.Digest
				}
				if e.Descriptor.Digest != want {
					t.Errorf("%s level %d on %d cores: %s, on one %s", algorithm, level, cores, e.Descriptor.Digest, want)
				}
			}
		}
	}
}

// pieces reads odd sizes.
type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	p.n = (p.n*7 + 13) % 70_001
	return p.r.Read(b[:min(len(b), p.n+1)])
}

// TestEncodeEStargzLibrary reads our layers with the format's reference implementation.
func TestEncodeEStargzLibrary(t *testing.T) {
	b, e := encode(t, layertest.Tar(encodeText), layer.Compression{Algorithm: "estargz"})
	r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))))
	if err != nil {
		t.Fatal(err)
	}
	toc := digest.Digest(e.Descriptor.Annotations[estargz.TOCJSONDigestAnnotation])
	v, err := r.VerifyTOC(toc)
	if err != nil {
		t.Fatal(err)
	}
	if size := e.Descriptor.Annotations[estargz.StoreUncompressedSizeAnnotation]; size != strconv.FormatInt(e.TarSize, 10) {
		t.Errorf("uncompressed size %s, want %d", size, e.TarSize)
	}
	l, err := layer.Open(t.Context(), e.Descriptor, &blob{b: b}, newStore(t), layer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, l)
	for _, name := range []string{"usr/a", "usr/big", "usr/zero", "usr/b", "empty", "last"} {
		if err := sameFile(t.Context(), l, r, v, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// sameFile compares what the library and l say is in a file, chunk by chunk.
func sameFile(ctx context.Context, l *layer.Layer, r *estargz.Reader, v estargz.TOCEntryVerifier, name string) error {
	id, ok := lookup(l, name)
	if !ok {
		return errors.New("not there")
	}
	f, err := r.OpenFile(name)
	if err != nil {
		return err
	}
	if f.Size() != l.Entry(id).Size {
		return fmt.Errorf("size %d, the library says %d", l.Entry(id).Size, f.Size())
	}
	for off := int64(0); off < f.Size(); {
		c, ok := r.ChunkEntryForOffset(name, off)
		if !ok {
			return fmt.Errorf("no chunk at %d", off)
		}
		theirs, ours := make([]byte, c.ChunkSize), make([]byte, c.ChunkSize)
		if _, err := f.ReadAt(theirs, off); err != nil && err != io.EOF {
			return err
		}
		if _, err := l.ReadAt(ctx, id, ours, off); err != nil && err != io.EOF {
			return err
		}
		cv, err := v.Verifier(c)
		if err != nil {
			return err
		}
		if _, err := cv.Write(theirs); err != nil || !cv.Verified() || !bytes.Equal(theirs, ours) {
			return fmt.Errorf("chunk at %d differs (%v)", off, err)
		}
		off += c.ChunkSize
	}
	return nil
}

func TestEncodeRefuses(t *testing.T) {
	good := layertest.Tar(`file a "x"`)
	for _, tc := range []struct {
		name string
		c    layer.Compression
		tar  []byte
		want error
	}{
		{"algorithm", layer.Compression{Algorithm: "lzma"}, good, layer.ErrUnsupported},
		{"level", layer.Compression{Algorithm: "gzip", Level: 10}, good, layer.ErrUnsupported},
		{"negative level", layer.Compression{Algorithm: "zstd", Level: -1}, good, layer.ErrUnsupported},
		{"sparse", layer.Compression{Algorithm: "estargz"}, layertest.Tar(`sparse a 1MiB 5:"x"`), layer.ErrUnsupported},
		{"no UTF-8", layer.Compression{Algorithm: "estargz"}, layertest.Tar(`file "\xff" ""`), layer.ErrUnsupported},
		{"sparse chunked", layer.Compression{Algorithm: "zstd:chunked"}, layertest.Tar(`sparse a 1MiB 5:"x"`), layer.ErrUnsupported},
		{"cut short", layer.Compression{Algorithm: "estargz"}, layertest.Tar(`random a 2MiB`)[:1<<20], layer.ErrFormat},
	} {
		if _, err := layer.Encode(t.Context(), io.Discard, bytes.NewReader(tc.tar), tc.c); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

// TestEncodeErrors: the error of the source, of the destination and of the context comes back as it is.
func TestEncodeErrors(t *testing.T) {
	tar := layertest.Tar(encodeText)
	for _, algorithm := range algorithms {
		c := layer.Compression{Algorithm: algorithm}
		r := io.MultiReader(bytes.NewReader(tar[:6<<20]), broken{})
		if _, err := layer.Encode(t.Context(), io.Discard, r, c); !errors.Is(err, errSource) {
			t.Errorf("%s: broken source: %v", algorithm, err)
		}
		if _, err := layer.Encode(t.Context(), &full{left: 1 << 20}, bytes.NewReader(tar), c); !errors.Is(err, errFull) {
			t.Errorf("%s: full destination: %v", algorithm, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := layer.Encode(ctx, io.Discard, bytes.NewReader(tar), c); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: canceled: %v", algorithm, err)
		}
	}
}

var errFull = errors.New("destination is full")

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A forged image is an OCI layout whose every part a test can make a lie.
type forged struct {
	t        *testing.T
	dir      string
	manifest ocispec.Manifest
	diffIDs  []digest.Digest
	config   []byte // nil: the right one
	raw      []byte // in place of the manifest; nil: the right one
	index    *ocispec.Index
}

func forge(t *testing.T) *forged {
	t.Helper()
	f := &forged{t: t, dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(f.dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	return f
}

// blob stores bytes under their digest.
func (f *forged) blob(mediaType string, b []byte) ocispec.Descriptor {
	f.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	f.write("blobs/sha256/"+d.Digest.Encoded(), b)
	return d
}

func (f *forged) write(name string, b []byte) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), b, 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *forged) json(mediaType string, v any) ocispec.Descriptor {
	f.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.blob(mediaType, b)
}

// add appends a layer; diffID "" is left out of the config.
func (f *forged) add(mediaType string, blob []byte, diffID digest.Digest) *ocispec.Descriptor {
	f.t.Helper()
	f.manifest.Layers = append(f.manifest.Layers, f.blob(mediaType, blob))
	if diffID != "" {
		f.diffIDs = append(f.diffIDs, diffID)
	}
	return &f.manifest.Layers[len(f.manifest.Layers)-1]
}

// text appends a layer made of a text archive.
func (f *forged) text(archive, format string) { f.tar(layertest.Tar(archive), format) }

// tar appends a layer made of the bytes of a tar.
func (f *forged) tar(tar []byte, format string) {
	f.t.Helper()
	mediaType, blob := ocispec.MediaTypeImageLayer, tar
	switch format {
	case "gzip":
		mediaType, blob = ocispec.MediaTypeImageLayerGzip, zipped(f.t, bytes.NewReader(tar))
	case "zstd":
		mediaType, blob = ocispec.MediaTypeImageLayerZstd, zstandard(f.t, bytes.NewReader(tar))
	}
	f.add(mediaType, blob, digest.FromBytes(tar))
}

// ref finishes the image and names it.
func (f *forged) ref() string {
	f.t.Helper()
	if f.config == nil {
		b, err := json.Marshal(ocispec.Image{
			Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
			RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: f.diffIDs},
		})
		if err != nil {
			f.t.Fatal(err)
		}
		f.config = b
	}
	f.manifest.Versioned, f.manifest.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageManifest
	if f.manifest.Config.Digest == "" {
		f.manifest.Config = f.blob(ocispec.MediaTypeImageConfig, f.config)
	}
	if f.index == nil {
		d := f.json(ocispec.MediaTypeImageManifest, f.manifest)
		if f.raw != nil {
			d = f.blob(ocispec.MediaTypeImageManifest, f.raw)
		}
		f.index = &ocispec.Index{Manifests: []ocispec.Descriptor{d}}
	}
	f.index.Versioned, f.index.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageIndex
	b, err := json.Marshal(f.index)
	if err != nil {
		f.t.Fatal(err)
	}
	f.write("index.json", b)
	f.write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return "oci:" + f.dir
}

func zipped(t *testing.T, r io.Reader) []byte {
	t.Helper()
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed) // the level is valid
	return squeeze(t, &b, z, r)
}

func zstandard(t *testing.T, r io.Reader, o ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, append([]zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest)}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	return squeeze(t, &b, z, r)
}

func squeeze(t *testing.T, b *bytes.Buffer, z io.WriteCloser, r io.Reader) []byte {
	t.Helper()
	_, err := io.Copy(z, r)
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// nothing is n zeros.
func nothing(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// head is a tar header in octal, whatever its fields say. edit may change it before the checksum is made.
func head(typ byte, name, size string, edit ...func(h []byte)) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:136], size)
	copy(h[136:], "00000000000\x00        ")
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	for _, e := range edit {
		e(h)
	}
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// octal is a size as a tar header has it.
func octal(n int64) string { return fmt.Sprintf("%011o", n) }

// paxHead is a PAX header with one record whose value may be false.
func paxHead(records ...string) []byte {
	var body []byte
	for _, r := range records {
		n := len(r) + 3 // blank, newline, a digit
		for len(fmt.Sprint(n))+len(r)+2 != n {
			n = len(fmt.Sprint(n)) + len(r) + 2
		}
		body = fmt.Appendf(body, "%d %s\n", n, r)
	}
	return padded(append(head('x', "pax", octal(int64(len(body)))), body...))
}

func padded(b []byte) []byte { return append(b, make([]byte, -len(b)&511)...) }

// join makes one tar of its parts, without an end.
func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func ended(parts ...[]byte) []byte { return append(join(parts...), make([]byte, 1024)...) }

// content is a regular file in a tar.
func content(name, data string) []byte {
	return padded(append(head('0', name, octal(int64(len(data)))), data...))
}

// lyingTOC appends an eStargz layer whose payload is one member with the words of data and whose TOC is what the caller says.
func (f *forged) lyingTOC(data string, toc io.Reader, size int64) *ocispec.Descriptor {
	f.t.Helper()
	payload := zipped(f.t, bytes.NewReader([]byte(data)))
	sum := digest.SHA256.Digester()
	member := zipped(f.t, io.MultiReader(
		bytes.NewReader(head('0', "stargz.index.json", octal(size))), io.TeeReader(toc, sum.Hash()), nothing(-size&511+1024)))
	blob := join(payload, member, stargzFooter(int64(len(payload))))
	d := f.add(ocispec.MediaTypeImageLayerGzip, blob, digest.FromString("whatever"))
	d.Annotations = map[string]string{"containerd.io/snapshot/stargz/toc.digest": sum.Digest().String()}
	return d
}

// toc is lyingTOC for entries in JSON.
func (f *forged) toc(entries string) *ocispec.Descriptor {
	f.t.Helper()
	b := []byte(`{"version":1,"entries":[` + entries + `]}`)
	return f.lyingTOC("0123456789", bytes.NewReader(b), int64(len(b)))
}

// stargzFooter is the 51 bytes at the end of an eStargz blob (eStargz specification, "Footer").
func stargzFooter(off int64) []byte {
	b := []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, 'S', 'G', 22, 0}
	b = fmt.Appendf(b, "%016xSTARGZ", off)
	b = append(b, 1, 0, 0, 0xff, 0xff)
	return binary.LittleEndian.AppendUint64(b, 0)
}

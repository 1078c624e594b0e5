package layer_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// A chunkedBlob is a zstd:chunked layer as containers/storage sees it.
type chunkedBlob struct {
	t           *testing.T
	b           []byte
	annotations map[string]string
}

// part unpacks what the annotation called key is about.
func (c *chunkedBlob) part(key string) (packed, b []byte) {
	c.t.Helper()
	var off, n, size int
	if _, err := fmt.Sscanf(c.annotations[containers+key], "%d:%d:%d", &off, &n, &size); err != nil {
		c.t.Fatal(err)
	}
	packed = c.b[off : off+n]
	if b = c.unpack(packed); len(b) != size {
		c.t.Fatalf("%s: %d bytes, want %d", key, len(b), size)
	}
	frame := append([]byte{0x50, 0x2a, 0x4d, 0x18}, binary.LittleEndian.AppendUint32(nil, uint32(n))...)
	if !bytes.Equal(c.b[off-8:off], frame) {
		c.t.Fatalf("%s: behind % x, want % x", key, c.b[off-8:off], frame)
	}
	return packed, b
}

func (c *chunkedBlob) unpack(b []byte) []byte {
	c.t.Helper()
	z, err := zstd.NewReader(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	defer z.Close()
	out, err := z.DecodeAll(b, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// A chunkedEntry is what the TOC says of content.
type chunkedEntry struct {
	Type, Name, Digest, ChunkDigest, ChunkType      string
	Size, Offset, EndOffset, ChunkSize, ChunkOffset int64
}

// TestEncodeChunked: what TOC, annotations, footer and tar-split say of a layer is so.
func TestEncodeChunked(t *testing.T) {
	tar := append(layertest.Tar(encodeText), bytes.Repeat([]byte("trailing"), 200_000)...)
	b, e := encode(t, tar, layer.Compression{Algorithm: "zstd:chunked"})
	c := &chunkedBlob{t, b, e.Descriptor.Annotations}
	packed, text := c.part("manifest-position")
	if got := c.annotations[containers+"manifest-checksum"]; got != digest.FromBytes(packed).String() {
		t.Errorf("checksum %s is not that of the manifest", got)
	}
	var toc struct {
		Version        int
		Entries        []chunkedEntry
		TarSplitDigest digest.Digest
	}
	if err := json.Unmarshal(text, &toc); err != nil || toc.Version != 1 {
		t.Fatalf("version %d, %v", toc.Version, err)
	}
	files := c.files(toc.Entries)
	c.footer()

	packed, split := c.part("tarsplit-position")
	if digest.FromBytes(packed) != toc.TarSplitDigest {
		t.Error("the TOC's digest is not that of tar-split")
	}
	var again bytes.Buffer
	if err := asm.WriteOutputTarStream(files, storage.NewJSONUnpacker(bytes.NewReader(split)), &again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bytes(), tar) {
		t.Errorf("tar-split makes a tar of %d bytes, which is not that of %d", again.Len(), len(tar))
	}
}

// contents are files by their names: a tar-split FileGetter.
type contents map[string][]byte

func (c contents) Get(name string) (io.ReadCloser, error) {
	b, ok := c[name]
	if !ok {
		return nil, errors.New("no such file")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// files puts every file together from its chunks.
func (c *chunkedBlob) files(entries []chunkedEntry) contents {
	files := contents{}
	holes := 0
	for i, e := range entries {
		if e.Size == 0 && e.Type != "chunk" {
			continue
		}
		end := e.EndOffset
		if e.Type == "reg" && i+1 < len(entries) && entries[i+1].Type == "chunk" {
			end = entries[i+1].Offset
		}
		b := c.unpack(c.b[e.Offset:end])
		sum := digest.FromBytes(b).String()
		if e.ChunkSize > 0 && int64(len(b)) != e.ChunkSize || e.ChunkDigest != sum || e.ChunkOffset != int64(len(files[e.Name])) {
			c.t.Errorf("%s: chunk of %d bytes at %d: %+v", e.Name, len(b), len(files[e.Name]), e)
		}
		if zero := strings.Trim(string(b), "\x00") == ""; zero != (e.ChunkType == "zeros") {
			c.t.Errorf("%s: chunk at %d is of type %q", e.Name, e.ChunkOffset, e.ChunkType)
		} else if zero {
			holes++
		}
		files[e.Name] = append(files[e.Name], b...)
	}
	for _, e := range entries {
		if e.Type == "reg" && e.Size > 0 && (digest.FromBytes(files[e.Name]).String() != e.Digest || int64(len(files[e.Name])) != e.Size) {
			c.t.Errorf("%s: %d bytes are not %+v", e.Name, len(files[e.Name]), e)
		}
	}
	if holes == 0 || len(files) != 4 {
		c.t.Errorf("%d holes, %d files", holes, len(files))
	}
	return files
}

// footer says what the annotations say.
func (c *chunkedBlob) footer() {
	b := c.b[len(c.b)-72:]
	var n [7]any
	for i := range n {
		n[i] = binary.LittleEndian.Uint64(b[8+8*i:])
	}
	want := c.annotations[containers+"manifest-position"] + ":" + c.annotations[containers+"tarsplit-position"]
	if got := fmt.Sprintf("%d:%d:%d:%d:%d:%d:%d", n[:]...); got != want || string(b[:8]) != "\x50\x2a\x4d\x18\x40\x00\x00\x00" || string(b[64:]) != "GNUlInUx" {
		c.t.Errorf("footer %q: %s, want %s", b, got, want)
	}
}

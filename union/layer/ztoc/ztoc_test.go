package ztoc

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/layerfs/layerfs/union/layer/inflate"
)

// words is text that compresses like text, the same for the same seed.
func words(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%x ", r.IntN(5000)*r.IntN(3))
		if r.IntN(30) == 0 {
			b.Write(bytes.Repeat([]byte{byte(r.IntN(256))}, r.IntN(400)))
		}
	}
	return b.Bytes()[:n]
}

// archive makes a tar of about n bytes.
func archive(t testing.TB, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; b.Len() < n; i++ {
		content := words(uint64(i), 1000+i*977%90_000)
		h := &tar.Header{Name: fmt.Sprintf("d/file%d", i), Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len(content)), ModTime: time.Unix(int64(i), 5), Format: tar.FormatPAX,
			PAXRecords: map[string]string{xattrPrefix + "user.n": fmt.Sprint(i), "LAYERFS.x": "y"}}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// deflate compresses parts as members of their own.
func deflate(t testing.TB, level int, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for i, p := range parts {
		w, err := gzip.NewWriterLevel(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		w.Name = strings.Repeat("n", i)
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// run pipes b through a program.
func run(t testing.TB, b []byte, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip("needs " + name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(b), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// blobs are the ways in which a tar becomes a gzip blob.
var blobs = map[string]func(t testing.TB, b []byte) []byte{
	"level 1": func(t testing.TB, b []byte) []byte { return deflate(t, 1, b) },
	"level 9": func(t testing.TB, b []byte) []byte { return deflate(t, 9, b) },
	"stored":  func(t testing.TB, b []byte) []byte { return deflate(t, 0, b) },
	"huffman": func(t testing.TB, b []byte) []byte { return deflate(t, gzip.HuffmanOnly, b) },
	"members": func(t testing.TB, b []byte) []byte {
		return deflate(t, 6, b[:20_000], b[20_000:20_010], b[20_010:900_000], nil, b[900_000:])
	},
	"an empty member": func(t testing.TB, b []byte) []byte { return deflate(t, 6, nil, b) },
	"empty blocks": func(t testing.TB, b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		for _, b := range [][]byte{nil, nil, b} {
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	},
	"small members": func(t testing.TB, b []byte) []byte { return deflate(t, 6, slices.Collect(slices.Chunk(b, 50_000))...) },
	"gzip":          func(t testing.TB, b []byte) []byte { return run(t, b, "gzip", "-6") },
	"pigz":          func(t testing.TB, b []byte) []byte { return run(t, b, "pigz", "-p3", "-b128") },
	"pigz -i":       func(t testing.TB, b []byte) []byte { return run(t, b, "pigz", "-p2", "-i") },
}

func mustBuild(t testing.TB, blob []byte, span int64) *ZTOC {
	t.Helper()
	z, err := Build(iotest.HalfReader(bytes.NewReader(blob)), BuildOptions{Span: span, Tool: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// wantSpans decodes each span from its own bytes.
func wantSpans(t *testing.T, z *ZTOC, blob, want []byte) {
	t.Helper()
	at := int64(0)
	for i, s := range z.Spans() {
		if s.Out != at || s.OutEnd <= s.Out {
			t.Fatalf("span %d is %d to %d, the one before ends at %d", i, s.Out, s.OutEnd, at)
		}
		at = s.OutEnd
		part := blob[s.Start:s.End]
		if err := s.Verify(part); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, s.OutEnd-s.Out)
		r, err := inflate.Resume(bytes.NewReader(part), s.Checkpoint(), false)
		if err == nil {
			_, err = io.ReadFull(r, got)
		}
		if err != nil || !bytes.Equal(got, want[s.Out:s.OutEnd]) {
			t.Fatalf("span %d: %v", i, err)
		}
		part[0] ^= 1
		if err := s.Verify(part); !errors.Is(err, ErrDigest) {
			t.Fatalf("span %d, damaged: %v", i, err)
		}
		part[0] ^= 1
		if s.Verify(part[1:]) == nil {
			t.Fatalf("span %d, cut, is verified", i)
		}
	}
	if at != int64(len(want)) {
		t.Errorf("spans end at %d of %d", at, len(want))
	}
}

// wantFiles compares the entries with what archive/tar reads.
func wantFiles(t *testing.T, z *ZTOC, want []byte) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(want))
	for i := range z.Files {
		e := &z.Files[i]
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(content, want[e.Offset:e.Offset+e.Size]) {
			t.Fatalf("%s: content at %d+%d, %v", e.Name, e.Offset, e.Size, err)
		}
		xattrs := maps.Collect(e.Xattrs)
		if e.Name != h.Name || e.Type != h.Typeflag || e.Mode != h.Mode || !e.ModTime.Equal(h.ModTime) || len(e.PAX) != len(h.PAXRecords) ||
			len(xattrs) != 1 || xattrs["user.n"] != fmt.Sprint(i) {
			t.Fatalf("%+v is not %+v", e, h)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("%d entries, and more: %v", len(z.Files), err)
	}
}

func TestBuild(t *testing.T) {
	want := archive(t, 3<<20)
	for name, compress := range blobs {
		t.Run(name, func(t *testing.T) {
			blob := compress(t, want)
			z := mustBuild(t, blob, 300_000)
			if z.ArchiveSize != int64(len(blob)) || z.UncompressedSize != int64(len(want)) || len(z.Checkpoints) < 5 {
				t.Errorf("%d bytes, %d of tar, %d checkpoints", z.ArchiveSize, z.UncompressedSize, len(z.Checkpoints))
			}
			back, err := Parse(z.Encode())
			if err != nil {
				t.Fatal(err)
			}
			if back.BuildTool != "test" || back.SpanSize != 300_000 || back.Algorithm != Gzip {
				t.Errorf("%q, span %d, algorithm %d", back.BuildTool, back.SpanSize, back.Algorithm)
			}
			wantSpans(t, back, blob, want)
			wantFiles(t, back, want)
			if !bytes.Equal(back.Encode(), z.Encode()) {
				t.Error("encoded again it is another")
			}
		})
	}
}

// TestZinfo compares the checkpoints byte by byte with those that zlib's inflate gives.
func TestZinfo(t *testing.T) {
	prog := filepath.Join(t.TempDir(), "zinfo")
	if out, err := exec.Command("cc", "-O1", "-o", prog, "testdata/zinfo.c", "-lz").CombinedOutput(); err != nil {
		t.Skipf("needs a C compiler and zlib.h: %v %s", err, out)
	}
	for _, size := range []int{5_000, 3 << 20} {
		want := archive(t, size)
		for name, compress := range blobs {
			if size < 900_000 && name == "members" {
				continue
			}
			for _, span := range []int64{1, 50_000, 65_535, 1 << 20, DefaultSpan} {
				t.Run(fmt.Sprint(name, "/", size, "/", span), func(t *testing.T) {
					if size > 1<<20 && span == 1 {
						t.Skip("a checkpoint a block is for the small blob")
					}
					blob := compress(t, want)
					if !bytes.Equal(mustBuild(t, blob, span).encodeZinfo(), run(t, blob, prog, fmt.Sprint(span))) {
						t.Error("zlib's checkpoints are others")
					}
				})
			}
		}
	}
}

// TestMadeBySOCI reads a zTOC that soci-snapshotter's own builder made (its commit 77fb4266, with
// spans of 15,000 bytes) of a tar from GNU tar. The last of its checkpoints lies behind what
// it takes for the tar's size, in the padding of the last record.
func TestMadeBySOCI(t *testing.T) {
	packed, err := os.ReadFile("testdata/soci.ztoc.gz")
	if err != nil {
		t.Fatal(err)
	}
	blob, err := os.ReadFile("testdata/soci.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	z, err := Parse(gunzip(t, packed))
	if err != nil {
		t.Fatal(err)
	}
	want, mine := gunzip(t, blob), mustBuild(t, blob, z.SpanSize)
	if n := len(z.Checkpoints); z.Checkpoints[n-1].Out <= z.UncompressedSize || len(z.Spans()) != n-1 {
		t.Errorf("%d checkpoints and %d spans: it is no longer about padding", n, len(z.Spans()))
	}
	if !bytes.Equal(mine.encodeZinfo(), z.encodeZinfo()) || !slices.Equal(mine.SpanDigests, z.SpanDigests) {
		t.Error("Build gives other checkpoints or digests")
	}
	wantSpans(t, z, blob, want[:z.UncompressedSize])
	for i, e := range z.Files {
		if m := mine.Files[i]; e.Name != m.Name || e.Type != m.Type || e.Offset != m.Offset || e.Size != m.Size || e.Linkname != m.Linkname ||
			e.Mode != m.Mode || !e.ModTime.Equal(m.ModTime) || e.DevMinor != m.DevMinor || !slices.Equal(e.PAX, m.PAX) {
			t.Errorf("entry %d is %+v, of ours %+v", i, e, m)
		}
	}
	if len(z.Files) != len(mine.Files) {
		t.Errorf("%d entries, not %d", len(z.Files), len(mine.Files))
	}
}

// fixture is a zTOC that was not made by this package, see testdata/fixture.
func fixture(t testing.TB) (ztoc, blob []byte) {
	t.Helper()
	blob, err := os.ReadFile("testdata/layer.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile("testdata/layer.ztoc.gz")
	if err != nil {
		t.Fatal(err)
	}
	return gunzip(t, packed), blob
}

func gunzip(t testing.TB, b []byte) []byte {
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

func TestParseFixture(t *testing.T) {
	b, blob := fixture(t)
	z, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	want := gunzip(t, blob)
	wantSpans(t, z, blob, want)
	var got []string
	for _, e := range z.Files {
		if e.ModTime.UnixNano() != 1_700_000_000_123_456_789 {
			t.Errorf("%s: time %v", e.Name, e.ModTime)
		}
		got = append(got, fmt.Sprintf("%c %s>%s %o %d:%d %s:%s %d,%d %q", e.Type, e.Name, e.Linkname, e.Mode, e.UID, e.GID, e.Uname, e.Gname, e.DevMajor, e.DevMinor, maps.Collect(e.Xattrs)))
	}
	entries := []string{
		`5 etc/> 755 0:0 : 0,0 map[]`,
		`0 etc/hosts> 644 0:0 root:root 0,0 map[]`,
		`0 etc/big> 644 1000:100000 : 0,0 map[]`,
		`0 etc/ping> 4755 0:0 : 0,0 map["user.a":"1\x002"]`,
		`2 etc/link>hosts 644 0:0 : 0,0 map[]`,
		`1 etc/hard>etc/hosts 644 0:0 : 0,0 map[]`,
		`3 dev-null> 644 0:0 : 1,3 map[]`,
		`0 etc/.wh.gone> 644 0:0 : 0,0 map[]`,
	}
	if !slices.Equal(got, entries) {
		t.Errorf("entries\n%s", strings.Join(got, "\n"))
	}
	if h := z.Files[1]; string(want[h.Offset:h.Offset+h.Size]) != "127.0.0.1 localhost\n" {
		t.Errorf("etc/hosts is at %d+%d", h.Offset, h.Size)
	}
	mine := mustBuild(t, blob, z.SpanSize)
	if !bytes.Equal(mine.encodeZinfo(), z.encodeZinfo()) || !slices.Equal(mine.SpanDigests, z.SpanDigests) {
		t.Error("Build gives other checkpoints or digests")
	}
}

// TestFirstVersion reads a zinfo without its first checkpoint.
func TestFirstVersion(t *testing.T) {
	want := archive(t, 1<<20)
	blob := deflate(t, 6, want)
	z := mustBuild(t, blob, 200_000)
	old := &ZTOC{ArchiveSize: z.ArchiveSize, UncompressedSize: z.UncompressedSize, SpanDigests: z.SpanDigests}
	b := z.encodeZinfo()
	if err := old.decodeZinfo(slices.Delete(b, zinfoHeader, zinfoHeader+zinfoCheckpoint)); err != nil {
		t.Fatal(err)
	}
	wantSpans(t, old, blob, want)
}

// plainTar is the zTOC of a layer that is not compressed.
func plainTar(b []byte, span int64) *ZTOC {
	z := &ZTOC{Algorithm: Uncompressed, ArchiveSize: int64(len(b)), UncompressedSize: int64(len(b)), SpanSize: span}
	for part := range slices.Chunk(b, int(span)) {
		z.SpanDigests = append(z.SpanDigests, digest.FromBytes(part))
	}
	z.Files = []File{{Name: "d/file0", Type: tar.TypeReg, Offset: 1536, Size: 1000}}
	return z
}

func TestUncompressed(t *testing.T) {
	for _, size := range []int{4096, 10_000} {
		b := words(1, size)
		z, err := Parse(plainTar(b, 4096).Encode())
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for _, s := range z.Spans() {
			if err := s.Verify(b[s.Start:s.End]); err != nil || s.Out != s.Start || s.OutEnd != s.End || s.Window != nil {
				t.Errorf("%+v: %v", s, err)
			}
			got = append(got, b[s.Out:s.OutEnd]...)
		}
		if !bytes.Equal(got, b) {
			t.Errorf("spans hold %d of %d bytes", len(got), size)
		}
	}
}

package ztoc

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os/exec"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestParseRefuses changes one thing of a zTOC that is right.
func TestParseRefuses(t *testing.T) {
	want := archive(t, 1<<20)
	blob := deflate(t, 6, want)
	for name, c := range map[string]struct {
		change func(z *ZTOC)
		err    error
	}{
		"type":               {func(z *ZTOC) { z.Files[0].Type = 'Z' }, ErrUnsupported},
		"sparse":             {func(z *ZTOC) { z.Files[3].PAX = []Record{{"GNU.sparse.major", "1"}} }, ErrUnsupported},
		"algorithm":          {func(z *ZTOC) { z.Algorithm = 3 }, ErrUnsupported},
		"entry over another": {func(z *ZTOC) { z.Files[3].Offset -= 1600 }, ErrFormat},
		"two at one place":   {func(z *ZTOC) { z.Files[3].Offset = z.Files[2].Offset }, ErrFormat},
		"before the tar":     {func(z *ZTOC) { z.Files[0].Offset = 511 }, ErrFormat},
		"negative offset":    {func(z *ZTOC) { z.Files[0].Offset = math.MinInt64 }, ErrFormat},
		"behind the tar":     {func(z *ZTOC) { z.Files[len(z.Files)-1].Size += 1 << 20 }, ErrFormat},
		"overflow":           {func(z *ZTOC) { z.Files[1].Size = math.MaxInt64 }, ErrFormat},
		"negative size":      {func(z *ZTOC) { z.Files[1].Size = -1 }, ErrFormat},
		"digest":             {func(z *ZTOC) { z.SpanDigests[1] = "sha256:0" }, ErrFormat},
		"too few digests":    {func(z *ZTOC) { z.SpanDigests = z.SpanDigests[1:] }, ErrFormat},
		"no spans":           {func(z *ZTOC) { z.SpanDigests, z.Checkpoints = nil, nil }, ErrFormat},
		"blob size":          {func(z *ZTOC) { z.ArchiveSize = z.Checkpoints[2].In - 1 }, ErrFormat},
		"no blob":            {func(z *ZTOC) { z.ArchiveSize = 0 }, ErrFormat},
		"tar size":           {func(z *ZTOC) { z.UncompressedSize = -1 }, ErrFormat},
		"order of input":     {func(z *ZTOC) { z.Checkpoints[2].In = z.Checkpoints[1].In }, ErrFormat},
		"order of output":    {func(z *ZTOC) { z.Checkpoints[2].Out = z.Checkpoints[1].Out - 1 }, ErrFormat},
		"bits":               {func(z *ZTOC) { z.Checkpoints[2].Bits = 8 }, ErrFormat},
		"late start":         {func(z *ZTOC) { z.Checkpoints[0].Out = 1 }, ErrFormat},
		"bits at the start":  {func(z *ZTOC) { z.Checkpoints[0].Bits = 1 }, ErrFormat},
		"input at zero":      {func(z *ZTOC) { z.Checkpoints[0].In = 0 }, ErrFormat},
		"window":             {func(z *ZTOC) { z.Checkpoints[1].Window = z.Checkpoints[1].Window[1:] }, ErrFormat},
		"more tar than blob": {func(z *ZTOC) { z.Algorithm, z.UncompressedSize = Uncompressed, z.ArchiveSize+1 }, ErrFormat},
		"no span size": {func(z *ZTOC) {
			z.Algorithm, z.SpanSize = Uncompressed, 0
		}, ErrFormat},
	} {
		z := mustBuild(t, blob, 100_000)
		c.change(z)
		if _, err := Parse(z.Encode()); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := bytes.Replace(mustBuild(t, blob, 100_000).Encode(), []byte("\x03\x00\x00\x000.9\x00"), []byte("\x03\x00\x00\x001.0\x00"), 1)
	if _, err := Parse(other); !errors.Is(err, ErrUnsupported) {
		t.Errorf("version 1.0: %v", err)
	}
}

// TestParseLimits: few bytes must not become much memory.
func TestParseLimits(t *testing.T) {
	if _, err := Parse(make([]byte, MaxSize+1)); !errors.Is(err, ErrLimit) {
		t.Errorf("too large: %v", err)
	}
	w := &writer{b: make([]byte, 4)}
	root := w.single(newShape(4, 4, 8, 8, 4), 0)
	root.string(ztocVersion, version)
	toc := w.single(newShape(4), root.field(ztocTOC))
	refs := toc.refs(tocMetadata, 1000) // all the same, and it has no fields
	at := w.vtable(newShape())
	for i := range 1000 {
		w.point(refs + 4*i)
	}
	w.table(newShape(), at, refs)
	if _, err := Parse(w.finish()); !errors.Is(err, ErrLimit) {
		t.Errorf("1000 entries of 4 bytes: %v", err)
	}
	z := plainTar(make([]byte, 4096), 4096)
	z.Files[0].PAX = make([]Record, 100)
	b := z.Encode()
	n := bytes.Index(b, []byte{100, 0, 0, 0}) // the length of the vector
	binary.LittleEndian.PutUint32(b[n:], 1<<30)
	if _, err := Parse(b); !errors.Is(err, ErrFormat) {
		t.Errorf("2^30 records: %v", err)
	}
}

// TestParseDamaged cuts and changes a zTOC everywhere: nothing may panic.
func TestParseDamaged(t *testing.T) {
	whole, _ := fixture(t)
	small := plainTar(make([]byte, 10_000), 4096).Encode()
	for n := range len(small) {
		if _, err := Parse(small[:n]); err == nil && n < len(small)-1 { // the last byte is the NUL of a string
			t.Errorf("%d of %d bytes are enough", n, len(small))
		}
	}
	for _, b := range [][]byte{whole, small} {
		step := max(1, len(b)/5000)
		for i := 0; i < len(b); i += step {
			for _, v := range []byte{0, 1, 0x7f, 0x80, 0xff} {
				c := bytes.Clone(b)
				c[i] = v
				if z, err := Parse(c); err == nil {
					z.Spans()
				}
			}
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	pack := func(h *tar.Header, content string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return deflate(t, 6, b.Bytes())
	}
	good := deflate(t, 6, archive(t, 100_000))
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		blob []byte
		err  error
	}{
		"global header": {pack(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""), ErrUnsupported},
		"type":          {pack(&tar.Header{Typeflag: '7', Name: "a"}, ""), ErrUnsupported},
		"owner":         {pack(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Uid: 1 << 33, Format: tar.FormatGNU}, ""), ErrUnsupported},
		"no gzip":       {archive(t, 10_000), ErrLayer},
		"no tar":        {deflate(t, 6, words(1, 10_000)), ErrLayer},
		"nothing":       {nil, ErrLayer},
		"cut":           {good[:len(good)/2], ErrLayer},
		"cut trailer":   {good[:len(good)-4], ErrLayer},
		"checksum":      {append(bytes.Clone(good[:len(good)-5]), good[len(good)-5]^1, 0, 0, 0, 0), ErrLayer},
	} {
		if _, err := Build(bytes.NewReader(c.blob), BuildOptions{}); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Build(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(good))), BuildOptions{}); !errors.Is(err, iotest.ErrTimeout) || errors.Is(err, ErrLayer) {
		t.Errorf("a reader that fails: %v", err)
	}
	if _, err := Build(iotest.ErrReader(broken), BuildOptions{}); !errors.Is(err, broken) {
		t.Errorf("a reader that fails at once: %v", err)
	}
}

// TestBuildSparse: SOCI takes these for plain files, whose contents are then wrong.
func TestBuildSparse(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs tar")
	}
	dir := t.TempDir()
	if out, err := exec.Command("truncate", "-s", "10M", dir+"/hole").CombinedOutput(); err != nil {
		t.Skipf("needs truncate: %s", out)
	}
	for _, format := range []string{"gnu", "pax"} {
		b := run(t, nil, "tar", "-C", dir, "--sparse", "--format="+format, "-czf", "-", "hole")
		if _, err := Build(bytes.NewReader(b), BuildOptions{}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", format, err)
		}
	}
}

// TestBuildLimit: a small blob can unpack to more checkpoints than a zTOC may have.
func TestBuildLimit(t *testing.T) {
	blob := deflate(t, 1, archive(t, 1<<20), make([]byte, 400<<20))
	if _, err := Build(bytes.NewReader(blob), BuildOptions{Span: 1000}); !errors.Is(err, ErrLimit) {
		t.Errorf("%v", err)
	}
}

// TestBuildTrailing: what follows the last gzip member belongs to the last span.
func TestBuildTrailing(t *testing.T) {
	want := archive(t, 300_000)
	blob := append(deflate(t, 6, want), make([]byte, 1000)...)
	z := mustBuild(t, blob, 100_000)
	if z.ArchiveSize != int64(len(blob)) {
		t.Errorf("%d bytes of %d", z.ArchiveSize, len(blob))
	}
	wantSpans(t, z, blob, want)
}

// TestTimes: RFC 3339 knows four digits of years.
func TestTimes(t *testing.T) {
	for _, when := range []time.Time{time.Unix(0, 0), time.Unix(-1, 5), time.Unix(1<<40, 0), {}} {
		z := plainTar(make([]byte, 4096), 4096)
		z.Files[0].ModTime = when
		back, err := Parse(z.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if got := back.Files[0].ModTime; !got.Equal(when) && (when.Year() < 10000 || !got.IsZero()) {
			t.Errorf("%v became %v", when, got)
		}
	}
}

// checkParsed checks what Parse promises.
func checkParsed(t *testing.T, z *ZTOC) {
	t.Helper()
	at := int64(0)
	for _, s := range z.Spans() {
		if s.Start < 0 || s.End <= s.Start || s.End > z.ArchiveSize || s.Out != at || s.OutEnd <= s.Out || len(s.Window) > windowSize {
			t.Fatalf("span %+v", s)
		}
		at = s.OutEnd
	}
	if at != z.UncompressedSize {
		t.Fatalf("spans end at %d of %d", at, z.UncompressedSize)
	}
	for i := range z.Files {
		if e := &z.Files[i]; e.Offset < 0 || e.Size < 0 || e.Offset+e.Size > z.UncompressedSize {
			t.Fatalf("file %+v", e)
		}
	}
}

// FuzzParse has seeds of one implied checkpoint: with windows of 32 KiB fuzzing would be slow.
func FuzzParse(f *testing.F) {
	z := plainTar(make([]byte, 5000), 4096)
	f.Add(z.Encode())
	z.Files = append(z.Files, File{Name: "b", Linkname: "a", Type: tar.TypeSymlink, Offset: 4608, PAX: []Record{{"SCHILY.xattr.a", "b"}}, ModTime: time.Unix(9, 0)})
	f.Add(z.Encode())
	z.Algorithm, z.SpanDigests = Gzip, z.SpanDigests[:1]
	b := z.Encode()
	zinfo := bytes.Index(b, z.encodeZinfo())
	b[zinfo] = 1 // checkpoint, which is left out
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		z, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		checkParsed(t, z)
		again := z.Encode()
		back, err := Parse(again)
		if err != nil {
			t.Fatalf("encoded and parsed: %v", err)
		}
		if !bytes.Equal(back.Encode(), again) {
			t.Fatal("encoded again it is another")
		}
	})
}

// FuzzZinfo reads checkpoints whose windows are left out of the input.
func FuzzZinfo(f *testing.F) {
	z := &ZTOC{SpanSize: 5, Checkpoints: []Checkpoint{{In: 10}, {In: 12, Bits: 3, Out: 70_000}, {In: 90, Out: 80_000}}}
	f.Add(z.encodeZinfo(), int64(100), int64(90_000))
	z.Checkpoints = z.Checkpoints[1:]
	f.Add(z.encodeZinfo(), int64(100), int64(90_000))
	f.Fuzz(func(t *testing.T, b []byte, size, tarSize int64) {
		var zinfo []byte
		zinfo = append(zinfo, b[:min(len(b), zinfoHeader)]...)
		b = b[len(zinfo):]
		for ; len(b) > 0 && len(zinfo) < 64*zinfoCheckpoint; b = b[min(len(b), 17):] {
			zinfo = append(zinfo, b[:min(len(b), 17)]...)
			if len(b) >= 17 {
				zinfo = append(zinfo, make([]byte, windowSize)...)
			}
		}
		z := &ZTOC{ArchiveSize: size, UncompressedSize: tarSize, Algorithm: Gzip}
		if z.readCheckpoints(zinfo) != nil || len(z.Checkpoints) == 0 {
			return
		}
		z.SpanDigests = make([]digest.Digest, len(z.Checkpoints))
		checkParsed(t, z)
	})
}

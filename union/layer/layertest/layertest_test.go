package layertest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		line string
		want Entry
	}{
		{`dir usr`, Entry{Type: tar.TypeDir, Name: "usr", Mode: 0o755, Sec: Epoch}},
		{`dir usr 01777 1:2 @3 # a comment`, Entry{Type: tar.TypeDir, Name: "usr", Mode: 0o1777, UID: 1, GID: 2, Sec: 3}},
		{`file "a b"c"\xff" "x\ny" 04755`, Entry{Type: tar.TypeReg, Name: "a bc\xff", Mode: 0o4755, Sec: Epoch, Size: 3, Data: []Extent{{0, "x\ny"}}}},
		{`file f @-5.25`, Entry{Type: tar.TypeReg, Name: "f", Mode: 0o644, Sec: -6, Nsec: 750_000_000}},
		{`file f @-0.5`, Entry{Type: tar.TypeReg, Name: "f", Mode: 0o644, Sec: -1, Nsec: 500_000_000}},
		{`file f user.a="b c" security.x=`, Entry{Type: tar.TypeReg, Name: "f", Mode: 0o644, Sec: Epoch, Xattrs: []Xattr{{"user.a", "b c"}, {"security.x", ""}}}},
		{`zero z 1GiB`, Entry{Type: tar.TypeReg, Name: "z", Mode: 0o644, Sec: Epoch, Size: 1 << 30}},
		{`random r 3KiB format=ustar`, Entry{Type: tar.TypeReg, Name: "r", Mode: 0o644, Sec: Epoch, Size: 3072, Random: true, Format: "ustar"}},
		{`sparse s 8KiB 4KiB:"x" sparse=gnu`, Entry{Type: tar.TypeReg, Name: "s", Mode: 0o644, Sec: Epoch, Size: 8192, Data: []Extent{{4096, "x"}}, Sparse: "gnu"}},
		{`link b a`, Entry{Type: tar.TypeLink, Name: "b", Link: "a", Mode: 0o644, Sec: Epoch}},
		{`symlink l ../x`, Entry{Type: tar.TypeSymlink, Name: "l", Link: "../x", Mode: 0o777, Sec: Epoch}},
		{`char dev 0:0 0600 7:8`, Entry{Type: tar.TypeChar, Name: "dev", Mode: 0o600, UID: 7, GID: 8, Sec: Epoch}},
		{`block b 259:3`, Entry{Type: tar.TypeBlock, Name: "b", Mode: 0o644, Major: 259, Minor: 3, Sec: Epoch}},
		{`whiteout a/b`, Entry{Type: tar.TypeReg, Name: "a/.wh.b", Mode: 0o644, Sec: Epoch}},
		{`opaque d/`, Entry{Type: tar.TypeReg, Name: "d/.wh..wh..opq", Mode: 0o644, Sec: Epoch}},
	} {
		got, err := Parse("\n  " + tt.line + "\n# nothing\n")
		if err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], tt.want) {
			t.Errorf("%s\n got %+v, %v\nwant %+v", tt.line, got, err, tt.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, line := range []string{
		`fiel x`, `file`, `link b`, `char c 1`, `char c -1:2`, `zero z`, `zero z 1TiB`, `zero z 9999999999GiB`, `file f "a" "b"`,
		`file "f`, `file f 0999`, `file f what`, `file f format=cpio`, `file "a\x00"`, `file f @x`, `file f @1.0123456789`,
		`sparse s 4 2:"abc"`, `sparse s 9 2:"abc" 4:"d"`, `sparse s 4 format=ustar`, `sparse s 4 sparse=2.0`, `sparse s 4 sparse=gnu user.a=b`,
		`file f user.a=b format=gnu`, `sparse s 4 9223372036854775807:"x"`,
	} {
		if got, err := Parse("dir d\n" + line); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: got %+v, %v, want an error about line 2", line, got, err)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	long := strings.Repeat("x", 101)
	for _, line := range []string{
		"file " + long + " format=ustar", "file a/" + long + " format=v7", "link a " + long + " format=ustar",
		"file a 4000000:0 format=ustar", "file a @-1 format=v7", "file a @1.5 format=ustar", "file a @1.5 format=gnu",
	} {
		if err := Write(io.Discard, mustParse(line)); err == nil {
			t.Errorf("%s was written", line)
		}
	}
}

// archive has all that archive/tar can tell.
const archive = `
	dir d 01777 1000:1000 @1700000001.25 user.x="1\x00"
	file d/f "text" 04711
	link d/l d/f
	symlink s ../ü
	char c 5:1 0600
	block b 8:17
	fifo p
	random r 100KiB
	sparse h 1MiB 512KiB:"middle"
	sparse g 1MiB 1000:"a" 5000:"b" 9000:"c" 13000:"d" 17000:"e" sparse=gnu
	file big "" 3000000000:5 @-1.5
	file gnu "" 3000000000:5 @-7 format=gnu
	file old "old" format=v7
	whiteout d/w
	file ` + "ä/" + `ö/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long "x"`

// TestTar reads what is written with archive/tar.
func TestTar(t *testing.T) {
	entries := mustParse(archive)
	r := tar.NewReader(bytes.NewReader(Tar(archive)))
	for _, e := range entries {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		got := Entry{
			Type: h.Typeflag, Name: strings.TrimSuffix(h.Name, "/"), Link: h.Linkname, Mode: h.Mode, UID: int64(h.Uid), GID: int64(h.Gid),
			Major: h.Devmajor, Minor: h.Devminor, Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond()), Size: h.Size,
		}
		if v, ok := h.PAXRecords["SCHILY.xattr.user.x"]; ok {
			got.Xattrs = []Xattr{{"user.x", v}}
		}
		want := e
		want.Data, want.Random, want.Sparse, want.Format = nil, false, "", ""
		if e.Sparse == "gnu" {
			want.Type = tar.TypeGNUSparse
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if hashOf(t, r) != hashOf(t, e.Content()) {
			t.Errorf("%s: archive/tar reads another content", e.Name)
		}
	}
	if h, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("%v, %v behind the last entry", h, err)
	}
}

// TestGNUTar lists the archive with GNU tar, which knows more formats than
// archive/tar does.
func TestGNUTar(t *testing.T) {
	gnu, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("needs tar")
	}
	cmd := exec.Command(gnu, "-tvf", "-", "--numeric-owner")
	cmd.Env = []string{"TZ=UTC", "LC_ALL=C.UTF-8"}
	cmd.Stdin = bytes.NewReader(Tar(archive))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"drwxrwxrwt 1000/1000         0 2023-11-14 22:13 d/", "-rws--x--x 0/0", "d/l link to d/f", "s -> ../ü", "5,1 2023", "8,17 2023",
		"1048576 2023-11-14 22:13 h", "1048576 2023-11-14 22:13 g", "3000000000/5", "1969-12-31 23:59 big", "d/.wh.w",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func hashOf(t *testing.T, r io.Reader) [32]byte {
	t.Helper()
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		t.Fatal(err)
	}
	return [32]byte(sum.Sum(nil))
}

// TestBlob: the same text gives the same bytes, and each format its own.
func TestBlob(t *testing.T) {
	seen := map[digest.Digest]string{}
	for _, format := range Formats() {
		blob, desc, diffID := Blob(archive, format, nil)
		_, again, _ := Blob(archive, format, nil)
		if desc.Digest != digest.FromBytes(blob) || desc.Size != int64(len(blob)) || diffID != digest.FromBytes(Tar(archive)) {
			t.Errorf("%s: the descriptor does not describe the blob: %+v %s", format, desc, diffID)
		}
		if again.Digest != desc.Digest || seen[desc.Digest] != "" {
			t.Errorf("%s: again it is %s, and also %s", format, again.Digest, seen[desc.Digest])
		}
		seen[desc.Digest] = format
	}
}

// TestBlobMembers: the multi formats do have several members.
func TestBlobMembers(t *testing.T) {
	for format, magic := range map[string]string{"gzip-multi": "\x1f\x8b\x08", "zstd-multi": "\x28\xb5\x2f\xfd"} {
		blob, _, _ := Blob(archive, format, nil)
		if n := bytes.Count(blob, []byte(magic)); n < 30 {
			t.Errorf("%s: %d members", format, n)
		}
	}
}

func TestBlobEncoder(t *testing.T) {
	encode := func(tar []byte) ([]byte, ocispec.Descriptor, digest.Digest, error) {
		return append([]byte("x"), tar...), ocispec.Descriptor{Annotations: map[string]string{"a": "b"}}, digest.FromString("d"), nil
	}
	blob, desc, diffID := Blob("dir d", "mine", encode)
	if blob[0] != 'x' || desc.Digest != digest.FromBytes(blob) || desc.MediaType != ocispec.MediaTypeImageLayerGzip || desc.Annotations["a"] != "b" || diffID != digest.FromString("d") {
		t.Errorf("%+v %s", desc, diffID)
	}
	defer func() {
		if recover() == nil {
			t.Error("a text that cannot be parsed gave a tar")
		}
	}()
	Tar("nonsense")
}

// FuzzParse: no panic, and what is taken can be written and read.
func FuzzParse(f *testing.F) {
	for line := range strings.SplitSeq(archive, "\n") {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := Parse(text)
		size := int64(0)
		for _, e := range entries {
			size += min(e.Size, 1<<30)
		}
		if err != nil || size > 1<<20 {
			return
		}
		var b bytes.Buffer
		if Write(&b, entries) != nil {
			return
		}
		if b.Len()%block != 0 {
			t.Fatalf("%q: %d bytes are no tar", text, b.Len())
		}
	})
}

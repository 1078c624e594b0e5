package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/layerfs/layerfs/union/layer"
)

// splitOf makes a tar of headers and contents, and its tar-split by the library that
// docker and containers/storage use.
func splitOf(t testing.TB, files ...string) (split []byte, diffID digest.Digest) {
	t.Helper()
	var b, s bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0), Format: tar.FormatGNU}
		if to, ok := strings.CutPrefix(content, "->"); ok {
			h.Typeflag, h.Linkname, h.Size, content = tar.TypeSymlink, to, 0, ""
		} else if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	in, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(b.Bytes()), storage.NewJSONPacker(&s), storage.NewDiscardFilePutter())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return s.Bytes(), digest.FromBytes(b.Bytes())
}

// TestFromSplit: the tar is made again of what the directory has, and what is not as it was
// is named.
func TestFromSplit(t *testing.T) {
	long := strings.Repeat("0123456789", 20_000) // several reads
	for _, test := range []struct {
		name   string
		tar    []string
		dir    []string
		faults string
	}{
		{"the same", []string{"a/", "a/f=content", "empty=", "\xff=raw", "big=" + long}, []string{"dir a", "file a/f content", "file empty", "file \xff raw", "file big " + long}, ""},
		{"same size", []string{"a/", "a/f=content", "g=x"}, []string{"dir a", "file a/f CONTENT", "file g x"}, "a/f: content"},
		{"last byte", []string{"big=" + long}, []string{"file big " + long[:len(long)-1] + "X"}, "big: content"},
		{"other size", []string{"f=content", "g=x"}, []string{"file f c", "file g y"}, "f: 1 bytes, 7 when it was unpacked|g: content"},
		{"missing", []string{"a/f=content"}, nil, "a/f: missing"},
		{"no file", []string{"f=content"}, []string{"dir f"}, "f: no regular file any more"},
		{"through a symlink", []string{"d/", "l=->d", "l/f=content"}, []string{"dir d", "link l d", "file d/f content"}, ""},
		{"a whiteout with content", []string{".wh.f=content", "g=x"}, []string{"file g x"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			split, diffID := splitOf(t, test.tar...)
			l := openDirLayer(t, makeDir(t, test.dir...), layer.DirOptions{})
			tar, faults, err := l.FromSplit(t.Context(), bytes.NewReader(split), diffID, layer.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range faults {
				got = append(got, f.Path+": "+f.Reason)
			}
			if s := strings.Join(got, "|"); s != test.faults {
				t.Errorf("faults %q, want %q", s, test.faults)
			}
			if name, _, _ := strings.Cut(test.tar[0], "="); !strings.HasPrefix(name, ".wh.") {
				if _, ok := tar.Lookup(layer.Root, strings.Split(name, "/")[0]); !ok {
					t.Errorf("the tar has no %q", name)
				}
			}
		})
	}
}

// TestFromSplitRefuses a tar-split that is not of this tar, or none.
func TestFromSplitRefuses(t *testing.T) {
	split, diffID := splitOf(t, "f=content")
	l := openDirLayer(t, makeDir(t, "file f content"), layer.DirOptions{})
	for _, test := range []struct {
		name   string
		split  string
		diffID digest.Digest
		limits layer.Limits
		want   error
	}{
		{"another tar", string(split), digest.FromString(""), layer.Limits{}, layer.ErrDigest},
		{"no diff ID", string(split), "", layer.Limits{}, layer.ErrFormat},
		{"no JSON", "x", diffID, layer.Limits{}, layer.ErrFormat},
		{"cut", string(split[:len(split)/2]), diffID, layer.Limits{}, layer.ErrFormat},
		{"other type", `{"type":3,"position":0}`, diffID, layer.Limits{}, layer.ErrFormat},
		{"negative size", `{"type":1,"name":"f","size":-1,"position":0}`, diffID, layer.Limits{}, layer.ErrFormat},
		{"too long", string(split), diffID, layer.Limits{Unpacked: 1000}, layer.ErrLimit},
	} {
		if _, _, err := l.FromSplit(t.Context(), strings.NewReader(test.split), test.diffID, test.limits); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

func TestOpaqueDirs(t *testing.T) {
	split, _ := splitOf(t, "a/", "a/.wh..wh..opq=", "./b/c/.wh..wh..opq=", "d/f=x", ".wh..wh..opqx=")
	got, err := layer.OpaqueDirs(bytes.NewReader(split))
	if err != nil || len(got) != 2 || !got["a"] || !got["b/c"] {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := layer.OpaqueDirs(bytes.NewReader(split[:len(split)-30])); !errors.Is(err, layer.ErrFormat) {
		t.Errorf("cut: %v", err)
	}
}

func FuzzFromSplit(f *testing.F) {
	split, diffID := splitOf(f, "a/", "a/f=content", "l=->a", "l/f=content", ".wh.x=")
	f.Add(split)
	root := f.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(root, "a"), 0o755), os.WriteFile(filepath.Join(root, "a/f"), []byte("content"), 0o644), os.Symlink("a", filepath.Join(root, "l"))); err != nil {
		f.Fatal(err)
	}
	dir, err := os.Open(root)
	if err != nil {
		f.Fatal(err)
	}
	l, err := layer.OpenDir(f.Context(), dir, layer.DirOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tar, faults, err := l.FromSplit(t.Context(), bytes.NewReader(b), diffID, layer.Limits{Unpacked: 1 << 20, Entries: 1000})
		if err == nil && len(faults) == 0 {
			for range tar.Children(layer.Root) {
			}
		}
		_, _ = layer.OpaqueDirs(bytes.NewReader(b))
	})
}

package registry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// file is one entry of a test archive; link makes it a symlink.
type file struct{ name, content, link string }

func tarOf(t testing.TB, list ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range list {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Size: int64(len(f.content)), Mode: 0o644}
		if f.link != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.link, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.content[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func toJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func configOf(t testing.TB, diffIDs ...digest.Digest) string {
	t.Helper()
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	c.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}
	return toJSON(t, c)
}

func blobFile(content string) file {
	return file{name: blobPath(digest.FromString(content)), content: content}
}

func described(mediaType, content string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(content), Size: int64(len(content))}
}

// layoutFiles are the files of a layout with images of one layer under the tags.
func layoutFiles(t testing.TB, layers map[string]string) []file {
	t.Helper()
	list := []file{{name: "oci-layout", content: layoutVersion}}
	var index ocispec.Index
	for tag, layer := range layers {
		config := configOf(t, digest.FromString(layer))
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: described(ocispec.MediaTypeImageConfig, config),
			Layers: []ocispec.Descriptor{described(ocispec.MediaTypeImageLayer, layer)}}
		m.SchemaVersion = 2
		raw := toJSON(t, m)
		d := described(m.MediaType, raw)
		if tag != "" {
			d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		}
		index.Manifests = append(index.Manifests, d)
		list = append(list, blobFile(layer), blobFile(config), blobFile(raw))
	}
	return append(list, file{name: "index.json", content: toJSON(t, index)})
}

func writeLayout(t *testing.T, layers map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range layoutFiles(t, layers) {
		writeFile(t, filepath.Join(dir, f.name), f.content, 0o644)
	}
	return dir
}

func writeArchive(t *testing.T, b []byte) string {
	t.Helper()
	return writeFile(t, filepath.Join(t.TempDir(), "image.tar"), string(b), 0o644)
}

// wantLayer opens ref and compares its only layer.
func wantLayer(t *testing.T, ref, layer string) *Image {
	t.Helper()
	im := mustOpen(t, ref, anonymous(t))
	if len(im.Manifest.Layers) != 1 {
		t.Fatalf("%s: %d layers", ref, len(im.Manifest.Layers))
	}
	b := im.Blob(im.Manifest.Layers[0])
	if b.Descriptor().Digest != digest.FromString(layer) {
		t.Errorf("%s: another layer", ref)
	}
	wantRange(t, b, []byte(layer), 0, int64(len(layer)))
	wantRange(t, b, []byte(layer), 1, 2)
	return im
}

func TestLayout(t *testing.T) {
	layers := map[string]string{"v1": "layer one", "docker.io/x:v2": "layer two"}
	dir := writeLayout(t, layers)
	tarball := tarOf(t, layoutFiles(t, layers)...)
	plain, packed := writeArchive(t, tarball), writeArchive(t, gzipped(t, tarball))
	for _, at := range []string{"oci:" + dir, "oci-archive:" + plain, "oci-archive:" + packed} {
		im := wantLayer(t, at+":v1", "layer one")
		if im.Name != at+":v1" {
			t.Errorf("name %s", im.Name)
		}
		wantLayer(t, at+":docker.io/x:v2", "layer two")
		wantLayer(t, at+"@"+im.Desc.Digest.String(), "layer one")
		for ref, is := range map[string]error{at: ErrUsage, at + ":none": ErrNotFound, at + "@" + someDigest: ErrNotFound} {
			_, err := Open(t.Context(), ref, anonymous(t))
			var e *Error
			if !errors.Is(err, is) || !errors.As(err, &e) {
				t.Errorf("%s: %v", ref, err)
			}
		}
	}
	one := writeLayout(t, map[string]string{"": "layer"})
	if im := wantLayer(t, "oci:"+one, "layer"); !strings.Contains(im.Name, "@sha256:") {
		t.Errorf("name %s", im.Name)
	}
}

// TestQuiet: reading an image from files leaves their times.
func TestQuiet(t *testing.T) {
	layers := map[string]string{"v1": "layer one"}
	dir := writeLayout(t, layers)
	tarball := writeArchive(t, tarOf(t, layoutFiles(t, layers)...))
	long := time.Now().Add(-48 * time.Hour) // before the last change: a read that is noted at all is noted now (mount(8), relatime)
	var paths []string
	for _, root := range []string{dir, tarball} {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			paths = append(paths, p)
			return os.Chtimes(p, long, time.Time{})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	wantLayer(t, "oci:"+dir+":v1", "layer one")
	wantLayer(t, "oci-archive:"+tarball+":v1", "layer one")
	for _, p := range paths {
		var st syscall.Stat_t
		if err := syscall.Stat(p, &st); err != nil || st.Atim.Sec != long.Unix() {
			t.Errorf("%s: read at %d, not %d (%v)", p, st.Atim.Sec, long.Unix(), err)
		}
	}
}

func TestLayoutErrors(t *testing.T) {
	layers := map[string]string{"v1": "layer"}
	tests := []struct {
		name string
		edit func(dir string) error
		is   error
		text string
	}{
		{"no layout", func(dir string) error { return os.Remove(dir + "/oci-layout") }, ErrNotFound, "no file oci-layout"},
		{"version", func(dir string) error {
			return os.WriteFile(dir+"/oci-layout", []byte(`{"imageLayoutVersion":"2.0"}`), 0o644)
		}, ErrUnsupported, `version "2.0"`},
		{"malformed", func(dir string) error { return os.WriteFile(dir+"/oci-layout", []byte(`x`), 0o644) }, ErrIntegrity, "malformed"},
		{"index", func(dir string) error { return os.WriteFile(dir+"/index.json", []byte(`x`), 0o644) }, ErrIntegrity, "index.json"},
		{"blobs", func(dir string) error { return os.RemoveAll(dir + "/blobs") }, ErrNotFound, "missing"},
		{"flipped", func(dir string) error {
			return flip(dir + "/" + blobPath(digest.FromString(configOf(t, digest.FromString("layer")))))
		}, ErrIntegrity, "digest is"},
	}
	for _, tt := range tests {
		dir := writeLayout(t, layers)
		if err := tt.edit(dir); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), "oci:"+dir+":v1", anonymous(t))
		var e *Error
		if !errors.Is(err, tt.is) || !errors.As(err, &e) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	dir := writeLayout(t, layers)
	im := mustOpen(t, "oci:"+dir+":v1", anonymous(t))
	if err := os.Truncate(filepath.Join(dir, blobPath(digest.FromString("layer"))), 2); err != nil {
		t.Fatal(err)
	}
	if _, err := readRange(t.Context(), im.Blob(im.Manifest.Layers[0]), 0, 5); !errors.Is(err, ErrIntegrity) {
		t.Errorf("a short blob: %v", err)
	}
}

// flip changes the first byte of a file.
func flip(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	b[0] ^= 1
	return os.WriteFile(name, b, 0o644)
}

// dockerFiles is what versions of docker before 25 saved: a plain tar, a gzip
// and a symlink to the first as layers.
func dockerFiles(t testing.TB) []file {
	t.Helper()
	plain := string(tarOf(t, file{name: "a", content: "A"}))
	other := tarOf(t, file{name: "b", content: "B"})
	packed := string(gzipped(t, other))
	config := configOf(t, digest.FromString(plain), digest.FromBytes(other), digest.FromString(plain))
	m := []map[string]any{{"Config": "c.json", "RepoTags": []string{"py:1", "r.example/py:2"}, "Layers": []string{"1/layer.tar", "2/layer.tar", "3/layer.tar"}}}
	return []file{
		{name: "1/layer.tar", content: plain}, {name: "2/layer.tar", content: packed}, {name: "3/layer.tar", link: "../1/layer.tar"},
		{name: "c.json", content: config}, {name: "manifest.json", content: toJSON(t, m)},
	}
}

func TestDockerArchive(t *testing.T) {
	files := dockerFiles(t)
	b := tarOf(t, files...)
	for _, name := range []string{writeArchive(t, b), writeArchive(t, gzipped(t, b))} {
		for _, ref := range []string{"", ":py:1", ":docker.io/library/py:1", ":r.example/py:2", ":@0"} {
			im := mustOpen(t, "docker-archive:"+name+ref, anonymous(t))
			types := []string{dockerLayer, dockerLayerGzip, dockerLayer}
			for i, l := range im.Manifest.Layers {
				content := []byte(files[i%2].content)
				if l.MediaType != types[i] || l.Digest != digest.FromBytes(content) || l.Size != int64(len(content)) {
					t.Errorf("%s: layer %d: %+v", ref, i, l)
				}
				wantRange(t, im.Blob(l), content, 0, l.Size)
				wantRange(t, im.Blob(l), content, 7, 9)
			}
			if im.Desc.Digest != digest.FromBytes(im.RawManifest) || im.Desc.MediaType != dockerManifest {
				t.Errorf("%s: %+v", ref, im.Desc)
			}
		}
		for _, ref := range []string{":py:3", ":@1"} {
			if _, err := Open(t.Context(), "docker-archive:"+name+ref, anonymous(t)); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v", ref, err)
			}
		}
	}
}

func TestDockerArchiveErrors(t *testing.T) {
	without := func(name string) []byte {
		var keep []file
		for _, f := range dockerFiles(t) {
			if f.name != name {
				keep = append(keep, f)
			}
		}
		return tarOf(t, keep...)
	}
	loop := append(dockerFiles(t), file{name: "1/layer.tar", link: "../2/layer.tar"}, file{name: "2/layer.tar", link: "../1/layer.tar"})
	for name, tt := range map[string]struct {
		b    []byte
		is   error
		text string
	}{
		"no manifest": {without("manifest.json"), ErrNotFound, "no manifest.json"},
		"no config":   {without("c.json"), ErrNotFound, `lacks the config "c.json"`},
		"no layer":    {without("2/layer.tar"), ErrNotFound, `lacks the layer "2/layer.tar"`},
		"links":       {tarOf(t, loop...), ErrNotFound, "lacks the layer"},
		"no tar":      {bytes.Repeat([]byte("x"), 2000), ErrIntegrity, "not a tar"},
		"empty":       {nil, ErrIntegrity, "empty archive"},
		"fewer":       {tarOf(t, append(dockerFiles(t), file{name: "c.json", content: configOf(t)})...), ErrIntegrity, "3 layers but 0 diff IDs"},
	} {
		_, err := Open(t.Context(), "docker-archive:"+writeArchive(t, tt.b), anonymous(t))
		var e *Error
		if !errors.Is(err, tt.is) || !errors.As(err, &e) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(tarOf(f, dockerFiles(f)...))
	f.Add(tarOf(f, layoutFiles(f, map[string]string{"v1": "layer"})...))
	f.Fuzz(func(t *testing.T, b []byte) {
		name := writeFile(t, filepath.Join(t.TempDir(), "x"), string(b), 0o644)
		for _, transport := range []string{"docker-archive:", "oci-archive:"} {
			im, err := Open(t.Context(), transport+name, Options{Platform: "linux/amd64"})
			if err != nil {
				continue
			}
			for _, l := range im.Manifest.Layers {
				if got, err := readRange(t.Context(), im.Blob(l), 0, l.Size); err == nil && int64(len(got)) != l.Size {
					t.Fatalf("layer %v: %d bytes", l, len(got))
				}
			}
			_ = im.Close()
		}
	})
}

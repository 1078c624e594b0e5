package forensic_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/ztoc"
	"github.com/opencontainers/go-digest"
)

// TestLyingZTOC: a zTOC has digests of compressed bytes, but none of its entries; what it says
// of them is held against the tar.
func TestLyingZTOC(t *testing.T) {
	text := "file etc/a \"aaaa\"\nfile etc/b \"bbbb\"\nsymlink l etc/a\nchar dev/null 1:3 0666\nfile bin/su \"x\" 04755 1:2\nrandom big 300KiB"
	blob1, desc, _ := layertest.Blob(text, "gzip", nil)
	for name, c := range map[string]struct {
		lie  func(f map[string]*ztoc.File)
		says string
	}{
		"honest":    {func(map[string]*ztoc.File) {}, ""},
		"swapped":   {func(f map[string]*ztoc.File) { f["etc/a"].Name, f["etc/b"].Name = "etc/b", "etc/a" }, "/etc/a: content"},
		"elsewhere": {func(f map[string]*ztoc.File) { f["etc/a"].Offset++ }, "/etc/a: content"},
		"mode":      {func(f map[string]*ztoc.File) { f["bin/su"].Mode = 0o755 }, "/bin/su: mode 100755, in the tar 104755"},
		"owner":     {func(f map[string]*ztoc.File) { f["bin/su"].UID = 0 }, "/bin/su: owner 0, in the tar 1"},
		"size":      {func(f map[string]*ztoc.File) { f["etc/a"].Size = 3 }, "/etc/a: size 3, in the tar 4"},
		"target":    {func(f map[string]*ztoc.File) { f["l"].Linkname = "etc/b" }, "/l: target etc/b, in the tar etc/a"},
		"device":    {func(f map[string]*ztoc.File) { f["dev/null"].DevMinor = 5 }, "/dev/null: device"},
		"name":      {func(f map[string]*ztoc.File) { f["bin/su"].Name = "bin/sudo" }, "/bin/su: only in the tar"},
	} {
		t.Run(name, func(t *testing.T) {
			z, err := ztoc.Build(bytes.NewReader(blob1), ztoc.BuildOptions{Tool: "test"})
			if err != nil {
				t.Fatal(err)
			}
			files := map[string]*ztoc.File{}
			for i := range z.Files {
				files[z.Files[i].Name] = &z.Files[i]
			}
			c.lie(files)
			forged := z.Encode()
			o := layer.Options{ZTOC: &layer.ZTOC{Digest: digest.FromBytes(forged), Open: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(forged)), nil
			}}}
			var layers []*layer.Layer
			for _, o := range []layer.Options{o, {Whole: true}} {
				s, err := cache.Open(t.TempDir(), cache.Options{})
				if err != nil {
					t.Fatal(err)
				}
				l, err := layer.Open(t.Context(), desc, blob(blob1), s, o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = l.Close(); _ = s.Close() })
				layers = append(layers, l)
			}
			if kind := layers[0].Status().Index; kind != "soci" {
				t.Fatalf("the layer was opened by %q", kind)
			}
			list, err := forensic.Compare(t.Context(), layers[0], layers[1])
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			for _, d := range list {
				said = append(said, d.Path+": "+d.What)
			}
			all := strings.Join(said, "\n")
			if c.says == "" && all != "" || !strings.Contains(all, c.says) {
				t.Errorf("found\n%s\nwant %q", all, c.says)
			}
		})
	}
}

package inflate

import (
	"bytes"
	"compress/gzip"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// benchBlob is the file LAYERFS_GZIP, or the Go sources that this was built with, gzipped.
func benchBlob(b *testing.B) []byte {
	b.Helper()
	if name := os.Getenv("LAYERFS_GZIP"); name != "" {
		blob, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		return blob
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	err := filepath.WalkDir(filepath.Join(runtime.GOROOT(), "src", "net"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(p)
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

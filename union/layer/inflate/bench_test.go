package inflate

import (
	"bytes"
	"compress/gzip"
	"math/rand/v2"
	"os"
	"testing"
)

// benchBlob is the file LAYERFS_GZIP (a layer's blob tells most), or sample text gzipped.
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
	if _, err := w.Write(sampleText(rand.New(rand.NewPCG(1, 1)), 32<<20)); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

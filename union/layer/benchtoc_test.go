package layer_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/suite"
)

const benchFile = 32 << 20

// BenchmarkRandomReadTOC reads 64 KiB at random places of a file of a layer with a TOC,
// each for the first time: with the chunks that Encode makes, and with those of 64 KiB of
// the tests' encoders.
func BenchmarkRandomReadTOC(b *testing.B) {
	tar := layertest.Tar("text f 32MiB")
	for algorithm := range hasTOC {
		b.Run("Encode/"+algorithm, func(b *testing.B) {
			var packed bytes.Buffer
			e, err := layer.Encode(b.Context(), &packed, bytes.NewReader(tar), layer.Compression{Algorithm: algorithm})
			if err != nil {
				b.Fatal(err)
			}
			benchRandom(b, e.Descriptor, packed.Bytes())
		})
	}
	for _, format := range slices.Sorted(maps.Keys(suite.Encoders)) {
		b.Run("64KiB/"+format, func(b *testing.B) {
			packed, desc, _, err := suite.Encoders[format](tar)
			if err != nil {
				b.Fatal(err)
			}
			desc.Digest, desc.Size = digest.FromBytes(packed), int64(len(packed))
			benchRandom(b, desc, packed)
		})
	}
}

func benchRandom(b *testing.B, desc ocispec.Descriptor, packed []byte) {
	var l *layer.Layer
	var s *cache.Store
	var fetched int64
	var used []float64
	r, p := rand.New(rand.NewPCG(3, 4)), make([]byte, 64<<10)
	end := func() {
		if l != nil {
			fetched += l.Status().Fetched
			_ = errors.Join(l.Close(), s.Close())
		}
	}
	for i := 0; b.Loop(); i++ {
		if i%8 == 0 { // a fresh layer, before too much of it is there
			b.StopTimer()
			end()
			l, s = benchOpen(b, desc, packed)
			fetched -= l.Status().Fetched
			b.StartTimer()
		}
		id, _ := l.Lookup(layer.Root, "f")
		before := cpu()
		if _, err := l.ReadAt(b.Context(), id, p, r.Int64N(benchFile-64<<10)); err != nil && err != io.EOF {
			b.Fatal(err)
		}
		used = append(used, cpu()-before)
	}
	b.StopTimer()
	end()
	b.ReportMetric(median(used)*1e3, "cpu-ms/read-p50")
	b.ReportMetric(float64(fetched)/float64(b.N), "fetched-B/read")
}

func benchOpen(b *testing.B, desc ocispec.Descriptor, packed []byte) (*layer.Layer, *cache.Store) {
	b.Helper()
	s, err := cache.Open(b.TempDir(), cache.Options{})
	if err != nil {
		b.Fatal(err)
	}
	l, err := layer.Open(b.Context(), desc, &blob{b: packed}, s, layer.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return l, s
}

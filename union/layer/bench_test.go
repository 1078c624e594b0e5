package layer_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// benchLayer is the blob in the file that LAYERFS_BENCH_LAYER names, or some 100 MB of text.
func benchLayer(b *testing.B) (ocispec.Descriptor, *blob) {
	b.Helper()
	if path := os.Getenv("LAYERFS_BENCH_LAYER"); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		return ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data)), MediaType: ocispec.MediaTypeImageLayerGzip}, &blob{b: data}
	}
	data, desc, _ := layertest.Blob("text a 64MiB\nrandom b 8MiB\ntext c 32MiB", "gzip", nil)
	return desc, &blob{b: data}
}

// BenchmarkOpen opens a layer from nothing: fetched, decoded, hashed twice, indexed, packed.
func BenchmarkOpen(b *testing.B) {
	desc, r := benchLayer(b)
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		s, err := cache.Open(dir, cache.Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		l, err := layer.Open(b.Context(), desc, r, s, layer.Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		index, err := s.Index(desc.Digest)
		b.SetBytes(layer.PackSize(l))
		b.ReportMetric(float64(len(index))/float64(desc.Size)*100, "index-%")
		if err := errors.Join(err, l.Close(), s.Close(), os.RemoveAll(dir)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkOpenTwo opens two layers at once.
func BenchmarkOpenTwo(b *testing.B) {
	desc, r := benchLayer(b)
	for b.Loop() {
		b.StopTimer()
		dirs := []string{b.TempDir(), b.TempDir()}
		done := make(chan error, len(dirs))
		b.StartTimer()
		for _, dir := range dirs {
			go func() {
				s, err := cache.Open(dir, cache.Options{})
				if err != nil {
					done <- err
					return
				}
				l, err := layer.Open(b.Context(), desc, r, s, layer.Options{})
				done <- err
				if err == nil {
					b.SetBytes(2 * layer.PackSize(l))
					err = l.Close()
				}
				done <- errors.Join(err, s.Close(), os.RemoveAll(dir))
			}()
		}
		for range 2 * len(dirs) {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
	}
}

// cpu is the processor time of this process, in seconds.
func cpu() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// evict closes l and s and opens them again without the pack.
func evict(b *testing.B, l *layer.Layer, s *cache.Store, dir string, desc ocispec.Descriptor, r *blob) (*layer.Layer, *cache.Store) {
	b.Helper()
	if err := errors.Join(l.Close(), s.Close()); err != nil {
		b.Fatal(err)
	}
	s, err := cache.Open(dir, cache.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Evict(desc.Digest); err != nil {
		b.Fatal(err)
	}
	if l, err = layer.Open(b.Context(), desc, r, s, layer.Options{}); err != nil {
		b.Fatal(err)
	}
	return l, s
}

// largeFiles are the regular files of at least 64 KiB.
func largeFiles(l *layer.Layer) (ids []layer.ID) {
	for id := range layer.ID(l.Len()) {
		if e := l.Entry(id); e.Mode&syscall.S_IFMT == syscall.S_IFREG && e.Size >= 64<<10 {
			ids = append(ids, id)
		}
	}
	return ids
}

// BenchmarkRandomRead reads 64 KiB at random places of a layer whose pack is gone, each for the first time.
func BenchmarkRandomRead(b *testing.B) {
	desc, r := benchLayer(b)
	dir := b.TempDir()
	s, err := cache.Open(dir, cache.Options{})
	if err != nil {
		b.Fatal(err)
	}
	l, err := layer.Open(b.Context(), desc, r, s, layer.Options{})
	if err != nil {
		b.Fatal(err)
	}
	l, s = evict(b, l, s, dir, desc, r)
	ids, rnd, p := largeFiles(l), rand.New(rand.NewPCG(1, 1)), make([]byte, 64<<10)
	var used []float64
	for n := 0; b.Loop(); n++ {
		if n%40 == 39 {
			b.StopTimer()
			l, s = evict(b, l, s, dir, desc, r)
			b.StartTimer()
		}
		id := ids[rnd.IntN(len(ids))]
		before := cpu()
		if _, err := l.ReadAt(context.Background(), id, p, rnd.Int64N(l.Entry(id).Size-int64(len(p))+1)); err != nil && err != io.EOF {
			b.Fatal(err)
		}
		used = append(used, cpu()-before)
	}
	b.ReportMetric(median(used)*1e3, "cpu-ms/read-p50")
	b.StopTimer()
	_ = errors.Join(l.Close(), s.Close())
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkRefetch reads all of a layer again by its sections, on 1 and on all cores.
func BenchmarkRefetch(b *testing.B) {
	desc, r := benchLayer(b)
	dir := b.TempDir()
	s, err := cache.Open(dir, cache.Options{})
	if err != nil {
		b.Fatal(err)
	}
	l, err := layer.Open(b.Context(), desc, r, s, layer.Options{})
	if err != nil {
		b.Fatal(err)
	}
	all := runtime.GOMAXPROCS(0)
	for name, cores := range map[string]int{"1": 1, "all": all} {
		b.Run(name, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
			for b.Loop() {
				b.StopTimer()
				l, s = evict(b, l, s, dir, desc, r)
				b.SetBytes(layer.PackSize(l))
				b.StartTimer()
				if err := l.Fetch(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	_ = errors.Join(l.Close(), s.Close())
}

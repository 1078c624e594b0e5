package layer_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/suite"
)

var flips = flag.Int("flips", 400, "how many bytes TestFlips flips, one at a time")

const flipText = "dir d 0755\nrandom d/big 90KiB\nfile d/f \"text\"\nlink l d/f\nrandom e 30KiB\nsymlink s d\nfile z \"last\""

// A flipTarget is a layer in one form, and where a byte of it may be flipped.
type flipTarget struct {
	name string
	b    []byte // the blob
	desc ocispec.Descriptor
	ztoc []byte
	what string // blob, sections (the blob, opened by its index), pack, index, zTOC
}

// flipTargets lists every form of a layer with everything that is read of it.
func flipTargets(t *testing.T) (list []flipTarget) {
	for _, format := range append(slices.Clone(streamed), slices.Sorted(maps.Keys(suite.Encoders))...) {
		b, desc, _ := layertest.Blob(flipText, format, suite.Encoders[format])
		for _, what := range []string{"blob", "sections", "pack", "index"} {
			list = append(list, flipTarget{format, b, desc, nil, what})
		}
	}
	b, desc, _ := layertest.Blob(flipText, "gzip", nil)
	for _, what := range []string{"blob", "sections", "pack", "index", "zTOC"} {
		list = append(list, flipTarget{"soci", b, desc, zTOC(t, b, 20_000), what})
	}
	return list
}

// TestFlips flips one byte of a blob, of what is cached of it or of its zTOC: the tree and every
// file are right all the same, or an error says that they are not; what is only damaged in the cache is always mended.
func TestFlips(t *testing.T) {
	targets := flipTargets(t)
	r := rand.New(rand.NewPCG(uint64(*flips), 3))
	stores := map[string]string{}
	refused := map[string]int{}
	for i := range *flips {
		f := &targets[i%len(targets)]
		dir := stores[f.name]
		if dir == "" {
			dir = t.TempDir()
			stores[f.name] = dir
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // or it hangs
		at, err := f.flip(ctx, t, dir, r)
		cancel()
		if err != nil {
			refused[f.what]++
		}
		if err != nil && !f.mayFail(err) {
			t.Errorf("%s: byte %d of the %s flipped: %v", f.name, at, f.what, err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d flips, of which were errors: %v", *flips, refused)
	if refused["blob"] == 0 || refused["sections"] == 0 {
		t.Error("no flipped byte of a blob was an error")
	}
}

var sayDigest = regexp.MustCompile(`sha256:[0-9a-f]{64}.*sha256:[0-9a-f]{64}`)

// mayFail reports whether an error is one of those that a flipped byte may be, and says what and where.
func (f *flipTarget) mayFail(err error) bool {
	switch f.what {
	case "pack", "index":
		return false
	case "sections":
		// The layer's digest, where in the blob, and what the bytes should have been.
		at := regexp.MustCompile(`(bytes \d+ to \d+|at \d+) of the blob`)
		return errors.Is(err, layer.ErrDigest) && at.MatchString(err.Error()) && sayDigest.MatchString(err.Error())
	}
	return errors.Is(err, layer.ErrDigest) || errors.Is(err, layer.ErrFormat) || errors.Is(err, layer.ErrUnsupported)
}

// flip flips a byte, opens the layer, compares what it has, and cleans up.
func (f *flipTarget) flip(ctx context.Context, t *testing.T, dir string, r *rand.Rand) (at int, err error) {
	blobBytes, ztoc := bytes.Clone(f.b), bytes.Clone(f.ztoc)
	o := layer.Options{Logger: slog.New(slog.DiscardHandler)}
	if f.ztoc != nil {
		o.ZTOC = zTOCFrom(f.ztoc) // vouches for what follows
		o.ZTOC.Open = zTOCFrom(ztoc).Open
	}
	s := openStore(t, dir)
	defer func() { closing(t, s) }()
	if f.what != "blob" && f.what != "zTOC" {
		l, err := layer.Open(ctx, f.desc, &blob{b: f.b}, s, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.compare(ctx, l); err != nil {
			t.Fatal(err)
		}
		closing(t, l)
		closing(t, s) // or the pack is in use until it is on the disk
		s = openStore(t, dir)
		if f.what == "sections" {
			err = s.Evict(f.desc.Digest)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		closing(t, s)
		s = openStore(t, dir)
		if err := s.Remove(f.desc.Digest); err != nil {
			t.Error(err)
		}
	}()
	switch f.what {
	case "blob", "sections":
		at = r.IntN(len(blobBytes))
		blobBytes[at] ^= 1 << r.IntN(8)
	case "zTOC":
		at = r.IntN(len(ztoc))
		ztoc[at] ^= 1 << r.IntN(8)
	default:
		at = flipFile(t, filepath.Join(dir, "layers/sha256", f.desc.Digest.Encoded(), f.what), r)
	}
	l, err := layer.Open(ctx, f.desc, &blob{b: blobBytes}, s, o)
	if err != nil {
		return at, err
	}
	err = f.compare(ctx, l)
	closing(t, l)
	return at, err
}

// compare returns the first error of reading all of a layer; what is wrong without an error is one that nothing wraps.
func (f *flipTarget) compare(ctx context.Context, l *layer.Layer) error {
	entries, err := layertest.Parse(flipText)
	if err != nil {
		return err
	}
	var first error
	for _, e := range entries {
		id, ok := lookup(l, e.Name)
		if !ok {
			return fmt.Errorf("%s is not there", e.Name)
		}
		got := l.Entry(id)
		if e.Type == tar.TypeLink {
			continue
		}
		if int64(got.Mode&0o7777) != e.Mode || got.Sec != e.Sec || got.Link != e.Link || e.Type == tar.TypeReg && got.Size != e.Size {
			return fmt.Errorf("%s is %+v, want %+v", e.Name, got, e)
		}
		if e.Type != tar.TypeReg {
			continue
		}
		want, err := io.ReadAll(e.Content())
		if err != nil {
			return err
		}
		b, err := readFile(ctx, l, e.Name, 1<<16)
		if err != nil {
			first = cmp.Or(first, err)
		} else if !bytes.Equal(b, want) {
			return fmt.Errorf("%s: wrong bytes", e.Name)
		}
	}
	return first
}

// flipFile flips a bit of a file.
func flipFile(t *testing.T, path string, r *rand.Rand) (at int) {
	b, err := os.ReadFile(path)
	if err == nil {
		at = r.IntN(len(b))
		b[at] ^= 1 << r.IntN(8)
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return at
}

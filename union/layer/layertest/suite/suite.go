// Package suite is the conformance suite of layers: what every format has to show of the same archive.
//
// An implementation is given as a function that opens a blob:
//
//	suite.Run(t, func(t *testing.T, blob []byte, desc ocispec.Descriptor, diffID digest.Digest) suite.Layer {
//		l, err := layer.Open(t.Context(), desc, ranger(blob), store, layer.Options{DiffID: diffID})
//		…
//	})
package suite

import (
	"context"
	"iter"
	"maps"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/layerfs/layerfs/union/layer/layertest/estargztest"
	"github.com/layerfs/layerfs/union/layer/layertest/zstdchunkedtest"
)

// A Layer is what the suite tests. *layer.Layer is one.
type Layer interface {
	Len() int
	Entry(id layer.ID) layer.Entry
	Lookup(dir layer.ID, name string) (layer.ID, bool)
	Children(dir layer.ID) iter.Seq2[string, layer.ID]
	Whiteouts(dir layer.ID) iter.Seq[string]
	ForeignLinks() []layer.ForeignLink
	Defects() []layer.Defect
	ReadAt(ctx context.Context, id layer.ID, p []byte, off int64) (int, error)
	NextData(id layer.ID, off int64) (start, end int64)
	Close() error
}

// Open opens a blob. It fails the test when it cannot.
type Open func(t *testing.T, blob []byte, desc ocispec.Descriptor, diffID digest.Digest) Layer

// Encoders are those of the formats with a TOC.
var Encoders = map[string]layertest.Encoder{
	"estargz":             estargztest.Encode,
	"zstd:chunked":        zstdchunkedtest.Encode,
	"zstd:chunked stargz": zstdchunkedtest.EncodeStargz,
}

// Run runs every case in every format, or in the formats that are named.
func Run(t *testing.T, open Open, formats ...string) {
	if len(formats) == 0 {
		formats = append(layertest.Formats(), slices.Sorted(maps.Keys(Encoders))...)
	}
	for _, format := range formats {
		t.Run(format, func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) { c.run(t, format, open) })
			}
		})
	}
}

// A testCase is an archive and what a layer shows of it. want is a text archive
// in no order, with lines of these kinds besides:
//
//	implied NAME         a directory that has no entry
//	foreign NAME TARGET  a hardlink whose target the layer has not
//	whiteout NAME        as in an archive: a name hidden below
//	opaque NAME          as in an archive: a directory that hides those below
type testCase struct {
	name, text, want string
	noTOC            limit                       // why there is none such in formats with a TOC; "" when there is
	defects          bool                        // something is wrong with it, and reported
	check            func(t *testing.T, l Layer) // in place of want
}

func (c *testCase) run(t *testing.T, format string, open Open) {
	if c.noTOC.of(format) {
		t.Skip(format + ": " + string(c.noTOC))
	}
	blob, desc, diffID := layertest.Blob(c.text, format, Encoders[format])
	l := open(t, blob, desc, diffID)
	defer func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	checkData(t, l)
	if c.check != nil {
		c.check(t, l)
		return
	}
	compare(t, c.expected(t), dump(t, l))
	if defects := l.Defects(); c.defects != (len(defects) > 0) {
		t.Errorf("defects: %v; wanted some: %v", defects, c.defects)
	}
}

// compare reports the lines that are only on one side.
func compare(t *testing.T, want, got []string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("missing:    %s", w)
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("unexpected: %s", g)
		}
	}
	if !t.Failed() && len(want) != len(got) {
		t.Errorf("%d lines, want %d", len(got), len(want))
	}
}

package union

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
)

// content compares the content of two regular files by what is known of it.
func (d *differ) content(a, b spot, was, now *record) (differs, undecided bool) {
	switch {
	case was.size != now.size:
		return true, false
	case was.size == 0, d.sameNode(a, b):
		return false, false
	}
	if differs, known := d.compareSums(a, b); known {
		return differs, false
	}
	return was.mtime != now.mtime, d.o.Content
}

// compareSums compares the digests that indexes have.
func (d *differ) compareSums(a, b spot) (differ, known bool) {
	x, okX := d.a.sums(a)
	y, okY := d.b.sums(b)
	if !okX || !okY || len(x) != len(y) {
		return false, false
	}
	for i := range x {
		if x[i].Off != y[i].Off || x[i].Len != y[i].Len {
			return false, false
		}
	}
	return !slices.Equal(x, y), true
}

// readUndecided finds out by reading what nothing else can tell. A few files are read at a
// time: over a network each of them waits for an answer.
func (d *differ) readUndecided(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4 * runtime.GOMAXPROCS(0))
	for _, f := range d.found {
		if !f.undecided {
			continue
		}
		g.Go(func() (err error) {
			if f.data, err = d.read(ctx, f); err != nil {
				return fmt.Errorf("compare /%s: %w", f.Path, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// read tells whether two files of the same size differ, up to the first byte that does.
// An upper file that is gone or became shorter meanwhile is another one.
func (d *differ) read(ctx context.Context, f *finding) (differs bool, err error) {
	a, closeA, err := d.a.open(ctx, f.a)
	if err != nil {
		return isGone(err), unlessGone(err)
	}
	defer closeA()
	b, closeB, err := d.b.open(ctx, f.b)
	if err != nil {
		return isGone(err), unlessGone(err)
	}
	defer closeB()
	x, y := make([]byte, min(f.Size, diffBuffer)), make([]byte, min(f.Size, diffBuffer))
	for off := skipHoles(a, b, 0, f.Size); off < f.Size; off = skipHoles(a, b, off, f.Size) {
		n := min(f.Size-off, diffBuffer)
		gotX, errX := a.read(x[:n], off)
		gotY, errY := b.read(y[:n], off)
		if err := errors.Join(errX, errY); err != nil {
			return false, err
		}
		if gotX != gotY || gotX == 0 || !bytes.Equal(x[:gotX], y[:gotY]) {
			return true, nil
		}
		off += int64(gotX)
	}
	return false, nil
}

func unlessGone(err error) error {
	if isGone(err) {
		return nil
	}
	return err
}

// diffBuffer is what is compared at a time.
const diffBuffer = 256 << 10

// skipHoles is where, from off on, one of two files has data.
func skipHoles(a, b content, off, size int64) int64 {
	if off >= size {
		return size
	}
	x, _ := a.nextData(off, size)
	y, _ := b.nextData(off, size)
	return min(x, y)
}

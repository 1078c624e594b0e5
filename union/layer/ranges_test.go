package layer_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// watched is a blob that counts how many of its ranges are read at once, and fails at one of them.
type watched struct {
	blob
	open, most atomic.Int64
	fail       int64 // the offset of the range that fails; 0: none
}

var errFar = errors.New("far away")

func (w *watched) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if w.fail > 0 && off <= w.fail && w.fail < off+n {
		return nil, errFar
	}
	body, err := w.blob.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	now := w.open.Add(1)
	for most := w.most.Load(); now > most && !w.most.CompareAndSwap(most, now); most = w.most.Load() {
	}
	return &watchedBody{body, w}, nil
}

type watchedBody struct {
	io.ReadCloser
	w *watched
}

func (b *watchedBody) Close() error {
	b.w.open.Add(-1)
	return b.ReadCloser.Close()
}

// TestParallelRanges: a large blob comes in several ranges at once, all of them closed in the
// end, and the error of one of them ends the opening.
func TestParallelRanges(t *testing.T) {
	b, desc, _ := layertest.Blob("random a 90MiB\nfile d/f \"text\"", "tar", nil)
	w := &watched{blob: blob{b: b}}
	l := mustOpen(t, desc, w, newStore(t))
	wantFile(t, l)
	closing(t, l)
	if w.open.Load() != 0 || w.most.Load() != 3 || w.requests.Load() != 6 {
		t.Errorf("%d open, %d at once, %d requests", w.open.Load(), w.most.Load(), w.requests.Load())
	}
	w = &watched{blob: blob{b: b}, fail: 50 << 20}
	if _, err := layer.Open(t.Context(), desc, w, newStore(t), layer.Options{}); !errors.Is(err, errFar) {
		t.Errorf("one range cannot be had: %v", err)
	}
	if w.open.Load() != 0 {
		t.Errorf("%d ranges left open", w.open.Load())
	}
}

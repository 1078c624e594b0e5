package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/layerfs/layerfs/union/layer"
)

// Twins are hosts of one blob. The first that is believed is asked.
type twins struct {
	mu     sync.Mutex
	hosts  []*blob
	wrong  []bool // is not believed any more; protected by mu
	doubts int    // protected by mu
}

func (w *twins) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	w.mu.Lock()
	at := 0
	for at < len(w.wrong)-1 && w.wrong[at] {
		at++
	}
	w.mu.Unlock()
	rc, err := w.hosts[at].ReadRange(ctx, off, n)
	return &twinBody{rc, w, at}, err
}

type twinBody struct {
	io.ReadCloser
	w  *twins
	at int
}

func (b *twinBody) Doubt() bool {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.doubts++
	b.w.wrong[b.at] = true
	for _, wrong := range b.w.wrong {
		if !wrong {
			return true
		}
	}
	b.w.wrong = make([]bool, len(b.w.hosts))
	return false
}

// newTwins are hosts that have these bytes.
func newTwins(contents ...[]byte) *twins {
	w := &twins{wrong: make([]bool, len(contents))}
	for _, b := range contents {
		w.hosts = append(w.hosts, &blob{b: b})
	}
	return w
}

// TestWrongHost flips bytes of what the first hosts of a blob give: everything is right all the same, for it is
// had from the last one; and when that one is no better, it is an error and no endless search.
func TestWrongHost(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	doubts := 0
	for _, f := range flipTargets(t) {
		if f.what != "blob" && f.what != "zTOC" {
			continue
		}
		for range 10 {
			at := r.IntN(len(f.b))
			if f.what == "zTOC" {
				at = r.IntN(len(f.ztoc))
			}
			doubts += f.readTwins(t, at)
		}
	}
	if doubts < 100 {
		t.Errorf("wrong bytes were doubted %d times", doubts)
	}
}

// readTwins opens and reads a layer whose hosts but the last one have byte at flipped.
func (f *flipTarget) readTwins(t *testing.T, at int) (doubts int) {
	t.Helper()
	s := newStore(t)
	good, bad, worse := f.b, bytes.Clone(f.b), bytes.Clone(f.b)
	goodTOC, badTOC := f.ztoc, bytes.Clone(f.ztoc)
	if f.what == "zTOC" {
		badTOC[at] ^= 1
	} else {
		bad[at] ^= 1
		worse[at] ^= 3
	}
	w, tocs := newTwins(bad, worse, good), newTwins(badTOC, goodTOC)
	o := layer.Options{}
	if f.ztoc != nil {
		o.ZTOC = zTOCFrom(goodTOC)
		o.ZTOC.Open = func(ctx context.Context) (io.ReadCloser, error) { return tocs.ReadRange(ctx, 0, int64(len(goodTOC))) }
	}
	l, err := layer.Open(t.Context(), f.desc, w, s, o)
	if err != nil {
		t.Errorf("%s, %s, byte %d: %v", f.name, f.what, at, err)
		return 0
	}
	defer closing(t, l)
	if err := f.compare(t.Context(), l); err != nil {
		t.Errorf("%s, %s, byte %d: %v", f.name, f.what, at, err)
	}
	return w.doubts + tocs.doubts
}

// TestAllHostsWrong: the error is that of the bytes, and each host was asked.
func TestAllHostsWrong(t *testing.T) {
	for _, f := range flipTargets(t) {
		if f.what != "blob" || f.name != "gzip" {
			continue
		}
		bad := bytes.Clone(f.b)
		bad[len(bad)/2] ^= 1
		w := newTwins(bad, bad, bad)
		if _, err := layer.Open(t.Context(), f.desc, w, newStore(t), layer.Options{}); !errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: %v", f.name, err)
		}
		for i, h := range w.hosts {
			if h.requests.Load() == 0 {
				t.Errorf("host %d was not asked", i)
			}
		}
	}
}

// TestOtherTar: a tar that is not the image's is nobody's fault, if the blob is the right one.
func TestOtherTar(t *testing.T) {
	f := flipTargets(t)[0]
	w := newTwins(f.b, f.b)
	_, err := layer.Open(t.Context(), f.desc, w, newStore(t), layer.Options{DiffID: f.desc.Digest[:len(f.desc.Digest)-4] + "0000"})
	if !errors.Is(err, layer.ErrDigest) || w.doubts != 0 {
		t.Errorf("%d doubts, %v", w.doubts, err)
	}
}

package suite

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/union/layer"
)

// checkData holds ReadAt and NextData of every regular file to their contracts.
func checkData(t *testing.T, l Layer) {
	t.Helper()
	for id := range layer.ID(l.Len()) {
		e := l.Entry(id)
		if e.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		whole := make([]byte, e.Size)
		if n, err := l.ReadAt(t.Context(), id, whole, 0); int64(n) != e.Size || err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("entry %d: ReadAt of all gives %d of %d bytes, %v", id, n, e.Size, err)
			continue
		}
		checkPieces(t, reader{l, id}, whole)
		checkEnd(t, reader{l, id}, e.Size)
		checkHoles(t, l, id, whole)
	}
}

// checkPieces reads pieces that begin and end where nothing else does.
func checkPieces(t *testing.T, r reader, whole []byte) {
	t.Helper()
	size := int64(len(whole))
	for _, at := range []int64{0, 1, 511, 512, 4095, 64<<10 - 1, 1 << 20, size / 2, size - 2} {
		for _, n := range []int64{1, 3, 4097, 200_001} {
			if at < 0 || at+n > size {
				continue
			}
			p := make([]byte, n)
			got, err := r.ReadAt(p, at)
			if int64(got) != n || err != nil && (!errors.Is(err, io.EOF) || at+n != size) {
				t.Errorf("entry %d: ReadAt of %d at %d: %d, %v", r.id, n, at, got, err)
			} else if !bytes.Equal(p, whole[at:at+n]) {
				t.Errorf("entry %d: ReadAt of %d at %d gives other bytes than the whole read", r.id, n, at)
			}
		}
	}
}

// checkEnd: short reads say io.EOF (io.ReaderAt).
func checkEnd(t *testing.T, r reader, size int64) {
	t.Helper()
	for _, at := range []int64{size, size + 1, size + 1<<40} {
		if n, err := r.ReadAt(make([]byte, 8), at); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("entry %d: ReadAt at %d of %d: %d, %v, want EOF", r.id, at, size, n, err)
		}
	}
	if at := max(size-3, 0); true {
		if n, err := r.ReadAt(make([]byte, 8), at); int64(n) != size-at || !errors.Is(err, io.EOF) {
			t.Errorf("entry %d: ReadAt across the end: %d, %v, want %d and EOF", r.id, n, err, size-at)
		}
	}
}

// checkHoles: the data of NextData goes up to the end of the file, and all
// between is zeros.
func checkHoles(t *testing.T, l Layer, id layer.ID, whole []byte) {
	t.Helper()
	size := int64(len(whole))
	for at := int64(0); at < size; {
		start, end := l.NextData(id, at)
		if start < at || start > size || end > size || start < size && end <= start {
			t.Errorf("entry %d: NextData(%d) of %d is %d, %d", id, at, size, start, end)
			return
		}
		if len(bytes.Trim(whole[at:start], "\x00")) > 0 {
			t.Errorf("entry %d: NextData says that %d to %d is a hole", id, at, start)
		}
		if start == size {
			return
		}
		at = end
	}
}

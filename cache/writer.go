package cache

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// minHole is the shortest run of zeros that becomes a hole: shorter ones cost more in extents than they save.
const minHole = 4 * blockSize

var zeros [minHole]byte

// A Writer receives the pack of one layer as a whole. Nobody sees it before Commit. It is
// for one goroutine.
type Writer struct {
	s    *Store
	d    digest.Digest
	f    *os.File // nil after Commit and Abort
	buf  []byte   // not written yet; less than UnitSize
	off  int64    // where buf belongs
	ends []int64  // of the units that are written
	crcs []uint32
	err  error // the first of Write
}

// Create starts the pack of d. The caller ends it with Commit or Abort (Abort after
// Commit does nothing).
func (s *Store) Create(d digest.Digest) (*Writer, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("create pack: digest %q: %w", d, err)
	}
	f, err := s.temp()
	if err != nil {
		return nil, fmt.Errorf("create pack %s: %w", d, err)
	}
	return &Writer{s: s, d: d, f: f, buf: make([]byte, 0, UnitSize)}, nil
}

// Write appends b. Runs of zeros become holes. After an error (a full disk) only Abort is
// of use.
func (w *Writer) Write(b []byte) (n int, err error) {
	if w.f == nil {
		return 0, fmt.Errorf("write pack %s: %w", w.d, fs.ErrClosed)
	}
	for n < len(b) && w.err == nil {
		rest := b[n:]
		if len(w.buf) == 0 && len(rest) >= UnitSize {
			whole := rest[:len(rest)/UnitSize*UnitSize]
			w.flush(whole)
			n += len(whole)
			continue
		}
		k := min(len(rest), UnitSize-len(w.buf))
		w.buf = append(w.buf, rest[:k]...)
		n += k
		if len(w.buf) == UnitSize {
			w.flush(w.buf)
			w.buf = w.buf[:0]
		}
	}
	if w.err != nil {
		return 0, fmt.Errorf("write pack %s: %w", w.d, w.err)
	}
	return n, nil
}

// Cut ends a unit with the bytes written so far. Between two cuts, units have UnitSize
// but for the last, which is what is left; [Units] tells the same of a pack to be filled.
func (w *Writer) Cut() {
	w.flush(w.buf)
	w.buf = w.buf[:0]
}

// Units are the units of a pack of size bytes that a Writer made with Cut at each of cuts, which rise:
// vouched for, without sums.
func Units(size int64, cuts []int64) []Unit {
	units := make([]Unit, 0, size/UnitSize+int64(len(cuts))+1)
	for off := int64(0); off < size; {
		for len(cuts) > 0 && cuts[0] <= off {
			cuts = cuts[1:]
		}
		end := min(off+UnitSize, size)
		if len(cuts) > 0 {
			end = min(end, cuts[0])
		}
		units = append(units, Unit{Off: off, Len: end - off, Vouched: true})
		off = end
	}
	return units
}

// flush writes b, which is whole units but for the last before a cut.
func (w *Writer) flush(b []byte) {
	for off := 0; off < len(b); off += UnitSize {
		end := min(off+UnitSize, len(b))
		w.crcs = append(w.crcs, crc32.Checksum(b[off:end], castagnoli))
		w.ends = append(w.ends, w.off+int64(end))
	}
	for len(b) > 0 && w.err == nil {
		data, hole := untilHole(b)
		if data > 0 {
			_, w.err = w.f.WriteAt(b[:data], w.off)
		}
		w.off += int64(data + hole)
		b = b[data+hole:]
	}
}

// untilHole returns how many bytes at the start of b must be written, and how many zeros
// after them need not be.
func untilHole(b []byte) (data, hole int) {
	for data < len(b) && !zeroAt(b[data:], minHole) {
		data = min(data+blockSize, len(b))
	}
	for data+hole < len(b) && zeroAt(b[data+hole:], blockSize) {
		hole += blockSize
	}
	return data, hole
}

func zeroAt(b []byte, n int) bool { return len(b) >= n && bytes.Equal(b[:n], zeros[:n]) }

// Commit makes the pack and its index (nil: none) visible to everybody and returns the pack,
// to be closed by the caller; the disk is waited for in the background. When the same
// pack is there already, made by somebody faster, that one is returned. After an error
// nothing is left of the pack.
func (w *Writer) Commit(index []byte) (*Pack, error) {
	defer w.abort()
	if w.f == nil {
		return nil, fmt.Errorf("commit pack %s: %w", w.d, fs.ErrClosed)
	}
	w.flush(w.buf)
	if w.err != nil {
		return nil, fmt.Errorf("commit pack %s: %w", w.d, w.err)
	}
	c, err := w.s.acquire(w.d, func(dir string) (*content, error) { return w.publish(dir, index) })
	if err != nil {
		return nil, fmt.Errorf("commit pack %s: %w", w.d, err)
	}
	w.s.hold(c)
	w.s.background(func() {
		if err := c.settle(); err != nil {
			w.s.log.Warn("sync pack", "layer", c.d, "err", err)
		}
		w.s.release(c)
	})
	return &Pack{c: c}, nil
}

// publish needs the door.
func (w *Writer) publish(dir string, index []byte) (*content, error) {
	layout := layoutOfEnds(w.ends)
	if index != nil {
		if err := w.s.putIndexLocked(dir, index); err != nil {
			return nil, err
		}
	}
	c, err := w.s.openComplete(w.d, dir)
	if err == nil && c.h.layout == layout {
		return c, nil
	}
	if err == nil {
		w.s.letGo(c) // it is cut into other units
	}
	return w.rename(dir, layout)
}

func (w *Writer) rename(dir string, layout [sha256.Size]byte) (*content, error) {
	m, sum := encodeEnds(w.ends)
	fillEntries(m, w.crcs)
	h := header{boot: w.s.boot, size: w.off, units: int64(len(w.ends)), layout: layout, ends: sum}
	if err := writeMeta(w.f, h, m); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Rename(w.f.Name(), filepath.Join(dir, "pack")); err != nil {
		return nil, err
	}
	c := newContent(w.s, w.d, w.f, h, w.ends, m)
	for i := range w.ends {
		c.setState(i, checked)
	}
	c.dir = dir
	w.f = nil
	return w.s.adopt(c), nil
}

// Abort throws away what was written. After Commit it does nothing.
func (w *Writer) Abort() error {
	w.abort()
	return nil
}

func (w *Writer) abort() {
	if w.f == nil {
		return
	}
	if err := os.Remove(w.f.Name()); err != nil {
		w.s.log.Warn("remove temporary file", "path", w.f.Name(), "err", err)
	}
	letGo(w.f)
	w.f = nil
}

package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

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
	f    file    // nil after Commit and Abort
	buf  []byte  // not written yet; less than UnitSize
	off  int64   // where buf belongs
	ends []int64 // of the units that are written
	crcs []uint32
	lost []bool // units that there was no room for
	kept int64  // bytes that were written
	err  error  // the first of Write

	full   error // there is no room for the file
	parts  bool  // see MayLose
	warned bool
}

// Create starts the pack of d. The caller ends it with Commit or Abort (Abort after
// Commit does nothing).
func (s *Store) Create(d digest.Digest) (*Writer, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("create pack: digest %q: %w", d, err)
	}
	w := &Writer{s: s, d: d, buf: make([]byte, 0, UnitSize)}
	var err error
	if w.f, err = s.temp(); Refused(err) {
		w.full = err
		w.f, err = memoryFile(header{}, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("create pack %s: %w", d, err)
	}
	return w, nil
}

// MayLose says whether what is missing of the pack can be fetched again by itself: units for
// which there is no room, by the bound or on the disk, are then left out from now on, and whoever opens the
// pack with [Store.Pack] fetches them. Otherwise a full disk is an error, and the bound gives way. What was
// said last before Commit decides whether the pack may be evicted in parts.
func (w *Writer) MayLose(ok bool) { w.parts = ok }

// Lost reports whether anything was left out.
func (w *Writer) Lost() bool { return slices.Contains(w.lost, true) }

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
	for len(b) > 0 && w.err == nil {
		n := min(UnitSize, len(b))
		w.unit(b[:n])
		b = b[n:]
	}
}

// unit appends a unit.
func (w *Writer) unit(b []byte) {
	lost := !w.mayWrite(int64(len(b)))
	defer w.s.wrote(int64(len(b)))
	if !lost {
		err := w.writeData(b)
		if lost = err != nil && w.parts && Refused(err); !lost {
			w.err = err
		}
	}
	w.off += int64(len(b))
	w.ends = append(w.ends, w.off)
	w.crcs = append(w.crcs, crc32.Checksum(b, castagnoli))
	w.lost = append(w.lost, lost)
}

// mayWrite asks for room within the bound. A layer may not have more than half of it before anybody has read of it.
func (w *Writer) mayWrite(n int64) bool {
	err := w.s.room(n)
	if w.s.max > 0 && w.kept+n > w.s.max/2 {
		err = errNoRoom
	}
	if err == nil {
		w.kept += n
		return true
	}
	if !w.warned {
		w.warned = true
		w.s.log.Info("no room in the cache for all of a layer", "layer", w.d, "max", w.s.max, "left_out", w.parts)
	}
	return !w.parts
}

func (w *Writer) writeData(b []byte) error {
	if w.full != nil {
		return w.full
	}
	for at := w.off; len(b) > 0; {
		data, hole := untilHole(b)
		if data > 0 {
			if _, err := w.f.WriteAt(b[:data], at); err != nil {
				return err
			}
		}
		at += int64(data + hole)
		b = b[data+hole:]
	}
	return nil
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
// nothing is left of the pack; [Refused] tells those that only say that there is no room.
func (w *Writer) Commit(index []byte) (*Pack, error) {
	defer w.abort()
	if w.f == nil {
		return nil, fmt.Errorf("commit pack %s: %w", w.d, fs.ErrClosed)
	}
	w.flush(w.buf)
	if w.err == nil {
		w.err = w.full
	}
	if w.err != nil {
		return nil, fmt.Errorf("commit pack %s: %w", w.d, w.err)
	}
	w.s.makeRoom(int64(len(index) + len(w.ends)*entrySize))
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
	fillEntries(m, w.crcs, w.lost)
	h := header{boot: w.s.boot, size: w.off, units: int64(len(w.ends)), layout: layout, ends: sum, solid: !w.parts}
	if err := writeMeta(w.f, h, m); err != nil {
		return nil, err
	}
	if err := w.writeClocks(h); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := w.s.disk.rename(w.f.Name(), filepath.Join(dir, "pack")); err != nil {
		return nil, err
	}
	c := newContent(w.s, w.d, w.f, h, w.ends, m, nil)
	for i := range w.ends {
		if !w.lost[i] {
			c.setState(i, checked)
		}
	}
	c.dir = dir
	w.f = nil
	return w.s.adopt(c), nil
}

// writeClocks says that the regions that hold anything are used now.
func (w *Writer) writeClocks(h header) error {
	used, t := make([]byte, 8*h.regions()), now()
	var start int64
	for i, end := range w.ends {
		if !w.lost[i] {
			binary.LittleEndian.PutUint64(used[8*(start/regionSize):], uint64(t))
		}
		start = end
	}
	_, err := w.f.WriteAt(used, h.usedOff())
	return err
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
	if err := os.Remove(w.f.Name()); err != nil && w.full == nil {
		w.s.log.Warn("remove temporary file", "path", w.f.Name(), "err", err)
	}
	letGo(w.f)
	w.f = nil
}

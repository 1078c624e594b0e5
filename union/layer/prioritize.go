package layer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// A tarFile is a tar that can be read at any place. *io.SectionReader and *bytes.Reader are such.
type tarFile interface {
	io.ReaderAt
	Size() int64
}

// Landmarks of eStargz: files with one byte in the root directory.
const (
	prefetchLandmark   = ".prefetch.landmark"    // what stands before it is to be fetched at once
	noPrefetchLandmark = ".no.prefetch.landmark" // nothing is
)

// A tarEntry is where an entry stands in a tar, with all that belongs to it.
type tarEntry struct {
	start, end int64
	name       string // cleaned
	target     string // of a hardlink, cleaned
	isDir      bool
	moved      bool
}

// A sorter puts entries of a tar first. It moves only what means the same anywhere: an
// entry that is the only one of its name, whose directories are so too, and which no
// whiteout of its own layer hides.
type sorter struct {
	tar     tarFile
	entries []tarEntry
	byName  map[string]int // the entry of a name; -1 when it has several
	first   []int          // entries that were moved, in their new order
	end     int64          // of the last entry
	fixed   bool           // the order of all entries matters
}

// prioritized returns the tar with the files called paths first, in their order and each
// behind its directories, and a landmark behind them; what it has of landmarks and TOCs
// is left out.
func prioritized(ctx context.Context, tar tarFile, paths []string) (io.Reader, error) {
	s := &sorter{tar: tar, byName: map[string]int{}}
	if err := s.scan(&tarInput{ctx: ctx, r: io.NewSectionReader(tar, 0, tar.Size())}); err != nil {
		return nil, err
	}
	s.fixed = s.fixed || s.crossed()
	for _, p := range paths {
		s.pick(clean(p))
	}
	return s.reader(), nil
}

// scan finds the entries.
func (s *sorter) scan(tar io.Reader) error {
	r := &tarReader{in: tarStreamOf(tar)}
	for {
		h, err := r.next()
		if n := len(s.entries); n > 0 {
			s.entries[n-1].end = r.start
		}
		s.end = r.start
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		s.fixed = s.fixed || len(r.global.records) > 0 // that is for all entries to come
		e := tarEntry{start: r.start, name: clean(h.name), isDir: h.typ == tarDir}
		if h.typ == tarHardlink {
			e.target = clean(h.link)
		}
		if landmark(e.name) {
			e.moved = true // to nowhere
		} else if _, twice := s.byName[e.name]; twice {
			s.byName[e.name] = -1
		} else {
			s.byName[e.name] = len(s.entries)
		}
		s.entries = append(s.entries, e)
	}
}

// crossed reports whether an entry lies below another that is no directory, where a symlink
// may give it a second name.
func (s *sorter) crossed() bool {
	for i := range s.entries {
		for at := path.Dir(s.entries[i].name); at != "."; at = path.Dir(at) {
			if d, ok := s.byName[at]; ok && d >= 0 && !s.entries[d].isDir {
				return true
			}
		}
	}
	return false
}

// pick moves the entry called name, when that changes nothing but the order.
func (s *sorter) pick(name string) {
	i, ok := s.byName[name]
	if !ok || s.fixed || !s.movable(name) {
		return
	}
	e := &s.entries[i]
	if e.target != "" {
		t, ok := s.byName[e.target]
		if !ok || t < 0 || s.entries[t].target != "" || s.entries[t].isDir || !s.movable(e.target) {
			return
		}
		s.pick(e.target)
	}
	s.directories(path.Dir(name))
	s.move(i)
}

// movable reports whether name and its directories stand in the tar once at most, the
// directories as such, and without whiteouts.
func (s *sorter) movable(name string) bool {
	for at := name; at != "." && at != ""; at = path.Dir(at) {
		i, ok := s.byName[at]
		if ok && (i < 0 || at != name && !s.entries[i].isDir) {
			return false
		}
		dir, base := path.Split(at)
		if _, hidden := s.byName[dir+whiteoutPrefix+base]; hidden {
			return false
		}
	}
	return true
}

// directories moves dir behind those that it lies in, and with each what makes it opaque:
// some extractors empty a directory when they come to that.
func (s *sorter) directories(dir string) {
	if dir != "." {
		s.directories(path.Dir(dir))
	} else {
		dir = ""
	}
	for _, name := range []string{dir, path.Join(dir, opaqueMarker)} {
		if i, ok := s.byName[name]; ok && i >= 0 {
			s.move(i)
		}
	}
}

func (s *sorter) move(i int) {
	if !s.entries[i].moved {
		s.entries[i].moved = true
		s.first = append(s.first, i)
	}
}

// reader is the tar in its new order.
func (s *sorter) reader() io.Reader {
	readers := make([]io.Reader, 0, len(s.first)+8)
	for _, i := range s.first {
		readers = append(readers, s.run(s.entries[i].start, s.entries[i].end))
	}
	mark := noPrefetchLandmark
	if slices.ContainsFunc(s.first, func(i int) bool { return !s.entries[i].isDir }) {
		mark = prefetchLandmark
	}
	readers = append(readers, bytes.NewReader(tarOf(mark, []byte{0xf})))
	var start int64
	for i := range s.entries {
		if e := &s.entries[i]; e.moved {
			readers = append(readers, s.run(start, e.start))
			start = e.end
		}
	}
	return io.MultiReader(append(readers, s.run(start, s.end), io.NewSectionReader(s.tar, s.end, s.tar.Size()-s.end))...)
}

// run reads whole blocks; the last entry of an archive may end without its padding.
func (s *sorter) run(start, end int64) io.Reader {
	r := io.NewSectionReader(s.tar, start, end-start)
	if pad := padding(end - start); pad > 0 {
		return io.MultiReader(r, strings.NewReader(strings.Repeat("\x00", int(pad))))
	}
	return r
}

// sorted returns the tar in the order that c wants.
func (c *Compression) sorted(ctx context.Context, tar io.Reader) (io.Reader, error) {
	f, ok := tar.(tarFile)
	if !ok {
		return nil, fmt.Errorf("%w: a tar that is read once cannot be put into another order", ErrUnsupported)
	}
	return prioritized(ctx, f, c.Prioritized)
}

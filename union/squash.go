package union

import (
	"context"
	"iter"

	"golang.org/x/sys/unix"
)

// squashed lists all that showed at the moment, as a list that was made above an empty
// tree would have it: a directory, then what is in it, sorted by the bytes of the names,
// and no whiteouts. A root that no layer dates is not listed, unless it was changed.
func (m *Moment) squashed() iter.Seq[*record] {
	s := m.snapshot()
	root := s.record(nil, "", s.rootSpot())
	listed := root.kind == recordUpper || m.fs.tree().entry(Root).Explicit
	if m.fs.up != nil {
		root.kind = recordUpper // be it as it was
	}
	return func(yield func(*record) bool) {
		if !listed || yield(root) {
			s.each(&markedDir{}, s.rootSpot(), yield)
		}
	}
}

// each lists what is in a directory, and all below it.
func (s *snapshot) each(dir *markedDir, d spot, yield func(*record) bool) bool {
	for name, n := range s.children(d) {
		r := s.record(dir, name, n)
		if !yield(r) {
			return false
		}
		if r.typ() == unix.S_IFDIR && !s.each(&markedDir{path: r.path()}, n, yield) {
			return false
		}
	}
	return true
}

// fetched passes records on; while they are read, the files of the layers among them are
// fetched, some MB ahead.
func (f *FS) fetched(ctx context.Context, records iter.Seq[*record]) iter.Seq[*record] {
	return func(yield func(*record) bool) {
		ahead := f.tree().readAhead(ctx, lowerFiles(records))
		defer ahead.stop()
		for r := range records {
			if r.kind == recordLower {
				ahead.at(ID(r.num))
			}
			if !yield(r) {
				return
			}
		}
	}
}

// lowerFiles are the regular files of the tree with content, in the order of the first records of each.
func lowerFiles(records iter.Seq[*record]) []ID {
	var list []ID
	seen := map[ID]bool{}
	for r := range records {
		if r.kind != recordLower || r.typ() != unix.S_IFREG || r.size == 0 || seen[ID(r.num)] {
			continue
		}
		if r.nlink > 1 {
			seen[ID(r.num)] = true
		}
		list = append(list, ID(r.num))
	}
	return list
}

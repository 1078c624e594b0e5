package union

import (
	"context"
	"iter"

	"golang.org/x/sys/unix"
)

// squashed lists all that showed at the moment, as a list that was made above an empty
// tree would have it: a directory, then what is in it, sorted by the bytes of the names,
// and no whiteouts. While it is read the files of the layers are fetched, some MB ahead.
// A root that no layer dates is not listed, unless it was changed.
func (m *Moment) squashed(ctx context.Context) iter.Seq[*record] {
	s := m.snapshot()
	return func(yield func(*record) bool) {
		root := s.record(nil, "", s.rootSpot())
		listed := root.kind == recordUpper || m.fs.tree.entry(Root).Explicit
		if m.fs.up != nil {
			root.kind = recordUpper // be it as it was
		}
		ahead := m.fs.tree.readAhead(ctx, s.lowerFiles())
		defer ahead.stop()
		put := func(r *record) bool {
			if r.kind == recordLower {
				ahead.at(ID(r.num))
			}
			return yield(r)
		}
		if listed && !put(root) {
			return
		}
		s.each(&markedDir{}, s.rootSpot(), put)
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

// lowerFiles are the regular files of the tree with content, in the order in which their
// first names are listed.
func (s *snapshot) lowerFiles() []ID {
	var list []ID
	seen := map[ID]bool{}
	s.each(&markedDir{}, s.rootSpot(), func(r *record) bool {
		id := ID(r.num)
		if r.kind == recordLower && r.typ() == unix.S_IFREG && r.size > 0 && !seen[id] {
			if r.nlink > 1 {
				seen[id] = true
			}
			list = append(list, id)
		}
		return true
	})
	return list
}

package layer

// A nodeList is a list of nodes in pieces: as one slice it would, while it grows, be there twice.
type nodeList struct {
	pieces [][]node
	n      int
}

// pieceLen is small enough that a layer of some files does not pay for many more, and makes pieces
// of whole pages: the allocator rounds up.
const pieceLen = 1024

func (l *nodeList) add(n node) {
	if l.n%pieceLen == 0 {
		l.pieces = append(l.pieces, make([]node, 0, pieceLen))
	}
	last := &l.pieces[len(l.pieces)-1]
	*last = append(*last, n)
	l.n++
}

// at is a node, which stays where it is.
func (l *nodeList) at(i int32) *node { return &l.pieces[i/pieceLen][i%pieceLen] }

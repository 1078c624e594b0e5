package layer

import (
	"crypto/sha256"
	"sort"
)

// A Sum is the digest of a run of a file's bytes.
type Sum struct {
	Off, Len int64
	SHA256   [sha256.Size]byte
}

// Sums are the digests that the layer's index has of a regular file's content, in the
// order of the file; holes have none. ok is false when the index does not cover all of the
// file, as that of a plain tar. Nothing is fetched. Two files with equal sums are equal;
// equal runs with other digests make them different.
func (l *Layer) Sums(id ID) (sums []Sum, ok bool) {
	n := &l.tree.inodes[id]
	if l.lazy == nil || n.mode&modeFormat != modeReg {
		return nil, false
	}
	for _, x := range l.tree.fileExtents(id) {
		if sums, ok = l.lazy.sums(sums, x); !ok {
			return nil, false
		}
	}
	return sums, true
}

// sums appends those of an extent, if it is made of whole units that have a digest of
// their bytes.
func (z *lazy) sums(list []Sum, x extent) ([]Sum, bool) {
	first := sort.Search(len(z.unit), func(i int) bool { return z.unit[i].Off >= x.at })
	at := x.at
	for i := first; at < x.at+x.n; i++ {
		if i == len(z.unit) || z.unit[i].Off != at || z.unit[i].Vouched {
			return nil, false
		}
		u := &z.unit[i]
		list = append(list, Sum{Off: x.off + at - x.at, Len: u.Len, SHA256: u.Sum})
		at += u.Len
	}
	return list, at == x.at+x.n
}

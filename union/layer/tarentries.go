package layer

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// maxExtents bounds the runs of data of all files of a layer.
const maxExtents = 32 << 20

// readTar builds the tree of an archive. It reads the stream to its end, also
// what follows the archive, because the stream is hashed. What a format with a TOC puts
// into the root is hidden when hasTOC is set, or the last entry is a TOC.
func readTar(in *tarStream, hasTOC bool, limits Limits) (*tree, error) {
	r, b := &tarReader{in: in}, newBuilder(limits)
	extents, toc := 0, false
	for {
		h, err := r.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if extents += len(h.data); extents > maxExtents {
			return nil, fmt.Errorf("%w: more than %d runs of data", ErrLimit, maxExtents)
		}
		n, reason := tarNode(h)
		if reason != "" {
			b.defect(clean(h.name), "%s", reason)
			continue
		}
		toc = clean(h.name) == tocName
		if err := b.add(h.name, n); err != nil {
			return nil, err
		}
	}
	if toc || hasTOC {
		b.hideLandmarks()
	}
	return b.finish(), in.drain()
}

// tarNode makes a node of a header; reason says why it cannot.
func tarNode(h *tarHeader) (n node, reason string) {
	perm := uint32(h.mode & 0o7777)
	n = node{inode: inode{uid: uint32(h.uid), gid: uint32(h.gid), sec: h.sec, nsec: h.nsec}, xattrs: h.xattrs}
	switch h.typ {
	case tarReg, tarContiguous, tarGNUSparse:
		n.mode, n.size, n.extents = modeReg|perm, h.size, h.data
	case tarHardlink:
		n.waiting, n.target = true, clean(h.link)
	case tarSymlink:
		n.mode, n.target = modeLink|0o777, h.link
	case tarChar:
		n.mode, n.rdev = modeChar|perm, unix.Mkdev(uint32(h.major), uint32(h.minor))
	case tarBlock:
		n.mode, n.rdev = modeBlock|perm, unix.Mkdev(uint32(h.major), uint32(h.minor))
	case tarDir:
		n.mode = modeDir | perm
	case tarFIFO:
		n.mode = modeFIFO | perm
	default:
		return n, fmt.Sprintf("entry of unknown type %q", h.typ)
	}
	if h.uid != int64(n.uid) || h.gid != int64(n.gid) {
		return n, fmt.Sprintf("owner %d:%d", h.uid, h.gid)
	}
	return n, ""
}

// tocName is the TOC of an eStargz layer.
const tocName = "stargz.index.json"

// landmark reports whether name is what an eStargz layer has for itself in its root
// directory (eStargz specification): no part of the image's content.
func landmark(name string) bool {
	return name == tocName || name == prefetchLandmark || name == noPrefetchLandmark
}

// hideLandmarks removes what eStargz puts into the root.
func (b *builder) hideLandmarks() {
	for name, kid := range b.nodes.at(0).kids {
		if landmark(name) && b.nodes.at(kid).mode&modeFormat == modeReg {
			delete(b.nodes.at(0).kids, name)
		}
	}
}

package layer

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxChunk is the largest chunk that is fetched by itself: it is held in memory
// while its digest is computed. eStargz has 4 MiB by default.
const maxChunk = 64 << 20

// index makes a tree of a TOC, which stands at offset end of the blob. The pack is
// the chunks in the order of the blob.
func (t *toc) index(end int64) (*index, error) {
	t.Entries = slices.DeleteFunc(t.Entries, func(e tocEntry) bool { return landmark(clean(e.Name)) })
	p := &placing{end: end, files: make([][]int, len(t.Entries))}
	if err := p.collect(t.Entries); err != nil {
		return nil, err
	}
	p.sort()
	b := newBuilder()
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type == "chunk" {
			continue
		}
		n, reason := e.node()
		if reason != "" {
			b.defect(clean(e.Name), "%s", reason)
			continue
		}
		if n.mode&modeFormat == modeReg {
			var err error
			if n.extents, err = p.extents(e, p.files[i]); err != nil {
				return nil, err
			}
		}
		if err := b.add(e.Name, n); err != nil {
			return nil, err
		}
	}
	x := &index{tree: b.finish(), size: p.size, blobEnd: end, chunks: make([]chunk, len(p.chunks))}
	for i := range p.chunks {
		x.chunks[i] = p.chunks[i].chunk
	}
	return x, nil
}

// A placing gives every chunk of a TOC its place in the pack.
type placing struct {
	end    int64
	chunks []placed
	files  [][]int // of each entry, its chunks by their seq
	bySeq  []int   // after sort: where in chunks the one with a seq is
	size   int64
}

type placed struct {
	chunk
	seq    int   // in the order of the TOC
	inFile int64 // offset in the file
	at     int64 // offset in the pack
}

// collect takes the chunks of all files: a reg entry is its file's first chunk, and chunk entries follow it.
func (p *placing) collect(entries []tocEntry) error {
	file := -1
	for i := range entries {
		e := &entries[i]
		switch {
		case e.Type == "reg":
			file = i
			if e.Size == 0 {
				continue
			}
		case e.Type != "chunk":
			file = -1
			continue
		case file < 0 || e.Name != entries[file].Name:
			return fmt.Errorf("%w: TOC: chunk of %.64q without its file", ErrFormat, e.Name)
		}
		single := i+1 == len(entries) || entries[i+1].Type != "chunk"
		c, err := e.chunk(&entries[file], single && file == i, p.end)
		if err != nil {
			return err
		}
		p.files[file] = append(p.files[file], len(p.chunks))
		p.chunks = append(p.chunks, placed{chunk: c, seq: len(p.chunks), inFile: e.ChunkOffset})
		if p.size += c.n; p.size > maxTar {
			return fmt.Errorf("%w: more than %d bytes of content", ErrLimit, int64(maxTar))
		}
	}
	return nil
}

// chunk reads what an entry says of its chunk; single is one that is its whole file.
func (e *tocEntry) chunk(file *tocEntry, single bool, end int64) (chunk, error) {
	c := chunk{off: e.Offset, inner: e.InnerOffset, n: e.ChunkSize}
	if c.n == 0 {
		c.n = file.Size - e.ChunkOffset
	}
	sum := e.ChunkDigest
	if sum == "" && single {
		sum = e.Digest
	}
	raw, err := hex.DecodeString(strings.TrimPrefix(sum, "sha256:"))
	switch {
	case c.n > maxChunk:
		return c, fmt.Errorf("%w: %q has a chunk of %d bytes", errNoTOC, e.Name, c.n)
	case sum == "":
		return c, fmt.Errorf("%w: %q has a chunk without a digest", errNoTOC, e.Name)
	case err != nil || len(raw) != sha256.Size:
		return c, fmt.Errorf("%w: TOC: %.64q: digest %.80q", ErrFormat, e.Name, sum)
	case c.off < 0 || c.off >= end || c.n <= 0 || c.inner < 0 || c.inner > 1032*(end-c.off):
		return c, fmt.Errorf("%w: TOC: %.64q: chunk of %d bytes at %d+%d", ErrFormat, e.Name, c.n, c.off, c.inner)
	}
	copy(c.sum[:], raw)
	return c, nil
}

// sort lays the chunks into the pack one after the other.
func (p *placing) sort() {
	slices.SortFunc(p.chunks, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.inner, b.inner), cmp.Compare(a.seq, b.seq))
	})
	p.bySeq = make([]int, len(p.chunks))
	var at int64
	for i := range p.chunks {
		p.bySeq[p.chunks[i].seq] = i
		p.chunks[i].at = at
		at += p.chunks[i].n
	}
}

// extents are the runs of a file, which its chunks must cover without a gap.
func (p *placing) extents(e *tocEntry, seqs []int) ([]extent, error) {
	extents := make([]extent, len(seqs))
	for i, seq := range seqs {
		c := &p.chunks[p.bySeq[seq]]
		extents[i] = extent{off: c.inFile, n: c.n, at: c.at}
	}
	slices.SortFunc(extents, func(a, b extent) int { return cmp.Compare(a.off, b.off) })
	var end int64
	for _, x := range extents {
		if x.off != end {
			return nil, fmt.Errorf("%w: TOC: chunks of %.64q: one at %d, wanted at %d", ErrFormat, e.Name, x.off, end)
		}
		end += x.n
	}
	if end != e.Size {
		return nil, fmt.Errorf("%w: TOC: chunks of %.64q: %d bytes of %d", ErrFormat, e.Name, end, e.Size)
	}
	return extents, nil
}

// node makes a node of an entry; reason says why it cannot.
func (e *tocEntry) node() (n node, reason string) {
	perm := uint32(e.Mode & 0o7777)
	n = node{inode: inode{uid: uint32(e.UID), gid: uint32(e.GID)}}
	switch e.Type {
	case "dir":
		n.mode = modeDir | perm
	case "reg":
		n.mode, n.size = modeReg|perm, e.Size
	case "symlink":
		n.mode, n.target = modeLink|0o777, e.LinkName
	case "hardlink":
		n.waiting, n.target = true, clean(e.LinkName)
	case "char":
		n.mode, n.rdev = modeChar|perm, unix.Mkdev(uint32(e.DevMajor), uint32(e.DevMinor))
	case "block":
		n.mode, n.rdev = modeBlock|perm, unix.Mkdev(uint32(e.DevMajor), uint32(e.DevMinor))
	case "fifo":
		n.mode = modeFIFO | perm
	default:
		return n, fmt.Sprintf("entry of unknown type %q", e.Type)
	}
	if int64(n.uid) != e.UID || int64(n.gid) != e.GID {
		return n, fmt.Sprintf("owner %d:%d", e.UID, e.GID)
	}
	if e.Size < 0 {
		return n, fmt.Sprintf("size %d", e.Size)
	}
	if t, err := time.Parse(time.RFC3339, e.ModTime); err == nil {
		n.sec, n.nsec = t.Unix(), uint32(t.Nanosecond())
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		n.xattrs = append(n.xattrs, Xattr{Name: name, Value: e.Xattrs[name]})
	}
	return n, ""
}

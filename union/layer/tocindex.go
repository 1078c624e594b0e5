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

// index makes a tree of a TOC, whose chunks end before offset end of the blob. The pack
// is the chunks in the order of the blob.
func (t *toc) index(end int64, c codec, limits Limits) (*index, error) {
	prefix := t.prefix()
	t.Entries = slices.DeleteFunc(t.Entries, func(e tocEntry) bool { return landmark(clean(e.Name)) })
	p := &placing{end: end, codec: c, limits: limits, files: make([][]run, len(t.Entries))}
	if err := p.collect(t.Entries); err != nil {
		return nil, err
	}
	p.sort()
	b := newBuilder(limits)
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
	x := &index{tree: b.finish(), size: p.size, blobEnd: end, codec: c, prefix: prefix, chunks: make([]chunk, len(p.chunks))}
	for i := range p.chunks {
		x.chunks[i] = p.chunks[i].chunk
	}
	return x, nil
}

// prefix is where the prefetch landmark's content begins, or 0.
func (t *toc) prefix() int64 {
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Type == "reg" && e.Offset > 0 && clean(e.Name) == prefetchLandmark {
			return e.Offset
		}
	}
	return 0
}

// A placing gives every chunk of a TOC its place in the pack.
type placing struct {
	end    int64
	codec  codec
	limits Limits
	chunks []placed
	files  [][]run // of each entry
	bySeq  []int   // after sort: where in chunks the one with a seq is
	size   int64
}

type placed struct {
	chunk
	seq int   // in the order of the TOC
	at  int64 // offset in the pack
}

// A run is n bytes of a file at off: a chunk, or a hole.
type run struct {
	off, n int64
	seq    int // of the chunk; -1 for a hole
}

// zeros is the type of chunks that are holes.
const zeros = "zeros"

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
		single := file == i && (i+1 == len(entries) || entries[i+1].Type != "chunk")
		if err := p.part(e, file, &entries[file], single); err != nil {
			return err
		}
	}
	return nil
}

// part takes one chunk of a file; single is one that is its whole file.
func (p *placing) part(e *tocEntry, file int, f *tocEntry, single bool) error {
	n := e.ChunkSize
	if n == 0 {
		n = f.Size - e.ChunkOffset
	}
	if e.ChunkType == zeros {
		p.files[file] = append(p.files[file], run{e.ChunkOffset, n, -1})
		return nil
	}
	c, err := p.chunk(e, n, single)
	if err != nil {
		return err
	}
	p.files[file] = append(p.files[file], run{e.ChunkOffset, n, len(p.chunks)})
	p.chunks = append(p.chunks, placed{chunk: c, seq: len(p.chunks)})
	if p.size += n; p.size > p.limits.Unpacked {
		return &LimitError{"unpacked", p.limits.Unpacked}
	}
	return nil
}

// chunk reads what an entry says of its chunk of n bytes.
func (p *placing) chunk(e *tocEntry, n int64, single bool) (chunk, error) {
	c := chunk{off: e.Offset, inner: e.InnerOffset, n: n}
	sum := e.ChunkDigest
	if sum == "" && single {
		sum = e.Digest
	}
	raw, err := hex.DecodeString(strings.TrimPrefix(sum, "sha256:"))
	switch {
	case c.n > maxChunk:
		return c, fmt.Errorf("%w: %q has a chunk of %d bytes", errNoTOC, e.Name, c.n)
	case p.codec == codecZstd && c.inner > maxFrame-maxBlock-c.n:
		return c, fmt.Errorf("%w: %q stands behind %d bytes in its frame", errNoTOC, e.Name, c.inner)
	case sum == "":
		return c, fmt.Errorf("%w: %q has a chunk without a digest", errNoTOC, e.Name)
	case err != nil || len(raw) != sha256.Size:
		return c, fmt.Errorf("%w: TOC: %.64q: digest %.80q", ErrFormat, e.Name, sum)
	case c.off < 0 || c.off >= p.end || c.n <= 0 || c.inner < 0 || c.inner > p.codec.ratio()*(p.end-c.off):
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

// extents are where the runs of a file are, which must cover it without a gap.
func (p *placing) extents(e *tocEntry, runs []run) ([]extent, error) {
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.off, b.off) })
	extents := make([]extent, 0, len(runs))
	var end int64
	for _, r := range runs {
		if r.off != end || r.n <= 0 || r.n > e.Size-end {
			return nil, fmt.Errorf("%w: TOC: chunks of %.64q: %d bytes at %d, wanted some at %d", ErrFormat, e.Name, r.n, r.off, end)
		}
		end += r.n
		if r.seq >= 0 {
			extents = append(extents, extent{off: r.off, n: r.n, at: p.chunks[p.bySeq[r.seq]].at})
		}
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

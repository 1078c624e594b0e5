package layer

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// A decoder reads an index. After the first malformed thing it yields zeros, and bad is set.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() {
	d.bad = true
	d.b = nil
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uint()
	if v > math.MaxUint32 {
		d.fail()
		return 0
	}
	return uint32(v)
}

// length reads a number that is an offset or a size: below 2^62, so that two can be added.
func (d *decoder) length() int64 {
	v := d.uint()
	if v > math.MaxInt64/2 {
		d.fail()
		return 0
	}
	return int64(v)
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// after undoes encoder.after for a run of n bytes; the result is an offset.
func (d *decoder) after(last *int64, n int64) int64 {
	v := *last + d.int()
	if v < 0 || v > math.MaxInt64/2 {
		d.fail()
		return 0
	}
	*last = v + n
	return v
}

// count reads how many things of at least size bytes follow: no more than there is room for.
func (d *decoder) count(size int) int {
	n := d.uint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.fail()
		return make([]byte, n)
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) string() string {
	return string(d.bytes(d.count(1)))
}

func (d *decoder) tree() *tree {
	t := &tree{names: d.string()}
	d.inodes(t)
	t.dirents = d.dirents()
	t.whiteouts = d.dirents()
	var last int64
	t.extents = make([]extent, d.count(3))
	for i := range t.extents {
		x := extent{off: d.length(), n: d.length()}
		x.at = d.after(&last, x.n)
		t.extents[i] = x
	}
	for range d.count(2) {
		t.xattrs = append(t.xattrs, Xattr{Name: d.string(), Value: []byte(d.string())})
	}
	for range d.count(3) {
		t.foreign = append(t.foreign, ForeignLink{Dir: ID(d.uint32()), Name: d.string(), Target: d.string()})
	}
	for range d.count(2) {
		t.defects = append(t.defects, Defect{Path: d.string(), Reason: d.string()})
	}
	return t
}

func (d *decoder) dirents() []dirent {
	dirents := make([]dirent, d.count(3))
	var last int64
	for i := range dirents {
		at := d.int() + last
		n := d.uint32()
		last = at + int64(n)
		dirents[i] = dirent{name: d.span(at, n), id: ID(d.uint32())}
	}
	return dirents
}

func (d *decoder) span(at int64, n uint32) span {
	if at < 0 || at+int64(n) > math.MaxUint32 {
		d.fail()
		return span{}
	}
	return span{uint32(at), n}
}

func (d *decoder) inodes(t *tree) {
	t.inodes = make([]inode, d.count(11))
	var names, sec int64
	var xattrs, dirents, extents uint32
	for i := range t.inodes {
		n := &t.inodes[i]
		*n = inode{
			mode: d.uint32(), uid: d.uint32(), gid: d.uint32(), nlink: d.uint32(), rdev: d.uint(), size: d.length(),
			nsec: d.uint32(), flags: inodeFlags(d.uint32()),
		}
		sec += d.int()
		n.sec = sec
		n.xattrs = d.next(&xattrs)
		switch n.mode & modeFormat {
		case modeDir:
			n.data = d.next(&dirents)
		case modeReg:
			n.data = d.next(&extents)
		default:
			d.bad = d.bad || d.uint() != 0
		}
		if n.mode&modeFormat == modeLink {
			at := names + d.int()
			n.link = d.span(at, d.uint32())
			names = int64(n.link.end())
		}
	}
}

// next reads the length of a span that begins at *at.
func (d *decoder) next(at *uint32) span {
	s := d.span(int64(*at), d.uint32())
	*at = s.end()
	return s
}

// check reports an error unless every reference in the index leads to something,
// and the order that look-ups rely on is there.
func (x *index) check() error {
	t := x.tree
	if len(t.inodes) == 0 || t.inodes[Root].mode&modeFormat != modeDir {
		return fmt.Errorf("%w: no root", errIndex)
	}
	for i := range t.inodes {
		if !t.checkInode(ID(i), x.size) {
			return fmt.Errorf("%w: entry %d", errIndex, i)
		}
	}
	for i, w := range t.whiteouts {
		if !t.isDir(w.id) || !t.named(w.name) || i > 0 && t.whiteouts[i-1].id > w.id {
			return fmt.Errorf("%w: whiteout %d", errIndex, i)
		}
	}
	for _, f := range t.foreign {
		if !t.isDir(f.Dir) {
			return fmt.Errorf("%w: link %s", errIndex, f.Name)
		}
	}
	if err := x.checkSections(); err != nil {
		return err
	}
	return x.checkChunks()
}

// checkSections wants them one behind the other, each with something to give.
func (x *index) checkSections() error {
	for i := range x.sections {
		s := &x.sections[i]
		next := x.size
		if i+1 < len(x.sections) {
			next = x.sections[i+1].out
		}
		switch {
		case x.toc != "", i == 0 && (s.in != 0 && x.soci == "" || s.out != 0), i > 0 && s.in != x.sections[i-1].end:
		case s.in < 0, s.bits > 7, s.end <= s.in, s.end-s.in >= maxSection, s.out >= next:
		default:
			continue
		}
		return fmt.Errorf("%w: section %d", errIndex, i)
	}
	return nil
}

func (t *tree) isDir(id ID) bool {
	return int(id) < len(t.inodes) && t.inodes[id].mode&modeFormat == modeDir
}

func (t *tree) named(s span) bool { return int64(s.at)+int64(s.n) <= int64(len(t.names)) }

func (t *tree) checkInode(id ID, packSize int64) bool {
	n := &t.inodes[id]
	if !t.named(n.link) || int(n.xattrs.end()) > len(t.xattrs) || n.flags&^allFlags != 0 || n.nsec >= 1e9 {
		return false
	}
	switch n.mode & modeFormat {
	case modeDir:
		return int(n.data.end()) <= len(t.dirents) && t.checkDir(id)
	case modeReg:
		return int(n.data.end()) <= len(t.extents) && t.checkFile(id, packSize)
	}
	return true
}

// checkDir wants children behind their directory, so that there is no circle.
func (t *tree) checkDir(id ID) bool {
	kids := t.kids(id)
	for i, k := range kids {
		if !t.named(k.name) || int(k.id) >= len(t.inodes) || t.isDir(k.id) && k.id <= id {
			return false
		}
		name := t.name(k.name)
		if name == "" || strings.ContainsAny(name, "/\x00") || i > 0 && t.name(kids[i-1].name) >= name {
			return false
		}
	}
	return true
}

func (t *tree) checkFile(id ID, packSize int64) bool {
	var end int64
	for _, x := range t.fileExtents(id) {
		if x.off < end || x.n == 0 || x.off+x.n > t.inodes[id].size || x.at+x.n > packSize {
			return false
		}
		end = x.off + x.n
	}
	return true
}

func (x *index) checkChunks() error {
	var last, total int64
	for i, c := range x.chunks {
		if c.off < last || c.off >= x.blobEnd || c.n == 0 || c.n > x.size-total {
			return fmt.Errorf("%w: chunk %d", errIndex, i)
		}
		last, total = c.off, total+c.n
	}
	if x.toc != "" && total != x.size {
		return fmt.Errorf("%w: chunks of %d bytes, want %d", errIndex, total, x.size)
	}
	return nil
}

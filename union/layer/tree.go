package layer

import (
	"iter"
	"sort"
)

// A tree is the entries of a layer in flat arrays: nothing in it is changed once
// it is made, and 100 000 entries are a handful of objects to the garbage collector.
//
// IDs count the inodes breadth first, children in byte order, so that the
// entries of a directory lie side by side.
type tree struct {
	inodes    []inode
	dirents   []dirent // of each directory contiguous, sorted by name
	whiteouts []dirent // sorted by directory (id), then name
	extents   []extent // of each file contiguous, sorted by off
	xattrs    []Xattr
	names     string // of dirents and whiteouts, and targets of symlinks
	foreign   []ForeignLink
	defects   []Defect
}

// An inode is an [Entry] without pointers.
type inode struct {
	mode, uid, gid, nlink uint32
	rdev                  uint64
	size, sec             int64
	nsec                  uint32
	flags                 inodeFlags
	link                  span // of symlinks the target, of directories the redirect: in names
	xattrs                span // in xattrs
	data                  span // of directories in dirents, of files in extents
}

type inodeFlags uint32

const (
	explicit inodeFlags = 1 << iota
	opaque
	allFlags = explicit | opaque
)

// A span is n elements of an array, from element at.
type span struct{ at, n uint32 }

func (s span) end() uint32 { return s.at + s.n }

// A dirent is a name in a directory. Of a whiteout, id is the directory.
type dirent struct {
	name span
	id   ID
}

// An extent is n bytes of a file at off, which stand in the pack at at. What no
// extent covers is a hole.
type extent struct{ off, n, at int64 }

func (t *tree) name(s span) string { return t.names[s.at:s.end()] }

func (t *tree) entry(id ID) Entry {
	n := &t.inodes[id]
	e := Entry{
		Mode: n.mode, UID: n.uid, GID: n.gid, Rdev: n.rdev, Nlink: n.nlink, Size: n.size, Sec: n.sec, Nsec: n.nsec,
		Link: t.name(n.link), Explicit: n.flags&explicit != 0, Opaque: n.flags&opaque != 0,
	}
	if n.mode&modeFormat == modeDir {
		e.Link, e.Redirect = "", e.Link
	}
	if n.xattrs.n > 0 {
		e.Xattrs = t.xattrs[n.xattrs.at:n.xattrs.end():n.xattrs.end()]
	}
	return e
}

// kids are the names in dir; none when it is no directory.
func (t *tree) kids(dir ID) []dirent {
	n := &t.inodes[dir]
	if n.mode&modeFormat != modeDir {
		return nil
	}
	return t.dirents[n.data.at:n.data.end()]
}

func (t *tree) lookup(dir ID, name string) (ID, bool) {
	kids := t.kids(dir)
	i, ok := sort.Find(len(kids), func(i int) int { return compare(name, t.name(kids[i].name)) })
	if !ok {
		return 0, false
	}
	return kids[i].id, true
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (t *tree) children(dir ID) iter.Seq2[string, ID] {
	return func(yield func(string, ID) bool) {
		for _, d := range t.kids(dir) {
			if !yield(t.name(d.name), d.id) {
				return
			}
		}
	}
}

func (t *tree) hidden(dir ID) iter.Seq[string] {
	first := sort.Search(len(t.whiteouts), func(i int) bool { return t.whiteouts[i].id >= dir })
	return func(yield func(string) bool) {
		for _, w := range t.whiteouts[first:] {
			if w.id != dir || !yield(t.name(w.name)) {
				return
			}
		}
	}
}

// fileExtents are the extents of a regular file.
func (t *tree) fileExtents(id ID) []extent {
	n := &t.inodes[id]
	if n.mode&modeFormat != modeReg {
		return nil
	}
	return t.extents[n.data.at:n.data.end()]
}

// nextData returns the run of data at off or behind it; start is the file's size
// when only a hole is left.
func (t *tree) nextData(id ID, off int64) (start, end int64) {
	size, ext := t.inodes[id].size, t.fileExtents(id)
	i := sort.Search(len(ext), func(i int) bool { return ext[i].off+ext[i].n > off })
	if i == len(ext) || off >= size {
		return size, size
	}
	start, end = max(off, ext[i].off), ext[i].off+ext[i].n
	for i++; i < len(ext) && ext[i].off == end; i++ {
		end += ext[i].n
	}
	return start, end
}

// st_mode's file types: the same on all of Linux.
const (
	modeFormat = 0o170000
	modeFIFO   = 0o010000
	modeChar   = 0o020000
	modeDir    = 0o040000
	modeBlock  = 0o060000
	modeReg    = 0o100000
	modeLink   = 0o120000
)

package layer

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// finish makes the tree. The builder must not be used afterwards.
func (b *builder) finish() *tree {
	n := b.nodes.n // grown from nothing, each would be there twice
	f := &finisher{
		b: b, t: &tree{inodes: make([]inode, 0, n), dirents: make([]dirent, 0, n)},
		order: make([]int32, 0, n), paths: map[int32]string{},
	}
	f.names.Grow(int(b.names))
	f.place(0)
	for at := 0; at < len(f.order); at++ {
		if b.nodes.at(f.order[at]).isDir() {
			f.directory(f.order[at])
		}
	}
	f.implied()
	f.t.names = f.names.String()
	f.t.defects = b.defects
	return f.t
}

// A finisher walks the nodes breadth first.
type finisher struct {
	b     *builder
	t     *tree
	order []int32 // nodes by ID
	names strings.Builder
	paths map[int32]string // of directories not walked yet, as far as a defect needs it
}

// place gives node i the next ID.
func (f *finisher) place(i int32) {
	n := f.b.nodes.at(i)
	n.id, n.placed = ID(len(f.order)), true
	f.order = append(f.order, i)
	in := n.inode
	in.nlink = 1
	if in.mode&modeFormat != modeDir {
		in.flags &^= opaque
	}
	switch in.mode & modeFormat {
	case modeLink:
		in.size, in.link = int64(len(n.target)), f.name(n.target)
	case modeDir:
		in.link = f.name(n.target)
	case modeReg:
		in.data = span{uint32(len(f.t.extents)), uint32(len(n.extents))}
		f.t.extents = append(f.t.extents, n.extents...)
	}
	in.xattrs = span{uint32(len(f.t.xattrs)), uint32(len(n.xattrs))}
	f.t.xattrs = append(f.t.xattrs, n.xattrs...)
	f.t.inodes = append(f.t.inodes, in)
}

func (f *finisher) name(s string) span {
	at := uint32(f.names.Len())
	f.names.WriteString(s)
	return span{at, uint32(len(s))}
}

// directory places what is in node i.
func (f *finisher) directory(i int32) {
	d := f.b.nodes.at(i)
	dirPath := f.paths[i]
	delete(f.paths, i)
	for name := range d.hide {
		if kid, ok := d.kids[name]; ok {
			f.b.nodes.at(kid).flags |= opaque // of no meaning to what is no directory
		}
	}
	first := uint32(len(f.t.dirents))
	for _, name := range slices.Sorted(maps.Keys(d.kids)) {
		full := path.Join(dirPath, name)
		if kid, ok := f.settle(d, full, name); ok {
			f.dirent(kid, full, name)
		}
	}
	if !f.b.waits {
		d.kids = nil // nobody looks for a hardlink's target any more
	}
	f.t.inodes[d.id].data = span{first, uint32(len(f.t.dirents)) - first}
	f.hide(d)
}

func (f *finisher) dirent(kid int32, full, name string) {
	n := f.b.nodes.at(kid)
	if n.placed {
		f.t.inodes[n.id].nlink++
	} else {
		f.place(kid)
	}
	if n.isDir() {
		f.paths[kid] = full
	}
	f.t.dirents = append(f.t.dirents, dirent{f.name(name), n.id})
}

// hide writes the whiteouts of d. One for a name that the layer has itself says
// nothing about a file, which covers what is below anyhow; a directory starts
// afresh, as an opaque one.
func (f *finisher) hide(d *node) {
	f.t.names = f.names.String()
	for _, name := range slices.Sorted(maps.Keys(d.hide)) {
		if _, ok := f.t.lookup(d.id, name); !ok {
			f.t.whiteouts = append(f.t.whiteouts, dirent{f.name(name), d.id})
		}
	}
}

// settle returns what the name in d is. A waiting hardlink whose target came
// later becomes that; one without a target here leads into the layers below.
func (f *finisher) settle(d *node, full, name string) (kid int32, ok bool) {
	kid = d.kids[name]
	var seen map[int32]bool
	for f.b.nodes.at(kid).waiting {
		if seen[kid] {
			f.b.defect(full, "hardlink to itself")
			return 0, false
		}
		if seen == nil {
			seen = map[int32]bool{}
		}
		seen[kid] = true
		target := f.b.nodes.at(kid).target
		next, _ := f.b.find(target)
		if next < 0 {
			f.t.foreign = append(f.t.foreign, ForeignLink{Dir: d.id, Name: name, Target: target})
			return 0, false
		}
		kid = next
	}
	if f.b.nodes.at(kid).isDir() && len(seen) > 0 {
		f.b.defect(full, "hardlink to a directory")
		return 0, false
	}
	return kid, true
}

// implied gives the directories that no entry describes the time of the newest entry.
func (f *finisher) implied() {
	var sec int64
	for i := range f.t.inodes {
		if n := &f.t.inodes[i]; n.flags&explicit != 0 {
			sec = max(sec, n.sec)
		}
	}
	for i := range f.t.inodes {
		if n := &f.t.inodes[i]; n.flags&explicit == 0 {
			n.sec = sec
		}
	}
}

package layer

import (
	"fmt"
	"path"
	"strings"
)

// Limits on a layer's shape. They are far above what images have and keep a
// hostile one from taking the machine's memory.
const (
	maxNameBytes = 2 << 30 // of all names and targets: offsets are 32 bits
	maxName      = 255     // NAME_MAX
	maxTarget    = 4095    // of symlinks: PATH_MAX without its NUL
	maxFollow    = 40      // symlinks in one path, as Linux
	maxXattrs    = 64 << 10
)

// A builder collects the entries of a layer in the order of its archive, as
// extracting them one after the other would, and makes a tree of them.
type builder struct {
	limits  Limits
	nodes   nodeList
	defects []Defect
	names   int64 // bytes of all names so far
	waits   bool  // there are, or were, hardlinks that wait for their target

	lastDir  string // the directory of the last entry, which the next one mostly shares
	lastNode int32
}

// A node is an inode under construction, or a hardlink that waits for its target.
type node struct {
	inode
	target  string // of symlinks; of a waiting hardlink, cleaned
	xattrs  []Xattr
	extents []extent
	kids    map[string]int32    // of directories
	hide    map[string]struct{} // whiteouts
	parent  int32               // of directories
	depth   int32               // of directories
	id      ID                  // see finish
	waiting bool
	placed  bool // id is valid
}

func newBuilder(limits Limits) *builder {
	b := &builder{limits: limits, lastDir: "\x00"}
	b.nodes.add(node{inode: inode{mode: modeDir | 0o755}})
	return b
}

// defect notes that the entry called name is not shown, or not as it stands.
func (b *builder) defect(name, format string, args ...any) {
	if len(b.defects) < maxDefects {
		b.defects = append(b.defects, Defect{Path: name, Reason: fmt.Sprintf(format, args...)})
	}
}

// maxDefects bounds the memory for complaints: a layer of nothing else needs no complete list.
const maxDefects = 10_000

// clean makes a name of the archive a path without a slash at either end; "" is
// the root. ".." does not lead out.
func clean(name string) string {
	if plain(name) {
		return name
	}
	return path.Clean("/" + name)[1:]
}

// plain reports that clean has nothing to do.
func plain(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// add puts an entry in place of whatever has its name; n.mode says what it is.
func (b *builder) add(name string, n node) error {
	name = clean(name)
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if base == "" {
		b.setRoot(n)
		return nil
	}
	if metadata(name) {
		return nil
	}
	parent, reason := b.directory(dir)
	if reason != "" {
		b.defect(name, "%s", reason)
		return nil
	}
	if reason := b.refuse(name, base, &n); reason != "" {
		b.defect(name, "%s", reason)
		return nil
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		b.whiteout(parent, hidden)
	} else {
		b.put(parent, base, n)
	}
	return b.limit(len(base) + len(n.target))
}

func (b *builder) limit(more int) error {
	b.names += int64(more)
	if int64(b.nodes.n) > b.limits.Entries {
		return &LimitError{"entries", b.limits.Entries}
	}
	if b.names > maxNameBytes {
		return fmt.Errorf("%w: more than %d bytes of names", ErrLimit, maxNameBytes)
	}
	return nil
}

// refuse says why an entry cannot be shown whatever its place; "" when it can.
func (b *builder) refuse(name, base string, n *node) string {
	hidden, isWhiteout := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case strings.Contains(name, "\x00"):
		return "name with a NUL byte"
	case isWhiteout && (hidden == "" || hidden == "." || hidden == ".."):
		return "whiteout without a name"
	case len(base) > maxName && (!isWhiteout || len(hidden) > maxName):
		return fmt.Sprintf("name longer than %d bytes", maxName)
	case strings.Contains(n.target, "\x00"):
		return "target with a NUL byte"
	case n.mode&modeFormat == modeLink && n.target == "":
		return "symlink without a target"
	case n.mode&modeFormat == modeLink && len(n.target) > maxTarget:
		return fmt.Sprintf("target longer than %d bytes", maxTarget)
	}
	b.checkXattrs(name, n)
	return ""
}

// checkXattrs drops the attributes that no file system could hold: Linux has 255
// bytes for a name, and 64 KiB for a value (xattr(7)).
func (b *builder) checkXattrs(name string, n *node) {
	var keep []Xattr
	for _, x := range n.xattrs {
		if x.Name == "" || len(x.Name) > maxName || len(x.Value) > maxXattrs {
			b.defect(name, "xattr %.32q does not fit (%d bytes)", x.Name, len(x.Value))
			continue
		}
		keep = append(keep, x)
	}
	n.xattrs = keep
}

// Names that mean something else (image-spec layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh." // aufs keeps its own things under such names
)

// opaqueMarker hides all of a directory in the layers below.
const opaqueMarker = ".wh..wh..opq"

// metadata reports whether name is, or lies below, something of aufs.
func metadata(name string) bool {
	if !strings.Contains(name, metaPrefix) {
		return false
	}
	parts := strings.Split(name, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, metaPrefix) && (part != opaqueMarker || i < len(parts)-1) {
			return true
		}
	}
	return false
}

// setRoot takes the attributes of an entry for the root itself.
func (b *builder) setRoot(n node) {
	if n.waiting || n.mode&modeFormat != modeDir {
		b.defect("", "the root is no directory")
		return
	}
	b.checkXattrs("", &n)
	b.update(0, n)
}

// update gives directory d the attributes of n.
func (b *builder) update(d int32, n node) {
	old := b.nodes.at(d)
	n.flags |= old.flags & opaque
	old.inode, old.xattrs = n.inode, n.xattrs
	old.flags |= explicit
}

func (b *builder) whiteout(dir int32, name string) {
	d := b.nodes.at(dir)
	if name == opaqueMarker[len(whiteoutPrefix):] {
		d.flags |= opaque
		return
	}
	if d.hide == nil {
		d.hide = map[string]struct{}{}
	}
	d.hide[name] = struct{}{}
}

// put makes name in dir be n. A directory that is one already keeps what is in it.
func (b *builder) put(dir int32, name string, n node) {
	old, exists := b.nodes.at(dir).kids[name]
	isDir := !n.waiting && n.mode&modeFormat == modeDir
	if exists && isDir && b.nodes.at(old).isDir() {
		b.update(old, n)
		return
	}
	if n.waiting {
		target, _ := b.find(n.target)
		if target >= 0 && exists && target == old {
			return // a link to itself, as hardlinked names are in some archives
		}
		if target >= 0 && !b.nodes.at(target).waiting && !b.nodes.at(target).isDir() {
			b.link(dir, name, target)
			return
		}
	}
	n.flags |= explicit
	b.attach(dir, name, n)
}

func (n *node) isDir() bool { return !n.waiting && n.mode&modeFormat == modeDir }

// attach makes a new node.
func (b *builder) attach(dir int32, name string, n node) int32 {
	i := int32(b.nodes.n)
	n.parent, n.depth = dir, b.nodes.at(dir).depth+1
	b.nodes.add(n)
	b.waits = b.waits || n.waiting
	b.link(dir, name, i)
	return i
}

// link makes name in dir be node i.
func (b *builder) link(dir int32, name string, i int32) {
	d := b.nodes.at(dir)
	if d.kids == nil {
		d.kids = map[string]int32{}
	}
	if old, ok := d.kids[name]; ok && old != i {
		b.lastDir = "\x00" // it may have led through there
	}
	d.kids[name] = i
}

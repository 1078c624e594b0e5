package layer

import (
	"fmt"
	"strings"
)

// directory returns the directory called dir (cleaned), and makes what is missing
// of it. Symlinks of the layer are followed as if the layer were the root file
// system: this is what extracting does, and they cannot lead out. When there
// can be no such directory, reason says why.
func (b *builder) directory(dir string) (d int32, reason string) {
	if dir == b.lastDir {
		return b.lastNode, ""
	}
	d, reason = b.walk(dir, b.makeDirectory)
	if reason == "" {
		b.lastDir, b.lastNode = dir, d
	}
	return d, reason
}

// makeDirectory makes a directory that the archive only implies.
func (b *builder) makeDirectory(parent int32, name string) (int32, string) {
	switch {
	case strings.Contains(name, "\x00"):
		return 0, "below a name with a NUL byte"
	case len(name) > maxName:
		return 0, "below a name that is too long"
	case strings.HasPrefix(name, whiteoutPrefix):
		return 0, "below a whiteout"
	case int64(b.nodes.at(parent).depth) >= b.limits.Depth:
		return 0, fmt.Sprintf("below more than %d directories (limit depth)", b.limits.Depth)
	}
	return b.attach(parent, name, node{inode: inode{mode: modeDir | 0o755}}), ""
}

// find returns the node called name, or -1. Symlinks before the last part are followed.
func (b *builder) find(name string) (int32, string) {
	dir, base := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, base = name[:i], name[i+1:]
	}
	if base == "" {
		return 0, ""
	}
	d, reason := b.walk(dir, func(int32, string) (int32, string) { return 0, "not there" })
	if reason != "" {
		return -1, reason
	}
	if i, ok := b.nodes.at(d).kids[base]; ok {
		return i, ""
	}
	return -1, "not there"
}

// walk resolves name to a directory; missing is called for what is not there.
func (b *builder) walk(name string, missing func(parent int32, name string) (int32, string)) (d int32, reason string) {
	followed := 0
	for rest := name; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			d = b.nodes.at(d).parent
			continue
		}
		next, ok := b.nodes.at(d).kids[part]
		if !ok {
			if next, reason = missing(d, part); reason != "" {
				return 0, reason
			}
		}
		n := b.nodes.at(next)
		switch {
		case n.isDir():
			d = next
		case n.waiting || n.mode&modeFormat != modeLink:
			return 0, "below " + part + ", which is no directory"
		case followed == maxFollow:
			return 0, "too many symlinks"
		default:
			followed++
			if strings.HasPrefix(n.target, "/") {
				d = 0
			}
			rest = n.target + "/" + rest
		}
	}
	return d, ""
}

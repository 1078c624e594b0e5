// Package layertest turns a text archive into a layer blob of every format and holds the conformance suite that every format passes.
//
// A text archive has one entry a line, in the order of the tar:
//
//	# a comment
//	dir      NAME                        a directory
//	file     NAME "content"              a regular file; its mode may say setuid
//	random   NAME SIZE                   bytes that nothing compresses, the same for the same SIZE
//	text     NAME SIZE                   words, which compress, the same for the same SIZE
//	zero     NAME SIZE                   zeros, written out
//	sparse   NAME SIZE OFFSET:"data" …   a hole with data in it, as PAX sparse 1.0, or sparse=0.0, 0.1, gnu (no owner)
//	link     NAME TARGET                 a hardlink
//	symlink  NAME TARGET
//	char     NAME MAJOR:MINOR            and block
//	fifo     NAME
//	whiteout DIR/NAME                    the entry DIR/.wh.NAME
//	opaque   DIR                         the entry DIR/.wh..wh..opq
//
// SIZE is bytes, or a number with KiB, MiB, GiB. After these stand, in any order:
//
//	0644                 permissions; without, 0755 for directories, 0777 for symlinks, else 0644
//	1000:1000            user and group; without, 0:0
//	@1700000000.5        modification time; without, [Epoch]
//	user.name="value"    an extended attribute, by its name (user., security., trusted., system.)
//	format=v7            how the header is written: pax (the default: a PAX header where ustar
//	                     cannot hold it), gnu (GNU long names, base-256 numbers where they are
//	                     needed), base256 (gnu with every number so), ustar, v7
//
// A word may be quoted, or parts of it, with Go's escapes: "a b", "\xff",
// user.x="\x00". Names stand in the tar as they are written, "../x" and "/x" too.
package layertest

import "archive/tar"

// Epoch is the modification time of entries that have none, in Unix seconds.
const Epoch = 1_700_000_000

// An Entry is one line of a text archive.
type Entry struct {
	Type     byte   // archive/tar's flags: tar.TypeReg, tar.TypeDir, …
	Name     string // as in the archive
	Link     string
	Mode     int64 // permissions with setuid, setgid and sticky
	UID, GID int64
	Major    int64
	Minor    int64
	Sec      int64
	Nsec     int64
	Xattrs   []Xattr // in their order
	Size     int64
	Data     []Extent // of regular files: what stands in Size zeros, sorted
	Random   bool     // Size random bytes in place of Data
	Text     bool     // Size bytes of words in place of Data
	Sparse   string   // "", "0.0", "0.1", "1.0", "gnu": the holes are not written
	Format   string   // "", "pax", "gnu", "base256", "ustar", "v7"
}

// An Xattr is an extended attribute.
type Xattr struct{ Name, Value string }

// An Extent is content at an offset of a file.
type Extent struct {
	Off  int64
	Data string
}

var types = map[string]byte{
	"dir": tar.TypeDir, "file": tar.TypeReg, "random": tar.TypeReg, "text": tar.TypeReg, "zero": tar.TypeReg, "sparse": tar.TypeReg,
	"link": tar.TypeLink, "symlink": tar.TypeSymlink, "char": tar.TypeChar, "block": tar.TypeBlock,
	"fifo": tar.TypeFifo, "whiteout": tar.TypeReg, "opaque": tar.TypeReg,
}

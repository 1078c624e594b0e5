// Package union shows the layers of an image as one tree, with a writable upper directory above them, and says what changed.
//
// Two parts: an immutable Tree, merged once from the layers, in which a node
// is an index into flat arrays; and an FS above it, which adds the upper
// directory in overlayfs's own on-disk format (Documentation/filesystems/overlayfs.rst).
//
// Words: an image is a list of layers, the base first. A whiteout in a layer
// hides a name of the layers below; an opaque directory hides all of them. A
// node is what the kernel calls an inode: hardlinked names share one. Lower
// nodes live in the Tree, upper nodes in the upper directory. Copy-up brings a
// lower node into the upper directory before its first change; the node keeps
// its ID. The work directory, on the file system of the upper, is where files
// are made before they are renamed into place. A change is a path at which the
// upper directory differs from the lower tree.
package union

// An ID is a node. A lower node is its index in the merged tree + 1: the same
// in every mount of the image, and after a restart. Upper nodes have IDs above
// those; an ID never comes back for another node.
type ID uint64

// Root is the root directory's ID, as FUSE has it (FUSE_ROOT_ID).
const Root ID = 1

package union

import (
	"fmt"
	"syscall"
	"time"

	"github.com/layerfs/layerfs/union/layer"
)

// A Time is a point in time as struct timespec has it.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Time is t for package time.
func (t Time) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Attr is what stat(2) says of a node.
type Attr struct {
	Ino                 uint64
	Mode                uint32 // type and permissions
	Nlink               uint32 // of directories: 2 and one for each directory in it
	UID, GID            uint32
	Rdev                uint64 // as unix.Mkdev
	Size                int64
	Blocks              int64 // of 512 bytes
	Blksize             uint32
	Atime, Mtime, Ctime Time
}

// Type is the S_IFMT part of the mode.
func (a Attr) Type() uint32 { return a.Mode & syscall.S_IFMT }

// IsDir tells whether the node is a directory.
func (a Attr) IsDir() bool { return a.Type() == syscall.S_IFDIR }

// A Caller is who asks for a change, by IDs of the host: what is made belongs to him. His umask
// counts where the directory has no default ACL (acl(5), "OBJECT CREATION AND DEFAULT ACLs").
type Caller struct {
	UID, GID, PID uint32
	Umask         uint32
}

// SetAttr says which attributes to change; nil and false leave them as they are.
type SetAttr struct {
	Mode               *uint32 // permission bits; the type is ignored
	UID, GID           *uint32
	Size               *int64
	Atime, Mtime       *Time
	AtimeNow, MtimeNow bool
}

// Statfs is what statfs(2) says of the union: the upper directory's file system, or the size of the tree.
type Statfs struct {
	Blocks, Bfree, Bavail uint64 // of Bsize bytes
	Files, Ffree          uint64
	Bsize, NameLen        uint32
}

// A Dirent is one name of a directory.
type Dirent struct {
	Name string
	ID   ID     // 0 when the node has no ID yet; Lookup gives it one
	Ino  uint64 // as stat(2) will say
	Mode uint32 // the S_IFMT part
}

// A DataError says that the bytes of a layer could not be had: a registry that
// is away, a digest that does not match. The calling process gets EIO for it,
// whatever Err holds: a file in a tree that is there never becomes ENOENT.
type DataError struct {
	Path  string
	Layer int // 0 is the base
	Err   error
}

func (e *DataError) Error() string {
	return fmt.Sprintf("read %q of layer %d: %v", e.Path, e.Layer+1, e.Err)
}

func (e *DataError) Unwrap() error { return e.Err }

// blockSize is st_blksize of lower files and the unit of Statfs of a tree without an upper.
const blockSize = 4096

// EntryAttr translates a layer's entry; Ino and Nlink are the tree's.
func EntryAttr(e layer.Entry) Attr {
	t := Time{e.Sec, e.Nsec}
	a := Attr{Mode: e.Mode, UID: e.UID, GID: e.GID, Rdev: e.Rdev, Size: e.Size,
		Blksize: blockSize, Atime: t, Mtime: t, Ctime: t}
	if a.IsDir() {
		a.Size, a.Blocks = blockSize, blockSize/512
	}
	return a
}

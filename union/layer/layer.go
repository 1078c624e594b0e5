// Package layer reads one layer blob of an image as a tree of entries with a ReadAt per file, whatever the blob's format.
//
// A layer is opened by Open from a descriptor, a [Ranger] that can fetch
// ranges of the blob, and the cache store that keeps what was fetched. The
// formats differ in how they come by the tree (the tar stream itself, or an
// index) and by a file's bytes (all at once, or chunk by chunk); behind [Layer]
// they are the same. What a layer says about the layers below it (whiteouts,
// opaque directories, hardlinks that lead out of it) is reported, not applied:
// that is package union's.
package layer

import (
	"context"
	"io"
	"log/slog"

	"github.com/opencontainers/go-digest"
)

// A Ranger can read a range of a blob. *registry.Blob is one.
//
// ReadRange returns a stream of exactly n bytes that start at off, or an error,
// also in mid-stream: a short body is an error, never a clean EOF. The caller
// closes the stream. Calls may run in parallel.
//
// Where a blob can be had from several hosts, the stream has a method Doubt() (other bool), which
// is called, also after Close, when its bytes turn out to be wrong. If it tells true, they are read again, from
// another host.
type Ranger interface {
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// An ID names an entry (an inode) of one layer. Names that are hardlinks of
// one another have one ID.
type ID uint32

// Root is the ID of a layer's root directory, which is always there.
const Root ID = 0

// An Entry is what stat(2) would say of an inode of the layer, and little more.
type Entry struct {
	Mode     uint32 // file type and permissions, as st_mode
	UID, GID uint32
	Rdev     uint64 // of devices: as unix.Mkdev
	Nlink    uint32 // names inside this layer; 1 for directories
	Size     int64  // of regular files and symlinks
	Sec      int64  // modification time, Unix seconds
	Nsec     uint32
	Link     string // of symlinks: the target, as it stands in the archive
	Explicit bool   // false: a parent directory that the archive only implies
	Opaque   bool   // of directories: the layers below are hidden here
	Redirect string // of directories: where the layers below have it, from the root with a slash in front, or beside it; "" is here
	Xattrs   []Xattr
}

// An Xattr is one extended attribute, byte by byte.
type Xattr struct {
	Name  string
	Value []byte
}

// A ForeignLink is a hardlink entry whose target is no entry of this layer and
// has to be looked up in the layers below (image-spec layer.md, "Hardlinks").
type ForeignLink struct {
	Dir    ID
	Name   string
	Target string // cleaned, relative to the root: "usr/bin/perl"
}

// A Defect is something in a layer that could not be shown as it stands.
type Defect struct {
	Path, Reason string
}

// Options of Open. The zero value is usable.
type Options struct {
	DiffID digest.Digest // of the uncompressed tar, as the image's config has it; "" is not checked
	// FindDiffID is asked for DiffID, if that is "", once a tar is read to be compared: a
	// layer with an index never asks. nil: nobody knows.
	FindDiffID func(ctx context.Context) (digest.Digest, error)
	Logger     *slog.Logger   // nil discards
	Progress   func(Progress) // called from one goroutine at a time, often; nil for none

	Limits Limits // on what the layer may ask for
	ZTOC   *ZTOC  // of a plain layer that the cache has no index of; nil: none
	// Whole reads the layer as the tar that it is, whatever index it has.
	Whole bool
	// ExternalTOC fetches what another image has as the TOC of this layer: the layer of
	// that image whose annotation containerd.io/snapshot/stargz/layer.digest names this
	// one (eStargz with an external TOC). It is called when there is no other TOC; what it
	// returns is held to the digest that the descriptor has. nil: there is no other image.
	ExternalTOC func(context.Context) (io.ReadCloser, error)
	// Checked is told whenever bytes of the blob were held against a digest, at Open and
	// later, from any goroutine. nil: nobody wants to know.
	Checked func(Check)
}

// A Check is bytes of a blob that were held against a digest.
type Check struct {
	What   string        // "blob"; "tar", that came out of it; "toc"; "range", whose digests are in the index; "cache": all was checked when it came
	Off, N int64         // the bytes of the blob, of a range
	Digest digest.Digest // what it was held against, where that is one
	Err    error         // nil: it is what it should be
}

// Progress is where the opening of a layer stands.
type Progress struct {
	State string // "waiting", "fetching", "index", "ready", "cached"
	Done  int64  // bytes of the blob that have arrived
	Total int64  // size of the blob
}

// Status is what a layer can say of itself while it is used.
type Status struct {
	Lazy     bool   // content is fetched when it is read
	Index    string // where the tree came from: "tar", "toc" (eStargz, zstd:chunked), "soci"
	Why      string // when not lazy: why
	Fetched  int64  // bytes fetched from the source by this process
	Requests int64  // ranges asked for by this process
	Total    int64  // size of the blob
	Complete bool   // every byte is in the cache
}

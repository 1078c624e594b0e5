package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/layerfs/layerfs/cache"
)

// A Layer is an open layer. Its methods may be called by several goroutines; IDs
// must be less than Len.
type Layer struct {
	digest digest.Digest
	tree   *tree
	pack   *cache.Pack // nil: dir
	dir    *dirData    // of an unpacked layer; nil: pack
	lazy   *lazy       // nil: the pack is complete, and what the disk damages is lost
	kind   string      // where the tree came from: Status.Index
	src    *source
	why    string // when not lazy: why
	prefix int64  // see Landmark
	closed atomic.Bool
}

// Digest returns the digest of the blob; of an unpacked layer what it is called by, which
// says nothing about its bytes (see Same and Identity).
func (l *Layer) Digest() digest.Digest { return l.digest }

// Len returns the number of entries (inodes); their IDs are 0 … Len-1.
func (l *Layer) Len() int { return len(l.tree.inodes) }

// Entry returns the attributes of id. The caller must not change its slices.
func (l *Layer) Entry(id ID) Entry { return l.tree.entry(id) }

// Lookup returns the entry called name in dir. Whiteouts are no entries, and in
// what is no directory there is nothing.
func (l *Layer) Lookup(dir ID, name string) (ID, bool) { return l.tree.lookup(dir, name) }

// Children yields the names in dir in byte order.
func (l *Layer) Children(dir ID) iter.Seq2[string, ID] { return l.tree.children(dir) }

// Whiteouts yields, in byte order, the names in dir that this layer hides in the
// layers below; never an entry of this layer (a whiteout of a directory that the
// layer makes anew is that directory's Opaque).
func (l *Layer) Whiteouts(dir ID) iter.Seq[string] { return l.tree.hidden(dir) }

// ForeignLinks returns the hardlinks whose target is not in this layer, by directory and name.
func (l *Layer) ForeignLinks() []ForeignLink { return slices.Clone(l.tree.foreign) }

// Defects returns what could not be shown, in the order of the archive.
func (l *Layer) Defects() []Defect { return slices.Clone(l.tree.defects) }

// NextData returns the first run of data of a regular file at off or behind it, as
// SEEK_DATA and SEEK_HOLE would; start == Size when only a hole is left.
func (l *Layer) NextData(id ID, off int64) (start, end int64) { return l.tree.nextData(id, off) }

// ReadAt reads a regular file by the rules of io.ReaderAt. What is missing in the
// cache is fetched first; the error is ctx's when it ends before. The error wraps
// ErrDigest when the bytes that came are not those of the image.
func (l *Layer) ReadAt(ctx context.Context, id ID, p []byte, off int64) (int, error) {
	n := &l.tree.inodes[id]
	switch {
	case l.closed.Load():
		return 0, fs.ErrClosed
	case n.mode&modeFormat == modeDir:
		return 0, syscall.EISDIR
	case off < 0 || n.mode&modeFormat != modeReg:
		return 0, syscall.EINVAL
	case off >= n.size:
		return 0, io.EOF
	}
	want := min(int64(len(p)), n.size-off)
	if err := l.fill(ctx, id, p[:want], off); err != nil {
		return 0, fmt.Errorf("read layer %s: %w", l.digest, err)
	}
	if int(want) < len(p) {
		return int(want), io.EOF
	}
	return int(want), nil
}

// fill reads all of p, which lies in the file.
func (l *Layer) fill(ctx context.Context, id ID, p []byte, off int64) error {
	if l.dir != nil {
		return l.dir.readAt(ctx, id, p, off)
	}
	for len(p) > 0 {
		start, _ := l.tree.nextData(id, off)
		hole := min(start-off, int64(len(p)))
		clear(p[:hole])
		p, off = p[hole:], off+hole
		if len(p) == 0 {
			return nil
		}
		at, n := l.tree.place(id, off)
		n = min(n, int64(len(p)))
		if err := l.readPack(ctx, p[:n], at); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// place says where in the pack the byte at off stands, which must be data, and how
// many follow it there.
func (t *tree) place(id ID, off int64) (at, n int64) {
	ext := t.fileExtents(id)
	i, _ := slices.BinarySearchFunc(ext, off, func(x extent, off int64) int {
		switch {
		case x.off+x.n <= off:
			return -1
		case x.off > off:
			return 1
		}
		return 0
	})
	x := ext[i]
	at, n = x.at+off-x.off, x.off+x.n-off
	for i++; i < len(ext) && ext[i].off == x.off+x.n && ext[i].at == x.at+x.n; i++ {
		x = ext[i]
		n += x.n
	}
	return at, n
}

func (l *Layer) readPack(ctx context.Context, p []byte, at int64) error {
	var fill cache.Fill
	if l.lazy != nil {
		fill = l.lazy.fill
	}
	n, err := l.pack.Read(ctx, p, at, fill)
	if errors.Is(err, cache.ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrDigest, err)
	}
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) { // the tree says that the pack is longer
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Status says how the layer is read and what it has cost so far.
func (l *Layer) Status() Status {
	s := Status{
		Lazy: l.lazy != nil && l.why == "", Index: l.kind, Why: l.why, Total: l.src.size, Complete: l.dir != nil || l.pack.IsComplete(),
		Fetched: l.src.fetched.Load(), Requests: l.src.requests.Load(),
	}
	return s
}

// Close lets go of the cache. Reads fail afterwards; the tree stays readable. A
// second Close does nothing.
func (l *Layer) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	if l.dir != nil {
		return l.dir.close()
	}
	return l.pack.Close()
}

package union

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TarOptions of WriteTar.
type TarOptions struct {
	Epoch   *int64 // Unix seconds: later times of change become this (SOURCE_DATE_EPOCH)
	Trusted bool   // keep xattrs of the trusted namespace
	SELinux bool   // keep security.selinux
}

// A TarResult says what WriteTar wrote.
type TarResult struct {
	Entries int
	Bytes   int64 // of file content
	Fetched int64 // of that: read from the layers below, which may have fetched it
	Losses  []Loss
}

// A Loss is something a layer cannot hold, or that changed while it was read.
type Loss struct {
	Path, Reason string
}

// WriteTar writes the upper directory as an OCI layer (image-spec layer.md): a
// PAX tar, every directory before what is in it, its whiteouts first, the rest
// sorted by the bytes of the names, no path twice. Whiteouts are explicit:
// one for every lower name that no longer shows. Content of the layers below
// is read only for directories that were renamed. The archive is well-formed
// also when files change meanwhile; those are among the losses.
func (f *FS) WriteTar(ctx context.Context, w io.Writer, o TarOptions) (TarResult, error) {
	t := &tarWriter{fs: f, o: o, w: tar.NewWriter(w), upper: map[uint64]string{}, lower: map[ID]string{}}
	if f.up == nil {
		return t.result, t.w.Close()
	}
	err := f.walk(ctx, func(it *item) error {
		if err := t.add(ctx, it); err != nil {
			return fmt.Errorf("write the layer: %s: %w", it.path, err)
		}
		return nil
	})
	if err != nil {
		return t.result, err
	}
	return t.result, t.w.Close()
}

type tarWriter struct {
	fs     *FS
	o      TarOptions
	w      *tar.Writer
	upper  map[uint64]string // first path of hardlinked upper nodes, by inode number
	lower  map[ID]string     // and of lower ones
	result TarResult
}

func (t *tarWriter) add(ctx context.Context, it *item) error {
	if it.whiteout {
		return t.addWhiteout(it)
	}
	a := t.fs.itemAttr(it)
	if it.path == "" {
		if same, err := t.rootUnchanged(it, a); same || err != nil {
			return err
		}
	}
	if a.Type() == unix.S_IFSOCK {
		t.lose(it.path, "a socket has no form in a layer")
		return nil
	}
	h, err := t.header(it, a)
	if err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg || a.Size == 0 {
		return t.put(h)
	}
	return t.addFile(ctx, it, h)
}

func (t *tarWriter) rootUnchanged(it *item, now Attr) (bool, error) {
	was := t.fs.tree.Attr(Root)
	same, err := t.fs.sameMeta(it, now, was)
	return same && now.Mtime == was.Mtime, err
}

func (t *tarWriter) put(h *tar.Header) error {
	t.result.Entries++
	return t.w.WriteHeader(h)
}

func (t *tarWriter) lose(path, reason string) {
	t.result.Losses = append(t.result.Losses, Loss{path, reason})
}

// addWhiteout: regular, empty, all else zero.
func (t *tarWriter) addWhiteout(it *item) error {
	name := path.Join(path.Dir(it.path), whiteoutPrefix+it.name)
	return t.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

var tarTypes = map[uint32]byte{
	unix.S_IFREG: tar.TypeReg, unix.S_IFDIR: tar.TypeDir, unix.S_IFLNK: tar.TypeSymlink,
	unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock, unix.S_IFIFO: tar.TypeFifo,
}

func (t *tarWriter) header(it *item, a Attr) (*tar.Header, error) {
	h := &tar.Header{
		Typeflag: tarTypes[a.Type()], Name: it.path, Mode: int64(a.Mode & 0o7777), Uid: int(a.UID), Gid: int(a.GID),
		ModTime: t.mtime(a), Format: tar.FormatPAX,
	}
	if first := t.firstName(it, a); first != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return h, nil
	}
	switch a.Type() {
	case unix.S_IFDIR:
		h.Name = it.path + "/"
		if it.path == "" {
			h.Name = "./"
		}
	case unix.S_IFREG:
		h.Size = a.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Devmajor, h.Devminor = int64(unix.Major(a.Rdev)), int64(unix.Minor(a.Rdev))
	case unix.S_IFLNK:
		target, err := t.fs.itemLink(it)
		if err != nil {
			return nil, err
		}
		h.Linkname = target
	}
	return h, t.xattrs(it, h)
}

func (t *tarWriter) mtime(a Attr) time.Time {
	m := a.Mtime.Time()
	if t.o.Epoch != nil && m.After(time.Unix(*t.o.Epoch, 0)) {
		return time.Unix(*t.o.Epoch, 0)
	}
	return m
}

// firstName is the path a hardlinked node was written at before; "" the first time.
func (t *tarWriter) firstName(it *item, a Attr) string {
	if a.IsDir() || a.Nlink < 2 {
		return ""
	}
	if it.dir < 0 {
		return remember(t.lower, it.from, it.path)
	}
	return remember(t.upper, it.st.Ino, it.path)
}

func remember[K comparable](m map[K]string, key K, path string) string {
	first, ok := m[key]
	if !ok {
		m[key] = path
	}
	return first
}

// xattrPrefix is star's record for extended attributes, which image-spec layer.md takes over.
const xattrPrefix = "SCHILY.xattr."

func (t *tarWriter) xattrs(it *item, h *tar.Header) error {
	list, err := t.fs.itemXattrs(it)
	if err != nil {
		return err
	}
	for _, x := range list {
		switch {
		case strings.HasPrefix(x.Name, "trusted.") && !t.o.Trusted, x.Name == "security.selinux" && !t.o.SELinux:
			continue
		case strings.Contains(x.Name, "="):
			t.lose(it.path, fmt.Sprintf("the name of the extended attribute %q has a '=', which a PAX record cannot hold", x.Name))
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+x.Name] = string(x.Value)
	}
	return nil
}

// A content is where a file's bytes come from.
type content interface {
	read(p []byte, off int64) (int, error)
	nextData(off, size int64) (start, end int64)
}

func (t *tarWriter) addFile(ctx context.Context, it *item, h *tar.Header) error {
	t.result.Bytes += h.Size
	if it.dir < 0 {
		t.result.Fetched += h.Size
		if err := t.put(h); err != nil {
			return err
		}
		return t.body(it, &lowerContent{ctx, t.fs.tree, it.from}, h.Size)
	}
	fd, err := openAt(it.dir, it.name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := t.put(h); err != nil {
		return err
	}
	if err := t.body(it, upperContent(fd), h.Size); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Size != it.st.Size || st.Mtim != it.st.Mtim || st.Ino != it.st.Ino {
		t.lose(it.path, "it changed while it was read")
	}
	return nil
}

// body writes exactly size bytes. Holes are zeros that nobody reads.
func (t *tarWriter) body(it *item, c content, size int64) error {
	buf := make([]byte, min(copyBuffer, size))
	for off := int64(0); off < size; {
		start, end := c.nextData(off, size)
		if err := t.zeros(start - off); err != nil {
			return err
		}
		for off = start; off < end; {
			n, err := c.read(buf[:min(int64(len(buf)), end-off)], off)
			if err != nil {
				return err
			}
			if n == 0 {
				t.lose(it.path, "it became shorter while it was read")
				return t.zeros(size - off)
			}
			if _, err := t.w.Write(buf[:n]); err != nil {
				return err
			}
			off += int64(n)
		}
	}
	return nil
}

var zeroBlock [64 << 10]byte

func (t *tarWriter) zeros(n int64) error {
	for n > 0 {
		k, err := t.w.Write(zeroBlock[:min(n, int64(len(zeroBlock)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// upperContent is an open file of the upper directory.
type upperContent int

func (fd upperContent) read(p []byte, off int64) (int, error) { return preadAll(int(fd), p, off) }

func (fd upperContent) nextData(off, size int64) (start, end int64) {
	start, err := unix.Seek(int(fd), off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return size, size
	}
	if err != nil {
		return off, size
	}
	end, err = unix.Seek(int(fd), start, unix.SEEK_HOLE)
	if err != nil || end > size {
		end = size
	}
	return min(start, size), end
}

type lowerContent struct {
	ctx  context.Context
	tree *Tree
	id   ID
}

func (c *lowerContent) read(p []byte, off int64) (int, error) {
	return c.tree.ReadAt(c.ctx, c.id, p, off)
}

func (c *lowerContent) nextData(off, size int64) (start, end int64) {
	start, end = c.tree.NextData(c.id, off)
	return start, min(end, size)
}

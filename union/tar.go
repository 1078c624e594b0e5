package union

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// TarOptions of WriteTar.
type TarOptions struct {
	Epoch   *int64 // Unix seconds: later times of change become this (SOURCE_DATE_EPOCH)
	Trusted bool   // keep xattrs of the trusted namespace
	SELinux bool   // keep security.selinux
	Squash  bool   // all that shows, as the only layer of an image
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

// lossChanged is the reason of a Loss of what somebody wrote to meanwhile.
const lossChanged = "it changed while it was read"

// WriteTar writes the upper directory as it was at the moment, as an OCI layer
// (image-spec layer.md): a PAX tar, every directory before what is in it, its
// whiteouts first, the rest sorted by the bytes of the names, no path twice.
// Whiteouts are explicit: one for every lower name that no longer shows. Content
// of the layers below is read only for directories that were renamed. The archive
// is well-formed also when files change that nobody keeps; those are among the losses.
//
// With Squash the layer has all that showed, without whiteouts. All content is read then,
// and fetched where it is not in the cache.
//
// What was written is read back in passing and held against the mount. An error
// that wraps ErrLayerDiffers says that they are not the same. It can be called once.
func (m *Moment) WriteTar(ctx context.Context, w io.Writer, o TarOptions) (TarResult, error) {
	if m.fs.up == nil && !o.Squash {
		return TarResult{}, tar.NewWriter(w).Close()
	}
	leftOut := map[string]bool{}
	check := m.fs.startCheck(o, m.since, leftOut)
	out := bufio.NewWriterSize(io.MultiWriter(w, check.feed), tarBuffer)
	t := &tarWriter{m: m, fs: m.fs, o: o, w: tar.NewWriter(out), leftOut: leftOut, first: map[nodeKey]string{}}
	err := t.write(ctx)
	if err == nil {
		err = out.Flush()
	}
	changed, differs := check.finish()
	if differs != nil && (err == nil || errors.Is(err, errNoReader)) {
		err = fmt.Errorf("check the layer: %w", differs)
	}
	if m.todo == nil {
		t.addLosses(changed) // else it changed after the moment
	}
	return t.result, err
}

// tarBuffer is what is handed on at a time: for every small file by itself that would wake
// the reader of the check, and whoever reads what is written, several times.
const tarBuffer = 256 << 10

// nextTick waits until the clock that file systems take times from, which goes
// in steps of some milliseconds, is past this moment, and returns its time: what
// changes from now on has this time of change or a later one, what changed before
// has not (some changes are dated by the precise clock).
func nextTick() Time {
	begin := clock(unix.CLOCK_REALTIME)
	for {
		if now := clock(unix.CLOCK_REALTIME_COARSE); begin.before(now) {
			return now
		}
		time.Sleep(time.Millisecond)
	}
}

func clock(id int32) Time {
	var ts unix.Timespec
	_ = unix.ClockGettime(id, &ts)
	return statTime(ts)
}

type tarWriter struct {
	m       *Moment
	fs      *FS
	o       TarOptions
	w       *tar.Writer
	leftOut map[string]bool    // paths whose extended attributes the layer has not
	first   map[nodeKey]string // where hardlinked nodes have their data
	buf     []byte             // of body
	result  TarResult
}

func (t *tarWriter) write(ctx context.Context) error {
	records := t.m.records()
	if t.o.Squash {
		records = t.m.squashed()
	}
	for r := range t.fs.fetched(ctx, records) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.add(ctx, r); err != nil {
			return fmt.Errorf("write the layer: /%s: %w", r.path(), err)
		}
	}
	return t.w.Close()
}

// addLosses adds those at paths that have none yet.
func (t *tarWriter) addLosses(list []Loss) {
	seen := map[string]bool{}
	for _, l := range t.result.Losses {
		seen[l.Path] = true
	}
	for _, l := range list {
		if !seen[l.Path] {
			seen[l.Path] = true
			t.result.Losses = append(t.result.Losses, l)
		}
	}
}

func (t *tarWriter) add(ctx context.Context, r *record) error {
	switch {
	case r.kind == recordWhiteout:
		return t.addWhiteout(r)
	case r.typ() == unix.S_IFSOCK:
		t.lose(r.path(), "a socket has no form in a layer")
		return nil
	}
	h := t.header(r)
	if h.Typeflag != tar.TypeReg || r.size == 0 {
		return t.put(h)
	}
	if r.kind == recordLower {
		t.result.Fetched += r.size
		return t.addFile(h, &lowerContent{ctx, t.fs.tree(), ID(r.num)})
	}
	return t.addUpper(h, r)
}

func (t *tarWriter) put(h *tar.Header) error {
	t.result.Entries++
	return t.w.WriteHeader(h)
}

func (t *tarWriter) lose(path, reason string) {
	t.result.Losses = append(t.result.Losses, Loss{path, reason})
}

// addWhiteout: regular, empty, all else zero.
func (t *tarWriter) addWhiteout(r *record) error {
	name := join(r.dir.path, whiteoutPrefix+r.name)
	return t.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

var tarTypes = map[uint32]byte{
	unix.S_IFREG: tar.TypeReg, unix.S_IFDIR: tar.TypeDir, unix.S_IFLNK: tar.TypeSymlink,
	unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock, unix.S_IFIFO: tar.TypeFifo,
}

func (t *tarWriter) header(r *record) *tar.Header {
	h := &tar.Header{
		Typeflag: tarTypes[r.typ()], Name: r.path(), Mode: int64(r.mode & 0o7777), Uid: int(r.uid), Gid: int(r.gid),
		ModTime: t.o.clamp(r.mtime).Time(), Format: tar.FormatPAX,
	}
	if first := t.firstName(r, h.Name); first != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return h
	}
	switch r.typ() {
	case unix.S_IFDIR:
		h.Name += "/"
		if h.Name == "/" {
			h.Name = "./"
		}
	case unix.S_IFREG:
		h.Size = r.size
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Devmajor, h.Devminor = int64(unix.Major(r.rdev)), int64(unix.Minor(r.rdev))
	case unix.S_IFLNK:
		h.Linkname = r.link()
	}
	t.xattrs(r, h)
	return h
}

// clamp is a time of change as the layer has it.
func (o TarOptions) clamp(m Time) Time {
	if o.Epoch != nil && !m.before(Time{Sec: *o.Epoch}) {
		return Time{Sec: *o.Epoch}
	}
	return m
}

func (r *record) key() nodeKey { return nodeKey{r.kind == recordUpper, r.num} }

// firstName is the path a hardlinked node was written at before; "" the first time.
func (t *tarWriter) firstName(r *record, path string) string {
	if r.typ() == unix.S_IFDIR || r.nlink < 2 {
		return ""
	}
	return remember(t.first, r.key(), path)
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

func (t *tarWriter) xattrs(r *record, h *tar.Header) {
	list := r.xattrs()
	for _, x := range list {
		if strings.Contains(x.Name, "=") {
			t.lose(r.path(), fmt.Sprintf("the name of the extended attribute %q has a '=', which a PAX record cannot hold", x.Name))
		}
	}
	list = t.o.of(r.key()).keptXattrs(list)
	if size := xattrSize(list); size > maxXattrs {
		t.lose(r.path(), fmt.Sprintf("extended attributes of %d bytes are more than readers of a PAX header take", size))
		t.leftOut[r.path()] = true
		return
	}
	for _, x := range list {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+x.Name] = string(x.Value)
	}
}

// maxXattrs is what is left for extended attributes of the 1 MiB that archive/tar,
// with which most unpackers read, allows a PAX header to have (maxSpecialFileSize).
const maxXattrs = 1<<20 - 64<<10

func xattrSize(list []layer.Xattr) (n int) {
	for _, x := range list {
		n += len(xattrPrefix) + len(x.Name) + len(x.Value) + len("1000000 =\n")
	}
	return n
}

// of are the options for a node. What the layers of an image have, it keeps when they become one.
func (o TarOptions) of(n nodeKey) TarOptions {
	if o.Squash && !n.upper {
		o.Trusted, o.SELinux = true, true
	}
	return o
}

// keptXattrs are those of a node's extended attributes that the layer has.
func (o TarOptions) keptXattrs(list []layer.Xattr) []layer.Xattr {
	drop := func(x layer.Xattr) bool {
		return strings.HasPrefix(x.Name, "trusted.") && !o.Trusted || x.Name == "security.selinux" && !o.SELinux || strings.Contains(x.Name, "=")
	}
	if !slices.ContainsFunc(list, drop) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), drop)
}

// A content is where a file's bytes come from.
type content interface {
	read(p []byte, off int64) (int, error)
	nextData(off, size int64) (start, end int64)
}

func (t *tarWriter) addFile(h *tar.Header, c content) error {
	t.result.Bytes += h.Size
	if err := t.put(h); err != nil {
		return err
	}
	return t.body(h.Name, c, h.Size)
}

// addUpper writes a file of the upper directory. One that is not there any more gets no entry.
func (t *tarWriter) addUpper(h *tar.Header, r *record) error {
	fd, kept, err := t.m.open(r)
	if err == nil {
		defer unix.Close(fd)
		defer t.m.wasRead(r.num)
		err = sameFile(fd, r)
	}
	if err == unix.ENOENT || err == unix.ELOOP || err == unix.ENXIO {
		t.lose(h.Name, lossChanged)
		delete(t.first, r.key())
		return nil
	}
	if err != nil {
		return err
	}
	if kept != nil {
		return t.addFile(h, keptContent{kept, fd})
	}
	if err := t.addFile(h, upperContent(fd)); err != nil {
		return err
	}
	return t.changed(fd, r)
}

// sameFile is ENOENT when another file stands at the name by now.
func sameFile(fd int, r *record) error {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && (st.Ino != r.num || st.Mode&unix.S_IFMT != unix.S_IFREG) {
		return unix.ENOENT
	}
	return err
}

// changed makes a file a loss that nobody kept from being written to.
func (t *tarWriter) changed(fd int, r *record) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Size != r.size || statTime(st.Mtim) != r.mtime || !statTime(st.Ctim).before(t.m.since) {
		t.addLosses([]Loss{{r.path(), lossChanged}})
	}
	return nil
}

// smallFile is up to what size a file is read without a look for holes, which costs as much as to read it.
const smallFile = 64 << 10

// body writes exactly size bytes. Holes are zeros that nobody reads, but for those of small files.
func (t *tarWriter) body(name string, c content, size int64) error {
	if int64(len(t.buf)) < min(copyBuffer, size) {
		t.buf = make([]byte, max(smallFile, min(copyBuffer, size)))
	}
	buf := t.buf
	for off := int64(0); off < size; {
		start, end := int64(0), size
		if size > smallFile {
			start, end = c.nextData(off, size)
		}
		if err := t.zeros(start - off); err != nil {
			return err
		}
		for off = start; off < end; {
			n, err := c.read(buf[:min(int64(len(buf)), end-off)], off)
			if errors.Is(err, errNotKept) {
				t.lose(name, err.Error())
				return t.zeros(size - off)
			}
			if err != nil {
				return err
			}
			if n == 0 {
				t.lose(name, lossChanged)
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

package union

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// How the FS keeps the files of a Moment that were not read so far. A write, a
// truncation or a punched hole copies the blocks it is about to change into the
// work directory first (all of the file at once, without a copy, where the file
// system shares blocks: ioctl_ficlone(2)); an unlinked or replaced file gets a
// link there; a renamed one is found under its new name.

// A keptFile is a file of a Moment that is being read, or that something happened to.
type keptFile struct {
	m    *Moment
	size int64 // at the moment

	dir  *node  // where it is, if not where it was; protected by FS.ns
	name string // protected by FS.ns
	link string // in the work directory, after it lost a name; "" none; protected by m.mu

	mu    sync.Mutex // a leaf; held over the copy or the read of one block, or more of a truncated file
	done  bool       // protected by mu; read to the end
	copy  int        // protected by mu; a file with the blocks that were saved; -1: none was
	saved []uint64   // protected by mu; a bit for each block that copy has; nil with copy: it has all
	err   error      // protected by mu; the old content could not be kept
}

// errNotKept: the old content was overwritten, because it could not be copied.
var errNotKept = errors.New("it changed while it was read, and its content could not be kept")

// keptBlock is the unit of copies.
const keptBlock = 256 << 10

// keptFor finds what the open Moment needs to know of a file; nil: nothing.
func (f *FS) keptFor(ino uint64) *keptFile {
	m := f.moment.Load()
	if m == nil || m.todo == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.todo[ino]; !ok {
		return nil
	}
	return m.keptLocked(ino)
}

func (m *Moment) keptLocked(ino uint64) *keptFile {
	k := m.kept[ino]
	if k == nil {
		k = &keptFile{m: m, copy: -1, size: m.todo[ino]}
		m.kept[ino] = k
	}
	return k
}

// beforeWrite keeps what a file has from off to end, before it changes. fd is
// any descriptor of the file. FS.ns or FS.writes is held for reading.
func (f *FS) beforeWrite(fd int, off, end int64) {
	if f.moment.Load() == nil {
		return
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	if k := f.keptFor(st.Ino); k != nil {
		k.save(fd, off, end)
	}
}

// beforeTruncate is beforeWrite for a file that gets this size.
func (f *FS) beforeTruncate(fd int, size int64) { f.beforeWrite(fd, size, 1<<62) }

// save is called before the first change to the range. An error makes the file a loss, and no trouble for the writer.
func (k *keptFile) save(fd int, off, end int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.done || k.err != nil || k.copy >= 0 && k.saved == nil {
		return
	}
	if end = min(end, k.size); off >= end {
		return
	}
	k.err = k.saveLocked(fd, off, end)
}

func (k *keptFile) saveLocked(fd int, off, end int64) error {
	in, err := unix.Open(procPath(fd, ""), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	if k.copy < 0 {
		if err := k.begin(in); err != nil || k.saved == nil {
			return err
		}
	}
	buf := make([]byte, keptBlock)
	for b := off / keptBlock; b*keptBlock < end; b++ {
		if k.has(b) {
			continue
		}
		if err := k.saveBlock(in, b, buf); err != nil {
			return err
		}
		k.saved[b/64] |= 1 << (b % 64)
	}
	return nil
}

// begin makes the copy, with all blocks if the file system can share them.
func (k *keptFile) begin(in int) error {
	work, temp := k.m.fs.up.work, k.m.fs.up.temp()
	fd, err := openAt(work, temp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(work, temp, 0); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	k.copy = fd
	if unix.IoctlFileClone(fd, in) == nil {
		return nil
	}
	k.saved = make([]uint64, (k.size+keptBlock*64-1)/(keptBlock*64))
	return unix.Ftruncate(fd, k.size)
}

func (k *keptFile) has(block int64) bool {
	return k.copy >= 0 && (k.saved == nil || k.saved[block/64]&(1<<(block%64)) != 0)
}

// saveBlock leaves holes where there are holes.
func (k *keptFile) saveBlock(in int, block int64, buf []byte) error {
	off := block * keptBlock
	start, end := upperContent(in).nextData(off, min(off+keptBlock, k.size))
	for start < end {
		n, err := preadAll(in, buf[:end-start], start)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if err := pwriteAll(k.copy, buf[:n], start); err != nil {
			return err
		}
		start, end = upperContent(in).nextData(start+int64(n), min(off+keptBlock, k.size))
	}
	return nil
}

// A keptContent reads a file as it was: what was saved from the copy, the rest from the file.
type keptContent struct {
	k  *keptFile
	fd int
}

// from is where the block at off is to be read, up to end. k.mu is held.
func (c keptContent) from(off, size int64) (fd int, end int64) {
	b := off / keptBlock
	first := c.k.has(b)
	if c.k.copy < 0 || c.k.saved == nil {
		end = size
	} else {
		end = min((b+1)*keptBlock, size)
	}
	if first {
		return c.k.copy, end
	}
	return c.fd, end
}

func (c keptContent) read(p []byte, off int64) (int, error) {
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	if c.k.err != nil {
		return 0, fmt.Errorf("%w: %w", errNotKept, c.k.err)
	}
	fd, end := c.from(off, off+min(int64(len(p)), keptBlock-off%keptBlock))
	return preadAll(fd, p[:end-off], off)
}

func (c keptContent) nextData(off, size int64) (start, end int64) {
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	if c.k.err != nil {
		return off, size // read says it
	}
	for off < size {
		fd, limit := c.from(off, size)
		start, end := upperContent(fd).nextData(off, limit)
		if start < limit {
			return start, end
		}
		off = limit
	}
	return size, size
}

// open opens a file of the list; k is nil where nobody keeps anything.
func (m *Moment) open(r *record) (fd int, k *keptFile, err error) {
	f := m.fs
	f.ns.RLock()
	defer f.ns.RUnlock()
	dir, name := r.dir.n, r.name
	if m.todo != nil {
		m.mu.Lock()
		k = m.keptLocked(r.num)
		link := k.link
		m.mu.Unlock()
		if link != "" {
			fd, err = openAt(f.up.work, link, unix.O_RDONLY, 0)
			return fd, k, err
		}
		if k.dir != nil {
			dir, name = k.dir, k.name
		}
	}
	err = f.dir(dir, func(d int) (err error) {
		fd, err = openAt(d, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		return err
	})
	return fd, k, err
}

// wasRead says that the content of a file is needed no more.
func (m *Moment) wasRead(ino uint64) {
	m.mu.Lock()
	delete(m.todo, ino)
	k := m.kept[ino]
	delete(m.kept, ino)
	m.mu.Unlock()
	if k != nil {
		m.drop(k)
	}
}

// drop is for a file that is no longer in kept.
func (m *Moment) drop(k *keptFile) {
	m.mu.Lock()
	link := k.link
	if link != "" {
		m.links--
	}
	m.mu.Unlock()
	if link != "" {
		m.fs.up.discard(link)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.done = true
	if k.copy >= 0 {
		_ = unix.Close(k.copy)
		k.copy = -1
	}
}

// dropKept drops what was never read.
func (m *Moment) dropKept() {
	m.mu.Lock()
	left := m.kept
	m.kept, m.todo = map[uint64]*keptFile{}, map[uint64]int64{}
	m.mu.Unlock()
	for _, k := range left {
		m.drop(k)
	}
}

// beforeUnlink keeps a file that is about to lose a name. FS.ns is held for writing.
func (f *FS) beforeUnlink(h hit, d *node, name string) {
	if h.n == nil || h.n.typ != unix.S_IFREG || f.moment.Load() == nil {
		return
	}
	k := f.keptFor(h.n.ino)
	if k == nil || k.linked() {
		return
	}
	temp := f.up.temp()
	err := f.dir(d, func(dir int) error { return unix.Linkat(dir, name, f.up.work, temp, 0) })
	if err != nil {
		k.mu.Lock()
		k.err = err
		k.mu.Unlock()
		return
	}
	if !k.setLink(h.n.ino, temp) {
		f.up.discard(temp)
	}
}

func (k *keptFile) linked() bool {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	return k.link != ""
}

// setLink is false when the file was read meanwhile.
func (k *keptFile) setLink(ino uint64, name string) bool {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	if k.m.kept[ino] != k {
		return false
	}
	k.link = name
	k.m.links++
	return true
}

// afterRename notes where a file is now. FS.ns is held for writing.
func (f *FS) afterRename(n *node, d *node, name string) {
	if n.typ != unix.S_IFREG || f.moment.Load() == nil {
		return
	}
	k := f.keptFor(n.ino)
	if k == nil {
		return
	}
	k.dir, k.name = d, name
	f.tab.Lock()
	d.refs++
	f.tab.Unlock()
	k.m.mu.Lock()
	k.m.dirs = append(k.m.dirs, d)
	k.m.mu.Unlock()
}

// ownLinks is how many links of a file are the open Moment's: no process made them.
func (f *FS) ownLinks(ino uint64) uint64 {
	m := f.moment.Load()
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.links == 0 {
		return 0
	}
	if k := m.kept[ino]; k != nil && k.link != "" {
		return 1
	}
	return 0
}

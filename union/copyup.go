package union

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// wholeFile asks copyUp for all of a file's content.
const wholeFile = -1

// copyUp gives a node an upper part, if it has none: the parents first, then
// for a file its first size bytes (wholeFile: all) and its metadata in a
// temporary file, which is renamed into place. A file with several names gets
// all of them, linked. A file that has no name left gets an upper part that
// only its descriptor keeps. FS.ns is not held.
func (f *FS) copyUp(ctx context.Context, id ID, size int64) (*node, error) {
	if f.ReadOnly() {
		return nil, unix.EROFS
	}
	if n := f.upperOf(id); n != nil {
		return n, nil
	}
	if !f.tree().Has(id) {
		return nil, unix.ESTALE
	}
	if f.tree().IsDir(id) {
		f.ns.Lock()
		defer f.ns.Unlock()
		return f.copyUpDir(id)
	}
	defer f.copying.lock(id)()
	if n := f.upperOf(id); n != nil {
		return n, nil
	}
	return f.copyUpFile(ctx, id, size)
}

func (f *FS) copyUpFile(ctx context.Context, id ID, size int64) (*node, error) {
	temp := f.up.temp()
	if err := f.copyContent(ctx, id, temp, size); err != nil {
		_ = unix.Unlinkat(f.up.work, temp, 0)
		return nil, err
	}
	f.ns.Lock()
	defer f.ns.Unlock()
	n, err := f.placeCopy(id, temp)
	if err != nil {
		_ = unix.Unlinkat(f.up.work, temp, 0)
	}
	return n, err
}

// copyContent makes a copy of a lower node that is no directory in the work directory.
func (f *FS) copyContent(ctx context.Context, id ID, temp string, size int64) error {
	a := f.tree().Attr(id)
	switch a.Type() {
	case unix.S_IFREG:
		if err := f.copyData(ctx, id, temp, a.Size, size); err != nil {
			return err
		}
	case unix.S_IFLNK:
		if err := unix.Symlinkat(f.tree().Readlink(id), f.up.work, temp); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(f.up.work, temp, a.Type()|0o600, int(a.Rdev)); err != nil {
			return err
		}
	}
	return f.copyMeta(f.up.work, temp, id, a)
}

func (f *FS) copyData(ctx context.Context, id ID, temp string, have, size int64) (err error) {
	if size < 0 || size > have {
		size = have
	}
	fd, err := openAt(f.up.work, temp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	if err := f.copyRanges(ctx, id, fd, size); err != nil {
		return err
	}
	if size == 0 || f.up.o.Volatile {
		return nil
	}
	return unix.Fsync(fd)
}

const copyBuffer = 1 << 20

// copyRanges copies what is no hole.
func (f *FS) copyRanges(ctx context.Context, id ID, fd int, size int64) error {
	var buf []byte
	for off := int64(0); off < size; {
		start, end := f.tree().NextData(id, off)
		if end = min(end, size); start >= end {
			return nil
		}
		if buf == nil {
			buf = make([]byte, min(copyBuffer, size))
		}
		n, err := f.readLower(ctx, id, buf[:min(int64(len(buf)), end-start)], start)
		if err != nil {
			return err
		}
		if n == 0 {
			return &DataError{Path: f.tree().Path(id), Err: errShort}
		}
		if err := pwriteAll(fd, buf[:n], start); err != nil {
			return err
		}
		off = start + int64(n)
	}
	return nil
}

var errShort = errors.New("the file ends early")

func pwriteAll(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		var n int
		err := retry(func() (err error) { n, err = unix.Pwrite(fd, p, off); return err })
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// copyMeta gives a fresh node, in the work directory mostly, all of a lower
// node's metadata, and the mark of where it came from. The owner comes first:
// chown clears setuid bits and capabilities.
func (f *FS) copyMeta(dir int, name string, id ID, a Attr) error {
	fd, err := openAt(dir, name, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	uid, gid, err := f.ids.owner(a)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if a.Type() != unix.S_IFLNK {
		if err := unix.Chmod(procPath(fd, ""), a.Mode&^unix.S_IFMT); err != nil {
			return err
		}
	}
	if err := f.copyXattrs(fd, f.tree().Xattrs(id)); err != nil {
		return err
	}
	if !a.IsDir() {
		if err := f.setOrigin(fd, id, a.Type()); err != nil {
			return err
		}
	}
	return setTimes(fd, timespec(a.Atime), timespec(a.Mtime))
}

// setOrigin marks where a file was copied up from. Without the mark only the
// inode number changes at the next mount, so a node that cannot bear it (the
// kernel allows no user xattrs on symlinks and devices) goes without.
func (f *FS) setOrigin(fd int, id ID, typ uint32) error {
	mark := f.tree().originMark(id)
	err := unix.Setxattr(procPath(fd, ""), f.up.prefix+xattrOrigin, []byte(mark), 0)
	if typ != unix.S_IFREG && (err == unix.EPERM || err == unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// copyXattrs sets a lower node's xattrs. What the file system does not take is
// left out where overlayfs does so too (fs/overlayfs/copy_up.c, ovl_copy_xattr):
// all but ACLs and the security namespace.
func (f *FS) copyXattrs(fd int, xattrs []layer.Xattr) error {
	for _, x := range xattrs {
		err := unix.Setxattr(procPath(fd, ""), f.escape(x.Name), x.Value, 0)
		must := strings.HasPrefix(x.Name, "security.") || strings.HasPrefix(x.Name, "system.posix_acl_")
		if (err == unix.EOPNOTSUPP || err == unix.EPERM) && !must {
			f.up.log.Warn("copy-up leaves out an extended attribute", "name", x.Name, "err", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// placeCopy renames a finished copy to all names at which its node shows. FS.ns is held for writing.
func (f *FS) placeCopy(id ID, temp string) (*node, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(f.up.work, temp, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	n := &node{lower: id, typ: st.Mode & unix.S_IFMT, fd: -1, ino: st.Ino}
	names := f.visibleNames(id)
	if len(names) == 0 {
		return f.keepOrphan(n, temp)
	}
	for i, name := range slices.Backward(names) {
		if err := f.placeName(n, temp, name, i == 0); err != nil {
			return nil, err
		}
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	return f.enterLocked(n), nil
}

// placeName puts one name of a copy in place: a link, and at last the temporary name itself.
// After a crash between two of them the temporary name is still there: finishLinks places the others.
func (f *FS) placeName(n *node, temp string, at Name, last bool) error {
	d, err := f.copyUpDir(at.Dir)
	if err != nil {
		return err
	}
	if last {
		err = f.putInto(d, func(dir int) error {
			return unix.Renameat2(f.up.work, temp, dir, at.Name, unix.RENAME_NOREPLACE)
		})
	} else {
		err = f.linkInto(d, temp, at.Name)
	}
	if err == nil {
		f.tab.Lock()
		n.addPlace(d, at.Name)
		f.tab.Unlock()
	}
	return err
}

// putInto runs something that puts a copy into an upper directory, which is no change to that.
func (f *FS) putInto(d *node, put func(dir int) error) error {
	return f.dir(d, func(dir int) error { return keepTimes(dir, func() error { return put(dir) }) })
}

func (f *FS) linkInto(d *node, temp, name string) error {
	return f.putInto(d, func(dir int) error { return unix.Linkat(f.up.work, temp, dir, name, 0) })
}

// finishLinks completes copy-ups of files with several names that a crash broke
// off: the names that still show the lower file are linked to its copy.
func (f *FS) finishLinks() {
	f.ns.Lock()
	defer f.ns.Unlock()
	for _, temp := range f.up.torn {
		if err := f.finishLink(temp); err != nil {
			f.up.log.Error("link all names of a copied file", "err", err)
		}
		f.up.discard(temp)
	}
	f.up.torn = nil
}

func (f *FS) finishLink(temp string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(f.up.work, temp, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	id := f.originOf(f.up.work, temp, st.Mode&unix.S_IFMT)
	if id == 0 {
		return nil
	}
	for _, at := range f.visibleNames(id) {
		h, err := f.find(at.Dir, at.Name, false)
		if err != nil {
			return err
		}
		var place unix.Stat_t
		d, err := f.copyUpDir(at.Dir)
		if err != nil {
			return err
		}
		err = f.dir(d, func(dir int) error { return unix.Fstatat(dir, at.Name, &place, unix.AT_SYMLINK_NOFOLLOW) })
		if h.id == id && err == unix.ENOENT {
			err = f.linkInto(d, temp, at.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keepOrphan keeps a copy of a node that has no name any more.
func (f *FS) keepOrphan(n *node, temp string) (_ *node, err error) {
	if n.fd, err = openAt(f.up.work, temp, unix.O_PATH, 0); err != nil {
		return nil, err
	}
	n.gone, n.orphan, n.id = true, true, n.lower
	if err := unix.Renameat(f.up.work, temp, f.up.work, orphanName(n.id)); err != nil {
		_ = unix.Close(n.fd)
		return nil, err
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	f.nodes[n.id] = n
	return n, nil
}

// keepTimes runs something that touches a directory without being a change to it.
func keepTimes(dir int, touch func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	if err := touch(); err != nil {
		return err
	}
	return setTimes(dir, st.Atim, st.Mtim)
}

// copyUpDir gives a lower directory and its parents an upper part. FS.ns is held for writing.
func (f *FS) copyUpDir(id ID) (*node, error) {
	if n := f.node(id); n != nil {
		if n.gone {
			return nil, unix.ENOENT
		}
		return n, nil
	}
	if !f.tree().Has(id) {
		return nil, unix.ESTALE
	}
	if !f.tree().IsDir(id) {
		return nil, unix.ENOTDIR
	}
	at := f.tree().Names(id)[0]
	d, err := f.copyUpDir(at.Dir)
	if err != nil {
		return nil, err
	}
	h, err := f.find(at.Dir, at.Name, false)
	if err != nil || h.id != id {
		return nil, unix.ENOENT // another thing stands there by now
	}
	if h.n != nil {
		return h.n, nil
	}
	return f.makeDirCopy(id, d, at.Name)
}

func (f *FS) makeDirCopy(id ID, d *node, name string) (*node, error) {
	temp := f.up.temp()
	if err := unix.Mkdirat(f.up.work, temp, 0o700); err != nil {
		return nil, err
	}
	err := f.copyMeta(f.up.work, temp, id, f.tree().Attr(id))
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstatat(f.up.work, temp, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = f.dir(d, func(dir int) error {
			return keepTimes(dir, func() error {
				return unix.Renameat2(f.up.work, temp, dir, name, unix.RENAME_NOREPLACE)
			})
		})
	}
	if err != nil {
		_ = unix.Unlinkat(f.up.work, temp, unix.AT_REMOVEDIR)
		return nil, err
	}
	n := &node{lower: id, typ: unix.S_IFDIR, fd: -1, ino: st.Ino}
	f.tab.Lock()
	defer f.tab.Unlock()
	n.addPlace(d, name)
	return f.enterLocked(n), nil
}

package union

import (
	"archive/tar"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// A shown is a name as the mount shows it.
type shown struct {
	Attr
	id     ID // of directories
	key    nodeKey
	link   string
	xattrs []layer.Xattr
}

// show looks at a name as a process would. It enters nothing but directories
// into the table. ENOENT is what lost asks for.
func (f *FS) show(dir ID, name string, lost bool) (shown, error) {
	if lost {
		return shown{}, unix.ENOENT
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	d := f.node(dir)
	switch {
	case d == nil:
		return f.showLower(dir, name)
	case d.typ != unix.S_IFDIR, d.gone:
		return shown{}, unix.ENOENT
	}
	var s shown
	err := f.dir(d, func(fd int) (err error) {
		s, err = f.showUpper(d, fd, name)
		return err
	})
	if err == errLower {
		return f.showLower(d.lower, name)
	}
	return s, err
}

func (f *FS) showUpper(d *node, dir int, name string) (s shown, err error) {
	var st unix.Stat_t
	if err := f.statIn(d, dir, name, &st); err != nil {
		return s, err
	}
	fd, err := openAt(dir, name, unix.O_PATH, 0)
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	if s, err = f.showFD(fd); err == nil && s.IsDir() {
		s.id = f.adopt(d, dir, name, &st, false).id
	}
	return s, err
}

// showFD looks at the node of an O_PATH descriptor.
func (f *FS) showFD(fd int) (s shown, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return s, err
	}
	s.Attr, s.key = f.ids.inImage(f.statAttr(&node{ino: st.Ino}, &st)), nodeKey{true, st.Ino}
	if s.Type() == unix.S_IFLNK {
		if s.link, err = readlinkAt(fd, ""); err != nil {
			return s, err
		}
	}
	names, err := f.listUpperXattrs(fd)
	for _, name := range names {
		var value []byte
		if value, err = lgetxattrAt(fd, "", f.escape(name)); err != nil {
			return s, err
		}
		s.xattrs = append(s.xattrs, layer.Xattr{Name: name, Value: value})
	}
	return s, err
}

func (f *FS) showLower(dir ID, name string) (s shown, err error) {
	h, err := f.findLower(dir, name, false)
	if err != nil {
		return s, err
	}
	if h.n == nil {
		return lowerShown(f.tree(), h.id), nil
	}
	err = f.withPath(h.n, func(fd int) (err error) {
		s, err = f.showFD(fd)
		return err
	})
	s.id = h.id
	return s, err
}

func lowerShown(t *Tree, id ID) shown {
	s := shown{Attr: t.Attr(id), id: id, key: nodeKey{false, uint64(id)}, xattrs: t.Xattrs(id)}
	if s.Type() == unix.S_IFLNK {
		s.link = t.Readlink(id)
	}
	return s
}

func (f *FS) showRoot() (shown, error) {
	if f.up == nil {
		return lowerShown(f.tree(), Root), nil
	}
	s, err := f.showFD(f.up.root)
	s.id = Root
	return s, err
}

// listing is what a directory shows, sorted by the bytes of the names.
func (f *FS) listing(dir ID) ([]Dirent, error) {
	f.ns.RLock()
	defer f.ns.RUnlock()
	return f.list(dir)
}

// before compares points in time.
func (t Time) before(u Time) bool { return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec }

// compare holds an entry against what the mount shows at its path.
func (c *tarCheck) compare(p string, h *tar.Header, s shown) error {
	got, err := c.headerShown(h)
	if err != nil {
		return err
	}
	s.Mtime, s.xattrs = c.o.clamp(s.Mtime), c.o.of(s.key).keptXattrs(s.xattrs)
	if c.leftOut[p] {
		s.xattrs = nil
	}
	if h.Typeflag == tar.TypeLink {
		first := c.links[s.key]
		if first != h.Linkname || first == "" {
			return c.differs(s.Ctime, p, "a link to %q; the mount shows it linked to %q", h.Linkname, first)
		}
		got.Mode, got.Size, got.Rdev, got.link, got.xattrs = got.Mode|s.Type(), s.Size, s.Rdev, s.link, s.xattrs
	} else if err := c.firstOf(p, s); err != nil {
		return err
	}
	if field, is, want := compareShown(got, s); field != "" {
		return c.differs(s.Ctime, p, "%s is %v, not %v", field, is, want)
	}
	return nil
}

// firstOf notes where a node with several names has its data; a second entry with data is wrong.
func (c *tarCheck) firstOf(p string, s shown) error {
	if s.IsDir() || s.Nlink < 2 {
		return nil
	}
	if first := remember(c.links, s.key, p); first != "" {
		return c.differs(s.Ctime, p, "no link to %q", first)
	}
	return nil
}

var typesOfTar = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK,
	tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO, tar.TypeLink: 0,
}

// headerShown is an entry as somebody who unpacks it sees it.
func (c *tarCheck) headerShown(h *tar.Header) (shown, error) {
	typ, ok := typesOfTar[h.Typeflag]
	if !ok || h.Mode&^0o7777 != 0 || uint64(h.Uid|h.Gid) > math.MaxUint32 {
		return shown{}, fmt.Errorf("%w: /%s: type %q, mode %o, owner %d, group %d", ErrLayerDiffers, h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid)
	}
	s := shown{link: h.Linkname}
	s.Mode, s.UID, s.GID, s.Size = typ|uint32(h.Mode), uint32(h.Uid), uint32(h.Gid), h.Size
	s.Mtime = Time{h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())}
	s.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrPrefix); ok {
			s.xattrs = append(s.xattrs, layer.Xattr{Name: name, Value: []byte(value)})
		}
	}
	return s, nil
}

// compareShown finds the first field in which two differ; "" is none.
func compareShown(a, b shown) (field string, is, want any) {
	fields := []struct {
		name     string
		differ   bool
		is, want any
	}{
		{"type and mode", a.Mode != b.Mode, octal(a.Mode), octal(b.Mode)},
		{"owner", a.UID != b.UID, a.UID, b.UID},
		{"group", a.GID != b.GID, a.GID, b.GID},
		{"size", b.Type() == unix.S_IFREG && a.Size != b.Size, a.Size, b.Size},
		{"device", isDevice(b.Mode) && a.Rdev != b.Rdev, a.Rdev, b.Rdev},
		{"target", a.link != b.link, a.link, b.link},
		{"time of change", a.Mtime != b.Mtime, a.Mtime.Time().UTC(), b.Mtime.Time().UTC()},
	}
	for _, f := range fields {
		if f.differ {
			return f.name, f.is, f.want
		}
	}
	if !sameXattrs(a.xattrs, b.xattrs) {
		return "list of extended attributes", a.xattrs, b.xattrs
	}
	return "", nil, nil
}

// An octal prints as modes are read.
type octal uint32

func (o octal) String() string { return "0" + strconv.FormatUint(uint64(o), 8) }

func isDevice(mode uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFCHR || mode&unix.S_IFMT == unix.S_IFBLK
}

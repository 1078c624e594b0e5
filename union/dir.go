package union

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Dir is an open directory. What it lists is as it was when the listing
// began (at the first Read, and again at every Read from 0, as rewinddir(3) wants).
type Dir struct {
	fs *FS
	id ID

	mu   sync.Mutex
	list []Dirent // protected by mu; with "." and ".."; nil before the first Read
}

// OpenDir opens a directory for listing. It costs nothing until it is read.
func (f *FS) OpenDir(_ context.Context, id ID) (*Dir, error) {
	a, err := f.Getattr(context.Background(), id, nil)
	if err != nil {
		return nil, err
	}
	if !a.IsDir() {
		return nil, unix.ENOTDIR
	}
	return &Dir{fs: f, id: id}, nil
}

// Read lists from a position on: 0, or what yield was told as next. It ends when yield returns false.
func (d *Dir) Read(off uint64, yield func(next uint64, e Dirent) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off == 0 || d.list == nil {
		list, err := d.fs.snapshot(d.id)
		if err != nil {
			return err
		}
		d.list = list
	}
	for i := off; i < uint64(len(d.list)); i++ {
		if d.list[i].Name != "" && !yield(i+1, d.list[i]) {
			break
		}
	}
	return nil
}

// Names lists the names in their order, as the last Read from 0 found them.
func (d *Dir) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := make([]string, len(d.list))
	for i, e := range d.list {
		names[i] = e.Name
	}
	return names
}

// Resume goes on with a listing that another Dir began, and whose Names were
// these: positions stay as they are, and names that have gone since are passed over.
// nil does nothing. It is called before the first Read.
func (d *Dir) Resume(names []string) {
	list, err := d.fs.snapshot(d.id)
	if err != nil || names == nil {
		return // Read tells the error
	}
	now := make(map[string]Dirent, len(list))
	for _, e := range list {
		now[e.Name] = e
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = make([]Dirent, len(names))
	for i, name := range names {
		d.list[i] = now[name]
	}
}

// Close ends the listing.
func (d *Dir) Close() {}

// snapshot lists a directory with "." and "..".
func (f *FS) snapshot(id ID) ([]Dirent, error) {
	if f.up != nil {
		f.ns.RLock()
		defer f.ns.RUnlock()
	}
	list, err := f.list(id)
	if err != nil {
		return nil, err
	}
	dots := []Dirent{{".", id, f.inoOf(id), unix.S_IFDIR}, {"..", 0, f.parentIno(id), unix.S_IFDIR}}
	return append(dots, list...), nil
}

func (f *FS) inoOf(id ID) uint64 {
	if n := f.node(id); n != nil {
		return f.statIno(n)
	}
	return f.tree().ino(id)
}

func (f *FS) parentIno(id ID) uint64 {
	n := f.node(id)
	if n == nil || id == Root {
		return f.inoOf(f.tree().Parent(id))
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	if len(n.places) == 0 {
		return f.statIno(n)
	}
	return f.statIno(n.places[0].dir)
}

// list is what a directory shows, sorted by the bytes of the names. FS.ns is held.
func (f *FS) list(id ID) ([]Dirent, error) {
	n := f.node(id)
	if n == nil {
		if !f.tree().Has(id) {
			return nil, unix.ESTALE
		}
		return f.listLower(id, nil), nil
	}
	if n.gone {
		return nil, nil
	}
	up := map[string]*Dirent{}
	err := f.dir(n, func(fd int) error { return f.listUpper(n, fd, up) })
	if err != nil {
		return nil, err
	}
	var list []Dirent
	if n.merged() {
		list = f.listLower(n.lower, up)
	}
	for _, e := range up {
		if e != nil {
			list = append(list, *e)
		}
	}
	slices.SortFunc(list, func(a, b Dirent) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// listLower lists a lower directory without the names that the upper one has or hides.
func (f *FS) listLower(id ID, up map[string]*Dirent) []Dirent {
	var list []Dirent
	for name, id := range f.tree().Children(id) {
		if _, hidden := up[name]; !hidden && !reserved(name) {
			list = append(list, Dirent{name, id, f.inoOf(id), f.tree().Mode(id) & unix.S_IFMT})
		}
	}
	return list
}

// listUpper fills in what the upper directory itself says: entries, and nil for the names it hides.
func (f *FS) listUpper(d *node, fd int, up map[string]*Dirent) error {
	entries, err := readEntries(fd)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if hidden, ok := strings.CutPrefix(e.name, whiteoutPrefix); ok {
			up[hidden] = nil
			continue
		}
		de, err := f.upperDirent(d, fd, e)
		if err != nil {
			return err
		}
		up[e.name] = de
	}
	return nil
}

// upperDirent is nil for a whiteout.
func (f *FS) upperDirent(d *node, fd int, e entry) (*Dirent, error) {
	st := unix.Stat_t{Mode: e.typ, Ino: e.ino, Size: 1}
	if e.typ == unix.S_IFCHR || e.typ == unix.S_IFREG && (f.up.prefix == userPrefix || f.up.emptyWh.Load()) || e.typ == 0 {
		if err := unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
		if f.up.isWhiteout(fd, e.name, &st) {
			return nil, nil
		}
	}
	id, ino := f.identify(d, fd, e.name, &st)
	return &Dirent{e.name, id, ino, st.Mode & unix.S_IFMT}, nil
}

// identify finds the ID and inode number of an upper entry, without entering it into the table.
func (f *FS) identify(d *node, fd int, name string, st *unix.Stat_t) (ID, uint64) {
	f.tab.Lock()
	n := f.byIno[st.Ino]
	f.tab.Unlock()
	if n != nil {
		return n.id, f.statIno(n)
	}
	if lower := f.lowerOf(d, fd, name, st); lower != 0 && f.node(lower) == nil {
		return lower, f.tree().ino(lower)
	}
	return 0, f.bornAs(st.Ino)
}

// An entry is what getdents64(2) says of a name.
type entry struct {
	name string
	ino  uint64
	typ  uint32 // S_IFMT; 0 when the file system does not say
}

func readEntries(dir int) ([]entry, error) {
	fd, err := reopenDir(dir)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "upper")
	defer f.Close()
	var list []entry
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return list, err
		}
		list = parseEntries(buf[:n], list)
	}
}

// ReadDir lists a directory without a handle: 0 is the beginning, later
// positions are what yield was told as next. Of a tree that cannot change the
// positions hold for ever; with an upper directory use OpenDir.
func (f *FS) ReadDir(_ context.Context, id ID, off uint64, yield func(next uint64, e Dirent) bool) error {
	if !f.tree().Has(id) {
		return unix.ESTALE
	}
	if !f.tree().IsDir(id) {
		return unix.ENOTDIR
	}
	dots := [2]Dirent{{".", id, uint64(id), unix.S_IFDIR}, {"..", 0, uint64(f.tree().Parent(id)), unix.S_IFDIR}}
	for ; off < 2; off++ {
		if !yield(off+1, dots[off]) {
			return nil
		}
	}
	for {
		name, child, ok := f.tree().ChildAt(id, int(off-2))
		off++
		if !ok || !yield(off, Dirent{name, child, uint64(child), f.tree().Mode(child) & unix.S_IFMT}) {
			return nil
		}
	}
}

// FsyncDir makes the names of a directory durable.
func (f *FS) FsyncDir(_ context.Context, id ID) error {
	if f.ReadOnly() {
		return nil
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	n := f.node(id)
	if n == nil || n.gone {
		return nil
	}
	return f.dir(n, func(dir int) error {
		fd, err := reopenDir(dir)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fsync(fd)
	})
}

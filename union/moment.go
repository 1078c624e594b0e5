package union

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// ErrMarked says that another Moment of the FS is still open.
var ErrMarked = errors.New("another commit is under way")

// A Moment is what the upper directory held at one moment: a list of its
// metadata, made by Mark, and the content of its files. While it is open, the FS
// keeps the old content of what it is about to overwrite, unlink or move
// (moment_keep.go), so that WriteTar can take its time. Of an FS that was opened
// only to be read nobody keeps anything: what changes there is named as a Loss.
type Moment struct {
	fs    *FS
	since Time // what changed after the marking has this time of change or a later one
	list  []*[recordBlock]record
	n     int

	mu    sync.Mutex
	dirs  []*node              // protected by mu; upper directories that are referred to
	todo  map[uint64]int64     // protected by mu; size by inode number, of the files not yet read; nil: nobody keeps
	kept  map[uint64]*keptFile // protected by mu; those that something happened to
	links int                  // protected by mu; of kept that have a link in the work directory
}

// recordBlock is how many records are allocated at a time: growing one slice would need twice the memory.
const recordBlock = 1024

// A record is one thing that the upper directory says.
type record struct {
	dir            *markedDir // nil: the root itself
	name           string
	kind           recordKind
	mode, uid, gid uint32
	nlink          uint32
	num            uint64 // inode number, or of recordLower the ID
	id             ID     // of an upper node that the table knew; else 0
	rdev           uint64
	size           int64
	mtime          Time
	more           *recordMore // nil: nothing more
}

type recordKind uint8

const (
	recordUpper    recordKind = iota
	recordLower               // shows through a renamed directory
	recordWhiteout            // hides a name
)

type recordMore struct {
	link   string
	xattrs []layer.Xattr
}

// A markedDir is a directory of the list.
type markedDir struct {
	path string
	n    *node // nil: it only shows through a renamed one
}

func (r *record) path() string {
	if r.dir == nil {
		return ""
	}
	return join(r.dir.path, r.name)
}

func (r *record) typ() uint32 { return r.mode & unix.S_IFMT }

func (r *record) link() string {
	if r.more == nil {
		return ""
	}
	return r.more.link
}

func (r *record) xattrs() []layer.Xattr {
	if r.more == nil {
		return nil
	}
	return r.more.xattrs
}

// Mark notes what the upper directory holds now. No change begins before it
// returns; it reads no content. Close must be called. One Moment of an FS may be
// open at a time (ErrMarked), unless the FS is read-only.
func (f *FS) Mark(ctx context.Context) (*Moment, error) {
	m := &Moment{fs: f}
	if f.up == nil {
		return m, nil
	}
	if f.ReadOnly() {
		m.since = nextTick()
		if err := m.fill(ctx); err != nil {
			m.Close()
			return nil, err
		}
		return m, nil
	}
	return f.markSettled(ctx)
}

// markSettled marks until the files that are written to unseen held still meanwhile (unseen.go).
func (f *FS) markSettled(ctx context.Context) (*Moment, error) {
	f.unseen.setMarking(true)
	defer f.unseen.setMarking(false)
	for try := 1; ; try++ {
		copies := f.copyUnseen()
		m, err := f.mark(ctx, copies, try == markTries)
		dropCopies(copies)
		if !errors.Is(err, errMoved) {
			return m, err
		}
	}
}

// mark is one try; last tells that there is no other.
func (f *FS) mark(ctx context.Context, copies map[uint64]*unseenCopy, last bool) (*Moment, error) {
	m := &Moment{fs: f, todo: map[uint64]int64{}, kept: map[uint64]*keptFile{}}
	f.ns.RLock()
	defer f.ns.RUnlock()
	f.writes.Lock()
	defer f.writes.Unlock()
	if !f.moment.CompareAndSwap(nil, m) {
		return nil, ErrMarked
	}
	m.since = nextTick() // what was just written is told from what comes: Continue depends on it
	err := m.fill(ctx)
	if err == nil {
		err = m.takeCopies(copies, last)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close gives up what was kept.
func (m *Moment) Close() {
	if m.fs.moment.CompareAndSwap(m, nil) {
		m.dropKept()
	}
	m.mu.Lock()
	dirs := m.dirs
	m.dirs, m.list, m.n = nil, nil, 0
	m.mu.Unlock()
	f := m.fs
	f.tab.Lock()
	defer f.tab.Unlock()
	for _, n := range slices.Backward(dirs) { // what is in a directory first
		n.refs -= min(1, n.refs)
		f.releaseLocked(n)
	}
}

// fill makes the list.
func (m *Moment) fill(ctx context.Context) error {
	f := m.fs
	stack := []*markedDir{{n: f.node(Root)}}
	return f.walk(ctx, func(it *item) error {
		if it.path == "" {
			if same, err := f.rootUnchanged(it); same || err != nil {
				return err
			}
		}
		for stack[len(stack)-1].path != dirPath(it) {
			stack = stack[:len(stack)-1]
		}
		r, err := m.record(it, stack[len(stack)-1])
		if err != nil {
			return fmt.Errorf("note /%s: %w", it.path, err)
		}
		m.add(r)
		if r.typ() == unix.S_IFDIR && it.path != "" {
			stack = append(stack, m.enterDir(it, stack[len(stack)-1].n))
		}
		return nil
	})
}

// dirPath is the path of the directory an item is in; the root is in itself.
func dirPath(it *item) string {
	if len(it.path) <= len(it.name) || it.path == "" {
		return ""
	}
	return it.path[:len(it.path)-len(it.name)-1]
}

func (f *FS) rootUnchanged(it *item) (bool, error) {
	now, was := f.itemAttr(it), f.tree().Attr(Root)
	same, err := f.sameMeta(it, now, was)
	return same && now.Mtime == was.Mtime, err
}

// enterDir has an upper directory stay in the table, so that it is found under another name too.
func (m *Moment) enterDir(it *item, parent *node) *markedDir {
	d := &markedDir{path: it.path}
	if it.dir >= 0 && parent != nil {
		d.n = m.fs.adopt(parent, it.dir, it.name, &it.st, true)
		m.dirs = append(m.dirs, d.n)
	}
	return d
}

func (m *Moment) add(r record) {
	if m.n%recordBlock == 0 {
		m.list = append(m.list, new([recordBlock]record))
	}
	m.list[m.n/recordBlock][m.n%recordBlock] = r
	m.n++
	if m.todo != nil && r.kind == recordUpper && r.typ() == unix.S_IFREG && r.size > 0 {
		m.todo[r.num] = r.size
	}
}

// records lists what was noted.
func (m *Moment) records() iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for i := range m.n {
			if !yield(&m.list[i/recordBlock][i%recordBlock]) {
				return
			}
		}
	}
}

// idByIno is the ID of an upper node that the table knows; else 0.
func (f *FS) idByIno(ino uint64) ID {
	f.tab.Lock()
	defer f.tab.Unlock()
	if n := f.byIno[ino]; n != nil {
		return n.id
	}
	return 0
}

func (m *Moment) record(it *item, dir *markedDir) (record, error) {
	r := record{dir: dir, name: strings.Clone(it.name)}
	if it.path == "" {
		r.dir, r.name = nil, ""
	}
	if it.whiteout {
		r.kind = recordWhiteout
		return r, nil
	}
	a := m.fs.itemAttr(it)
	r.mode, r.uid, r.gid, r.nlink, r.rdev, r.size, r.mtime = a.Mode, a.UID, a.GID, a.Nlink, a.Rdev, a.Size, a.Mtime
	r.num, r.id = it.st.Ino, m.fs.idByIno(it.st.Ino)
	if it.dir < 0 {
		r.kind, r.num, r.id = recordLower, uint64(it.from), 0
	}
	var more recordMore
	var err error
	if a.Type() == unix.S_IFLNK {
		if more.link, err = m.fs.itemLink(it); err != nil {
			return r, err
		}
	}
	if more.xattrs, err = m.fs.itemXattrs(it); err != nil {
		return r, err
	}
	if more.link != "" || len(more.xattrs) > 0 {
		r.more = &more
	}
	return r, nil
}

package union

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// How a Moment takes files that the kernel writes to without us (FUSE
// passthrough). beforeWrite is not called for them, so that nobody keeps what
// they were. They are copied before the marking, and only if they hold still:
// their time of change must be older than a tick of the clock when the copy
// begins, so that every later write gives them another one, with and without
// multigrain timestamps; and it must be the same once the list is made. What
// moved is tried again, the list included, as it has to be of the same moment;
// what never holds still is a Loss with its name. While that goes on, and
// as long as the Moment is open, no further file becomes unseen (WriteUnseen).

// markTries bounds how often a file that is written to meanwhile is copied.
const markTries = 3

var (
	errMoved  = errors.New("a file changed during the marking")
	errUnseen = errors.New("it was written to all the time, by a process that has it open since before the commit")
)

// unseen are the files that the kernel may be writing to by itself.
type unseen struct {
	mu      sync.Mutex
	ids     map[ID]bool // protected by mu
	marking bool        // protected by mu; none may be added
}

func (u *unseen) list() []ID {
	u.mu.Lock()
	defer u.mu.Unlock()
	ids := make([]ID, 0, len(u.ids))
	for id := range u.ids {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (u *unseen) has(id ID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ids[id]
}

func (u *unseen) setMarking(on bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.marking = on
}

// add is false while a marking goes on, unless must.
func (u *unseen) add(id ID, must bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.marking && !must {
		return false
	}
	if u.ids == nil {
		u.ids = map[ID]bool{}
	}
	u.ids[id] = true
	return true
}

// WriteUnseen says that from now on the kernel may write to an upper file
// without a call of WriteAt, until SeenAgain. It is refused (false) during a
// commit, unless the caller has no choice (must): the open Moment, if there is one,
// then keeps all of the file now. h is open for writing.
func (h *File) WriteUnseen(must bool) bool {
	f := h.fs
	f.writes.RLock()
	defer f.writes.RUnlock()
	if f.moment.Load() != nil {
		if !must {
			return false
		}
		if fd, ok := h.Fd(); ok {
			f.beforeWrite(fd, 0, 1<<62)
		}
	}
	return f.unseen.add(h.id, must)
}

// StillUnseen is WriteUnseen for a file of which an FS before this one, of the same mount, said so.
func (f *FS) StillUnseen(id ID) { f.unseen.add(id, true) }

// SeenAgain ends WriteUnseen.
func (f *FS) SeenAgain(id ID) {
	f.unseen.mu.Lock()
	defer f.unseen.mu.Unlock()
	delete(f.unseen.ids, id)
}

// An unseenCopy is the content of a file at a time when it did not change.
type unseenCopy struct {
	k  *keptFile // size, copy and saved are set
	st unix.Stat_t
}

func sameChange(a, b *unix.Stat_t) bool {
	return a.Ctim == b.Ctim && a.Mtim == b.Mtim && a.Size == b.Size
}

// copyUnseen copies the files that hold still, by inode number. One that cannot
// be copied is not there, and so becomes a Loss.
func (f *FS) copyUnseen() map[uint64]*unseenCopy {
	all := map[uint64]*unseenCopy{}
	for _, id := range f.unseen.list() {
		_ = f.withUnseen(id, func(fd int) error {
			c, err := f.copyStill(fd)
			if err == nil {
				all[c.st.Ino] = c
			}
			return err
		})
	}
	return all
}

// withUnseen calls use with a descriptor to read; one that has gone is ESTALE.
func (f *FS) withUnseen(id ID, use func(fd int) error) error {
	f.ns.RLock()
	n := f.upperOf(id)
	if n == nil {
		f.ns.RUnlock()
		return unix.ESTALE
	}
	fd := -1
	err := f.withPath(n, func(path int) (err error) {
		fd, err = unix.Open(procPath(path, ""), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	f.ns.RUnlock()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return use(fd)
}

// copyStill copies a file, errMoved if it changed in the last tick. Pages of a
// shared mapping are written back first: the next store to one is then a change
// that the file's times tell of (file_update_time in a page fault).
func (f *FS) copyStill(fd int) (*unseenCopy, error) {
	const write = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(fd, 0, 0, write); err != nil {
		return nil, fmt.Errorf("write back: %w", err)
	}
	var was unix.Stat_t
	c := &unseenCopy{}
	if err := unix.Fstat(fd, &was); err != nil {
		return nil, err
	}
	nextTick()
	if err := unix.Fstat(fd, &c.st); err != nil {
		return nil, err
	}
	if !sameChange(&was, &c.st) {
		return nil, errMoved
	}
	c.k = &keptFile{m: &Moment{fs: f}, copy: -1, size: c.st.Size}
	if err := c.k.saveLocked(fd, 0, c.st.Size); err != nil {
		c.drop()
		return nil, err
	}
	c.k.saved = nil
	return c, nil
}

func (c *unseenCopy) drop() {
	if c.k.copy >= 0 {
		_ = unix.Close(c.k.copy)
		c.k.copy = -1
	}
}

func dropCopies(all map[uint64]*unseenCopy) {
	for _, c := range all {
		c.drop()
	}
}

// takeCopies has the Moment read the copies. errMoved: a file is no longer as
// it was copied; the last time it becomes a Loss. FS.ns and FS.writes are held.
func (m *Moment) takeCopies(copies map[uint64]*unseenCopy, last bool) error {
	for _, id := range m.fs.unseen.list() {
		n := m.fs.upperOf(id)
		if n == nil {
			continue
		}
		var st unix.Stat_t
		if err := m.fs.withPath(n, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
			return err
		}
		c := copies[st.Ino]
		still := c != nil && sameChange(&c.st, &st)
		if !still && !last {
			return errMoved
		}
		m.takeCopy(st.Ino, c, still)
	}
	return nil
}

// takeCopy is for one file; one without content at the moment, or without a name, is not in todo.
func (m *Moment) takeCopy(ino uint64, c *unseenCopy, still bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.todo[ino]; !ok {
		return
	}
	k := m.keptLocked(ino)
	if !still {
		k.err = errUnseen
		return
	}
	k.copy, c.k.copy = c.k.copy, -1
}

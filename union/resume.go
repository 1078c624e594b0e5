package union

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A server may die and another go on with the same mount: the kernel then
// still has the numbers of nodes, and files open that have no name any more.
// A lower node's number is its place in the tree. Those of nodes born in the upper
// directory are written to a file, before anybody learns of them, by their backing
// inodes. It only has to survive the process and is not synced. And a file that
// loses its last name while somebody uses it gets a name in the work directory, by its
// number, until it is forgotten.

// idRecord is the size of one record in the file: ID and backing inode.
const idRecord = 16

// bornIDLocked gives a node born in the upper directory its ID. tab is held.
func (f *FS) bornIDLocked(ino uint64) ID {
	if id, ok := f.up.had[ino]; ok && f.nodes[id] == nil && !f.tree().Has(id) {
		return id
	}
	id := f.next
	f.next++
	if f.up.o.Numbers != nil {
		b := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(id)), ino)
		if _, err := f.up.o.Numbers.Write(b); err != nil {
			f.up.log.Error("keep the ID of a node; it will not survive this server", "err", err)
		}
	}
	return id
}

// readIDs reads what an earlier FS gave. An inode number that was used again belongs to the last ID.
func (u *Upper) readIDs() error {
	if u.o.Numbers == nil || !u.o.Resume {
		return nil
	}
	b, err := io.ReadAll(io.NewSectionReader(u.o.Numbers, 0, math.MaxInt64))
	if err != nil {
		return fmt.Errorf("read the IDs of nodes: %w", err)
	}
	u.had = make(map[uint64]ID, len(b)/idRecord)
	for ; len(b) >= idRecord; b = b[idRecord:] {
		id := ID(binary.LittleEndian.Uint64(b))
		u.had[binary.LittleEndian.Uint64(b[8:])] = id
		u.lastID = max(u.lastID, id)
	}
	return nil
}

// orphanPrefix begins the names, in the work directory, of files that have no other.
const orphanPrefix = "orphan-"

func orphanName(id ID) string { return orphanPrefix + strconv.FormatUint(uint64(id), 16) }

// Resume enters into the table what an earlier FS of the same mount had there,
// or may have had. It is called before the FS is used.
func (f *FS) Resume() error {
	if f.up == nil {
		return nil
	}
	names, err := readNames(f.up.work)
	if err != nil {
		return fmt.Errorf("look for deleted files in use: %w", err)
	}
	for _, name := range names {
		if num, ok := strings.CutPrefix(name, orphanPrefix); ok {
			id, err := strconv.ParseUint(num, 16, 64)
			if err != nil || !f.resumeOrphan(ID(id), name) {
				f.up.discard(name)
			}
		}
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	return f.resumeDir(f.node(Root))
}

// resumeOrphan takes up a deleted file. It reports false for a whiteout that was to
// take the place of one, for a file that still has a name elsewhere, and for what cannot be opened.
func (f *FS) resumeOrphan(id ID, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(f.up.work, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || f.up.isWhiteout(f.up.work, name, &st) || st.Nlink > 1 {
		return false
	}
	fd, err := openAt(f.up.work, name, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	n := &node{id: id, typ: st.Mode & unix.S_IFMT, fd: fd, ino: st.Ino, gone: true, orphan: true, resumed: true}
	if f.tree().Has(id) {
		n.lower = id
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	f.nodes[id] = n
	return true
}

// resumeDir enters all that an upper directory has. FS.ns is held.
func (f *FS) resumeDir(d *node) error {
	list, err := f.list(d.id)
	if err != nil {
		return fmt.Errorf("look for copied-up files: %w", err)
	}
	for _, e := range list {
		h, err := f.find(d.id, e.Name, false)
		if err != nil || h.n == nil {
			continue
		}
		f.tab.Lock()
		h.n.resumed = true
		f.tab.Unlock()
		if h.n.typ == unix.S_IFDIR {
			if err := f.resumeDir(h.n); err != nil {
				return err
			}
		}
	}
	return nil
}

// Find is Lookup that takes no reference.
func (f *FS) Find(dir ID, name string) (ID, error) {
	f.life.RLock()
	defer f.life.RUnlock()
	f.ns.RLock()
	defer f.ns.RUnlock()
	h, err := f.find(dir, name, false)
	return h.id, err
}

// unlinkKept takes a name in an upper directory away from a node that somebody uses.
func (f *FS) unlinkKept(n *node, dir int, name string) error {
	err := unix.Renameat(dir, name, f.up.work, orphanName(n.id))
	if err == nil {
		n.orphan = true
	}
	return err
}

// linkKept gives a node that somebody uses a name in the work directory, before it loses its own.
func (f *FS) linkKept(n *node, dir int, name string) error {
	err := unix.Linkat(dir, name, f.up.work, orphanName(n.id), 0)
	if err == nil || err == unix.EEXIST {
		n.orphan, err = true, nil
	}
	return err
}

// dropOrphanLocked takes the name in the work directory away again. tab is held.
func (f *FS) dropOrphanLocked(n *node) {
	if n.orphan {
		_ = unix.Unlinkat(f.up.work, orphanName(n.id), 0) // what stays is removed at the next mount
		n.orphan = false
	}
}

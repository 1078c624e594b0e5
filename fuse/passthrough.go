package fuse

import (
	"log/slog"
	"sync"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// Passthrough: the kernel reads and writes an upper file by itself
// (FOPEN_PASSTHROUGH, Documentation/filesystems/fuse/fuse-passthrough.rst), at the speed of the
// file system below. Rules:
//
//   - An inode has one mode while it is open at all: cached, or passthrough with one
//     backing ID. The kernel answers an open of another kind with EIO
//     (fs/fuse/iomode.c). The mode ends with the last RELEASE, which the kernel
//     sends after it has left the mode itself. A closed file that is still
//     mapped in cached mode is not released before the mapping goes.
//   - Upper files that are opened to be read, or made or truncated by the open,
//     get passthrough. What is opened to be changed in place or appended to (databases,
//     logs) stays cached: so its writes come to us, and a commit has the file as it was
//     at its moment (union/moment.go). For the others there is union/unseen.go.
//   - A file with setuid or setgid stays cached as well: a passthrough write has
//     our credentials, which keep the bits.
//   - An upper file is opened without FOPEN_KEEP_CACHE once there is passthrough: the page
//     cache of the mount does not see what is written below it.
//   - A store to a shared mapping changes the times of the backing file alone. So
//     the kernel may not keep the attributes of a file that may be mapped like that.
//   - Without CAP_SYS_ADMIN, before Linux 6.9 or on an upper directory that is
//     itself stacked, the first registration fails, and all stays cached.

// modes are the open regular files by node. Its lock is taken before those of the union.
type modes struct {
	mu       sync.Mutex
	open     map[uint64]*ioMode // protected by mu
	kept     *modeTable         // protected by mu
	off      bool               // protected by mu; no passthrough on this mount
	mappable sync.Map           // nodes whose attributes the kernel must not keep

	seen       func(node uint64) // the union: no kernel writes any more
	register   func(fd int) (int32, syscall.Errno)
	unregister func(id int32) syscall.Errno
	log        *slog.Logger
}

// An ioMode is how an inode is open.
type ioMode struct {
	backing int32 // 0: cached
	handles uint32
	slot    int64
}

// An opened is what the mode of an open depends on.
type opened interface {
	Fd() (int, bool)
	WriteUnseen(must bool) bool
}

func newModes(kept *modeTable, log *slog.Logger) *modes {
	return &modes{open: map[uint64]*ioMode{}, kept: kept, log: log}
}

// restore takes over what an earlier server had open, and returns the nodes in passthrough.
func (m *modes) restore() (direct []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for node, o := range m.kept.load() {
		m.open[node] = o
		if o.backing != 0 {
			m.mappable.Store(node, true) // perhaps: the earlier server knew
			direct = append(direct, node)
		}
	}
	return direct
}

// enter counts a handle and decides what it is. No error may come between this and the answer.
func (m *modes) enter(node uint64, f opened, flags uint32, fresh bool) (openFlags uint32, backing int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.open[node]
	if o == nil {
		o = &ioMode{backing: m.begin(f, flags, fresh), slot: m.kept.slot()}
		m.open[node] = o
	}
	if o.backing == 0 {
		o.handles++
		m.kept.put(node, o)
		if _, upper := f.Fd(); upper && !m.off {
			return 0, 0
		}
		return cached, 0
	}
	if writes(flags) {
		f.WriteUnseen(true)
	}
	if flags&syscall.O_ACCMODE == syscall.O_RDWR {
		m.mappable.Store(node, true)
	}
	o.handles++
	m.kept.put(node, o)
	return gofuse.FOPEN_PASSTHROUGH, o.backing
}

func writes(flags uint32) bool { return flags&syscall.O_ACCMODE != syscall.O_RDONLY }

// begin chooses the mode of an inode that is not open: a backing ID, or 0 for cached.
func (m *modes) begin(f opened, flags uint32, fresh bool) int32 {
	fd, upper := f.Fd()
	if m.off || !upper || writes(flags) && (!fresh || flags&syscall.O_APPEND != 0) || privileged(fd) {
		return 0
	}
	if writes(flags) && !f.WriteUnseen(false) {
		return 0
	}
	id, errno := m.register(fd)
	if errno != 0 || id <= 0 {
		m.off = true
		m.log.Info("no passthrough: reads and writes of upper files go through the server", slog.Any("error", errno))
		return 0 // a file that was said to be unseen is forgotten by leave
	}
	return id
}

// privileged tells whether a write takes something away from a file's mode.
func privileged(fd int) bool {
	var st syscall.Stat_t
	return syscall.Fstat(fd, &st) != nil || st.Mode&(syscall.S_ISUID|syscall.S_ISGID) != 0
}

// leave counts a handle that was released; again: perhaps not for the first time. It is
// not counted then, and the inode keeps its mode for longer than it needs to.
func (m *modes) leave(node uint64, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.open[node]
	if o == nil || again {
		return
	}
	if o.handles--; o.handles > 0 {
		m.kept.put(node, o)
		return
	}
	delete(m.open, node)
	m.kept.free(o.slot) // before the ID goes: a later server must not use it
	if o.backing != 0 {
		if errno := m.unregister(o.backing); errno != 0 {
			m.log.Warn("cannot unregister a backing file", "node", node, slog.Any("error", errno))
		}
	}
	if !m.mayBeMapped(node) {
		m.seen(node)
	}
}

// mayBeMapped tells whether a process may store to the file without a call of ours or the kernel's.
func (m *modes) mayBeMapped(node uint64) bool {
	_, ok := m.mappable.Load(node)
	return ok
}

// forget is for an inode that the kernel no longer has: it is not mapped either.
func (m *modes) forget(node uint64) {
	if !m.mayBeMapped(node) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open[node] == nil { // else it was found and opened again, and this comes late
		m.mappable.Delete(node)
		m.seen(node)
	}
}

// opened answers an open or create: how the file is to be used, and its number.
func (m stateful) opened(node uint64, f *union.File, flags uint32, fresh bool, out *gofuse.OpenOut) {
	mapped := m.modes.mayBeMapped(node)
	openFlags, id := m.modes.enter(node, f, flags, fresh)
	if !mapped && m.modes.mayBeMapped(node) {
		m.modeChanged(union.ID(node))
	}
	*out = gofuse.OpenOut{Fh: m.files.add(f, modeOf(flags)), OpenFlags: openFlags, BackingID: id}
}

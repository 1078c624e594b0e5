package fuse

import (
	"log/slog"
	"sync"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// core answers the requests that need no open file: names, attributes, links,
// extended attributes. What changes the tree goes to the union as well when it
// is read-only: the union says EROFS.
//
// A node's number in the kernel is its union.ID; the root of both is 1.
type core struct {
	gofuse.RawFileSystem // ENOSYS for what neither we nor the library have
	fs                   *union.FS
	log                  *slog.Logger
	server               *gofuse.Server // set before the first request but INIT
	gate                 sync.RWMutex   // see begin
	files                handles[*union.File]
	dirs                 handles[*union.Dir]
	listings             *listings
	modes                *modes
	push                 *pusher // nil: the tree may change
}

func newCore(fs *union.FS, log *slog.Logger) *core {
	return &core{RawFileSystem: gofuse.NewDefaultRawFileSystem(), fs: fs, log: log, modes: newModes(nil, log)}
}

// Init is called between the answer to INIT and the next request.
func (m *core) Init(s *gofuse.Server) {
	m.server = s
	m.modes.register = func(fd int) (int32, syscall.Errno) {
		return s.RegisterBackingFd(&gofuse.BackingMap{Fd: int32(fd)})
	}
	m.modes.seen = func(node uint64) { m.fs.SeenAgain(union.ID(node)) }
	m.modes.unregister = s.UnregisterBackingFd
	if m.fs.ReadOnly() {
		m.push = newPusher(m.fs, s)
	}
}

func (m *core) String() string { return "layerfs" }

// OnUnmount closes what nobody will release any more.
func (m *core) OnUnmount() {
	if m.push != nil {
		close(m.push.stop)
	}
	for _, f := range m.files.drain() {
		if err := f.Close(); err != nil {
			m.log.Error("cannot close a file at the end of the mount", slog.Any("error", err))
		}
	}
	for _, d := range m.dirs.drain() {
		d.Close()
	}
}

// callerOf is who sent a request, and to whom what it makes will belong.
func callerOf(h *gofuse.InHeader) union.Caller {
	return union.Caller{UID: h.Uid, GID: h.Gid, PID: h.Pid}
}

// callerWith is callerOf for what has a mode: with CAP_DONT_MASK the umask is ours to apply, or a default ACL instead of it.
func callerWith(h *gofuse.InHeader, umask uint32) union.Caller {
	c := callerOf(h)
	c.Umask = umask
	return c
}

func (m *core) Lookup(cancel <-chan struct{}, in *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	id, a, err := m.fs.Lookup(c, union.ID(in.NodeId), name)
	if err == syscall.ENOENT {
		fillMissing(out)
		return gofuse.OK
	}
	if err != nil {
		return m.replyCall(c, "lookup", in.NodeId, err)
	}
	m.fillEntry(out, id, &a)
	return gofuse.OK
}

func (m *core) Forget(node, refs uint64) {
	m.fs.Forget(union.ID(node), refs)
	m.modes.forget(node)
}

func (m *core) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	var h *union.File
	if in.Flags()&gofuse.FUSE_GETATTR_FH != 0 {
		h, _ = m.files.get(in.Fh())
	}
	a, err := m.fs.Getattr(c, union.ID(in.NodeId), h)
	if err != nil {
		return m.replyCall(c, "getattr", in.NodeId, err)
	}
	fillAttrOut(out, &a)
	out.SetTimeout(m.attrTTL(union.ID(in.NodeId)))
	return gofuse.OK
}

func (m *core) SetAttr(cancel <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	var h *union.File
	if fh, ok := in.GetFh(); ok {
		h, _ = m.file(c, in.NodeId, fh)
	}
	s := setAttrOf(&in.SetAttrInCommon)
	if in.Valid&gofuse.FATTR_KILL_SUIDGID != 0 && s.Mode == nil {
		mode, err := m.modeWithoutPrivs(c, union.ID(in.NodeId))
		if err != nil {
			return m.replyCall(c, "setattr", in.NodeId, err)
		}
		s.Mode = mode
	}
	a, err := m.fs.Setattr(c, union.ID(in.NodeId), h, s)
	if err != nil {
		return m.replyCall(c, "setattr", in.NodeId, err)
	}
	fillAttrOut(out, &a)
	out.SetTimeout(m.attrTTL(union.ID(in.NodeId)))
	return gofuse.OK
}

func (m *core) Readlink(cancel <-chan struct{}, in *gofuse.InHeader) ([]byte, gofuse.Status) {
	c := m.begin(cancel)
	defer c.end()
	target, err := m.fs.Readlink(c, union.ID(in.NodeId))
	return []byte(target), m.replyCall(c, "readlink", in.NodeId, err)
}

func (m *core) StatFs(cancel <-chan struct{}, in *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	c := m.begin(cancel)
	defer c.end()
	s, err := m.fs.Statfs(c)
	if err != nil {
		return m.replyCall(c, "statfs", in.NodeId, err)
	}
	*out = gofuse.StatfsOut{Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree,
		Bsize: s.Bsize, Frsize: s.Bsize, NameLen: s.NameLen}
	return gofuse.OK
}

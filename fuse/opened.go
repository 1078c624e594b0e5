package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// An Opening is an open(2) of a file. PID and IDs are those of the caller, as the server's namespaces have them.
type Opening struct {
	ID            union.ID
	UID, GID, PID uint32
	Flags         uint32
}

// withOpened tells of every open(2) before it succeeds, and lets it fail where it
// cannot be told. A read-only mount has to ask for each file then.
type withOpened struct {
	gofuse.RawFileSystem
	core *core
	tell func(Opening) error
}

func (m withOpened) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	if err := m.tell(Opening{union.ID(in.NodeId), in.Uid, in.Gid, in.Pid, in.Flags}); err != nil {
		return m.core.reply("open", in.NodeId, err)
	}
	if m.core.fs.ReadOnly() {
		out.OpenFlags = cached
		return gofuse.OK
	}
	return m.RawFileSystem.Open(cancel, in, out)
}

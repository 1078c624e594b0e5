package fuse

import (
	"slices"
	"strconv"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
)

// An exchange of two names looks the same before and after it, and done twice
// it is undone. It is the one request of which something is written down
// before: which nodes the two names led to. It goes to the listings, by the
// request's number with resentBit, which no handle has.

// exchangedBefore tells whether an exchange that comes again has been carried out; of others it takes note.
func (m *core) exchangedBefore(in *gofuse.RenameIn, oldName, newName string) bool {
	now := []string{m.idText(in.NodeId, oldName), m.idText(in.Newdir, newName)}
	if resent(&in.InHeader) {
		before := m.listings.of(in.Unique)
		slices.Reverse(before)
		return len(before) == len(now) && slices.Equal(before, now)
	}
	m.listings.keep(in.Unique|resentBit, now, false)
	return false
}

// idText is the number of the node that a name leads to.
func (m *core) idText(dir uint64, name string) string {
	id, err := m.fs.Find(union.ID(dir), name)
	if err != nil {
		return err.Error()
	}
	return strconv.FormatUint(uint64(id), 16)
}

package fuse

import (
	"errors"
	"log/slog"
	"syscall"

	"github.com/layerfs/layerfs/union"
)

// The flags of open(2) that a handle's number keeps, with the bit of each. The
// access mode has the first two bits. O_SYNC includes O_DSYNC.
const (
	accessBits = 3
	dsyncBit   = 1 << 2
	syncBit    = 1 << 3
)

// modeOf is what a handle's number says of how the file was opened.
func modeOf(flags uint32) uint8 {
	mode := uint8(flags & accessBits)
	if flags&syscall.O_DSYNC != 0 {
		mode |= dsyncBit
	}
	if flags&syscall.O_SYNC == syscall.O_SYNC {
		mode |= syncBit
	}
	return mode
}

// flagsOf is the way back.
func flagsOf(fh uint64) int {
	flags := int(fh & accessBits)
	if fh&dsyncBit != 0 {
		flags |= syscall.O_DSYNC
	}
	if fh&syncBit != 0 {
		flags |= syscall.O_SYNC
	}
	return flags
}

// file finds an open file. One that an earlier server opened is opened again.
func (m *core) file(c *call, node, fh uint64) (*union.File, bool) {
	f, ok := m.files.get(fh)
	if ok || !m.files.earlier(fh) {
		return f, ok
	}
	f, err := m.fs.Open(c, union.ID(node), flagsOf(fh))
	if err != nil {
		m.log.Error("cannot open again what an earlier server had open", "node", node, slog.Any("error", err))
		return nil, false
	}
	use, ours := m.files.adopt(fh, f)
	if !ours {
		_ = f.Close()
	}
	return use, true
}

// dir finds an open directory, as file does.
func (m *core) dir(node, fh uint64) (*union.Dir, bool) {
	d, ok := m.dirs.get(fh)
	if ok || !m.dirs.earlier(fh) {
		return d, ok
	}
	d, err := m.fs.OpenDir(newCall(nil), union.ID(node))
	if err != nil {
		m.log.Error("cannot open again a directory that an earlier server had open", "node", node, slog.Any("error", err))
		return nil, false
	}
	d.Resume(m.listings.of(fh))
	use, _ := m.dirs.adopt(fh, d)
	return use, true
}

// doneBefore is the error of a request that removes or moves a name, or takes
// something away: what is gone already went when the request came first.
func doneBefore(again bool, err error) error {
	if again && (errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODATA)) {
		return nil
	}
	return err
}

package fuse

import (
	"encoding/binary"
	"io"
	"log/slog"
	"os"
)

// A modeTable keeps the modes of the open files for a later server of the
// mount: the kernel has the backing IDs still, and wants the same one for
// the next open. A slot has the node, the ID and the number of handles, of
// which there may be more than in truth (see modes.leave). It is in memory and only has to
// survive the process. A nil *modeTable keeps nothing.
type modeTable struct {
	f     *os.File
	end   int64   // of the slots in use
	holes []int64 // free slots before end
	log   *slog.Logger
}

const slotSize = 16

func newModeTable(f *os.File, log *slog.Logger) *modeTable {
	if f == nil {
		return nil
	}
	return &modeTable{f: f, log: log}
}

// load reads what an earlier server left. A slot that is not whole was never used.
func (t *modeTable) load() map[uint64]*ioMode {
	all := map[uint64]*ioMode{}
	if t == nil {
		return all
	}
	r := io.NewSectionReader(t.f, 0, 1<<40)
	var b [slotSize]byte
	for t.end = 0; ; t.end += slotSize {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return all
		}
		node, o := parseSlot(b[:])
		if node == 0 || o.handles == 0 {
			t.holes = append(t.holes, t.end)
			continue
		}
		o.slot = t.end
		all[node] = o
	}
}

func parseSlot(b []byte) (node uint64, o *ioMode) {
	return binary.NativeEndian.Uint64(b), &ioMode{
		backing: int32(binary.NativeEndian.Uint32(b[8:])), handles: binary.NativeEndian.Uint32(b[12:])}
}

// slot is a free one.
func (t *modeTable) slot() (at int64) {
	if t == nil {
		return 0
	}
	if n := len(t.holes); n > 0 {
		at, t.holes = t.holes[n-1], t.holes[:n-1]
		return at
	}
	at = t.end
	t.end += slotSize
	return at
}

func (t *modeTable) put(node uint64, o *ioMode) {
	if t == nil {
		return
	}
	var b [slotSize]byte
	binary.NativeEndian.PutUint64(b[:], node)
	binary.NativeEndian.PutUint32(b[8:], uint32(o.backing))
	binary.NativeEndian.PutUint32(b[12:], o.handles)
	t.write(b[:], o.slot)
}

func (t *modeTable) free(slot int64) {
	if t == nil {
		return
	}
	t.write(make([]byte, slotSize), slot)
	t.holes = append(t.holes, slot)
}

func (t *modeTable) write(b []byte, at int64) {
	if _, err := t.f.WriteAt(b, at); err != nil {
		t.log.Warn("the mode of an open file is not kept for a later server", slog.Any("error", err))
	}
}

package cache

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
)

// A pack file is
//
//	data    Size bytes, sparse
//	        zero bytes up to the next multiple of blockSize
//	map     one entry per unit
//	        zero bytes up to the next multiple of blockSize
//	regions the generation of each region (8 bytes), then when each was used last (8 bytes, in
//	        milliseconds since 1970; 0: it holds nothing); see region.go
//	        zero bytes up to the next multiple of blockSize
//	header  one block, the last of the file
//
// so that data is at its own offset, the map never moves, and one rename
// publishes all of it. An entry is 16 bytes, little endian: the offset of the
// unit's end (8), the CRC-32C of its bytes (4), the mark (4). The mark is zero
// where the unit is missing and otherwise a checksum of the unit's number and
// its CRC: a torn or damaged entry reads as missing.
const (
	blockSize  = 4096
	entrySize  = 16
	headerSize = 8 + 4 + 4 + 16 + 8 + 8 + sha256.Size + 4 + 4

	magic   = "lfspack\x00"
	version = 2

	flagClean = 1 << 0
	flagSolid = 1 << 1

	// regionSize is how much of a pack is evicted at a time: enough that a pack of 10 GiB has ten
	// thousand clocks, and no more than one section of a plain layer, which is what a read fetches.
	regionSize = 1 << 20

	// maxUnits keeps a damaged header from asking for all memory: at the smallest useful unit, a block, it is 256 GiB.
	maxUnits = 1 << 26
	// maxSize does so for the regions: four million of them.
	maxSize = 1 << 42
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A bootID tells one run of the kernel from the next.
type bootID [16]byte

// currentBoot reads the kernel's boot id; where there is none, a random one makes every
// pack that was not closed cleanly count as lost, which is safe.
func currentBoot() (id bootID) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		h, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", ""))
		if err == nil && copy(id[:], h) == len(id) {
			return id
		}
	}
	_, _ = rand.Read(id[:]) // never fails: crypto/rand.Read
	return id
}

// header is the last block of a pack file.
type header struct {
	clean  bool              // everything marked is on the disk
	solid  bool              // what is missing cannot be fetched by itself: all of it or nothing
	boot   bootID            // who wrote it last, when it is not clean
	size   int64             // bytes of data
	units  int64             // entries of the map
	layout [sha256.Size]byte // of the units: offsets, lengths and sums
	ends   uint32            // CRC-32C of the ends in the map
}

func (h *header) encode() []byte {
	b := make([]byte, 0, blockSize)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	var flags uint32
	if h.clean {
		flags |= flagClean
	}
	if h.solid {
		flags |= flagSolid
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = append(b, h.boot[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.size))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.units))
	b = append(b, h.layout[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.ends)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return b[:blockSize]
}

// parseHeader reads the last block of a file of fileSize bytes. Every number in it is in
// range and agrees with fileSize afterwards.
func parseHeader(b []byte, fileSize int64) (header, error) {
	var h header
	if len(b) < headerSize || !bytes.HasPrefix(b, []byte(magic)) {
		return h, fmt.Errorf("pack header: no magic: %w", ErrCorrupt)
	}
	sum := binary.LittleEndian.Uint32(b[headerSize-4:])
	if crc32.Checksum(b[:headerSize-4], castagnoli) != sum {
		return h, fmt.Errorf("pack header: checksum: %w", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return h, fmt.Errorf("pack header: version %d: %w", v, ErrCorrupt)
	}
	flags := binary.LittleEndian.Uint32(b[12:])
	h.clean, h.solid = flags&flagClean != 0, flags&flagSolid != 0
	copy(h.boot[:], b[16:])
	h.size = int64(binary.LittleEndian.Uint64(b[32:]))
	h.units = int64(binary.LittleEndian.Uint64(b[40:]))
	copy(h.layout[:], b[48:])
	h.ends = binary.LittleEndian.Uint32(b[80:])
	if h.size < 0 || h.size > maxSize || h.units < 0 || h.units > min(h.size, maxUnits) || (h.units == 0) != (h.size == 0) {
		return h, fmt.Errorf("pack header: %d units, %d bytes: %w", h.units, h.size, ErrCorrupt)
	}
	if fileSize != h.fileSize() {
		return h, fmt.Errorf("pack header: file of %d bytes, not %d: %w", fileSize, h.fileSize(), ErrCorrupt)
	}
	return h, nil
}

func roundUp(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

func (h *header) mapOff() int64    { return roundUp(h.size) }
func (h *header) regions() int64   { return regionsOf(h.size) }
func (h *header) genOff() int64    { return h.mapOff() + roundUp(h.units*entrySize) }
func (h *header) usedOff() int64   { return h.genOff() + 8*h.regions() }
func (h *header) headerOff() int64 { return h.genOff() + roundUp(16*h.regions()) }
func (h *header) fileSize() int64  { return h.headerOff() + blockSize }

// regionsOf is how many regions a pack of size bytes has.
func regionsOf(size int64) int64 { return (size + regionSize - 1) / regionSize }

// mark is what stands in the entry of a unit that is there.
func mark(unit int, crc uint32) uint32 {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[:], uint64(unit))
	binary.LittleEndian.PutUint32(b[8:], crc)
	return max(crc32.Checksum(b[:], castagnoli), 1)
}

// putEntry writes the entry of a unit; there false makes it a missing one.
func putEntry(b []byte, unit int, end int64, crc uint32, there bool) {
	var m uint32
	if there {
		m = mark(unit, crc)
	}
	binary.LittleEndian.PutUint64(b, uint64(end))
	binary.LittleEndian.PutUint32(b[8:], crc)
	binary.LittleEndian.PutUint32(b[12:], m)
}

// entryCRC returns the CRC in an entry, and whether the unit is there.
func entryCRC(b []byte, unit int) (crc uint32, there bool) {
	crc = binary.LittleEndian.Uint32(b[8:])
	m := binary.LittleEndian.Uint32(b[12:])
	return crc, m != 0 && m == mark(unit, crc)
}

// parseEnds reads the unit ends of a map, which must rise from 0 to size.
func parseEnds(m []byte, h header) ([]int64, error) {
	ends := make([]int64, h.units)
	last, sum := int64(0), uint32(0)
	for i := range ends {
		e := m[i*entrySize:]
		ends[i] = int64(binary.LittleEndian.Uint64(e))
		if ends[i] <= last || ends[i] > h.size {
			return nil, fmt.Errorf("pack map: unit %d ends at %d: %w", i, ends[i], ErrCorrupt)
		}
		last, sum = ends[i], crc32.Update(sum, castagnoli, e[:8])
	}
	if last != h.size || sum != h.ends {
		return nil, fmt.Errorf("pack map: checksum of the units: %w", ErrCorrupt)
	}
	return ends, nil
}

// encodeEnds makes the map of units of which none is there, and the checksum of their ends.
func encodeEnds(ends []int64) (m []byte, sum uint32) {
	m = make([]byte, len(ends)*entrySize)
	for i, end := range ends {
		e := m[i*entrySize:]
		putEntry(e, i, end, 0, false)
		sum = crc32.Update(sum, castagnoli, e[:8])
	}
	return m, sum
}

// checkUnits reports an error unless units are contiguous from 0 and none is empty.
func checkUnits(units []Unit) (ends []int64, err error) {
	if len(units) > maxUnits {
		return nil, fmt.Errorf("%d units, the limit is %d", len(units), maxUnits)
	}
	ends = make([]int64, len(units))
	var next int64
	for i, u := range units {
		if u.Off != next || u.Len <= 0 || u.Off+u.Len < u.Off {
			return nil, fmt.Errorf("unit %d of %d bytes at %d, wanted at %d", i, u.Len, u.Off, next)
		}
		next += u.Len
		ends[i] = next
	}
	if next > maxSize {
		return nil, fmt.Errorf("%d bytes, the limit is %d", next, int64(maxSize))
	}
	return ends, nil
}

// layoutOf tells one way of cutting a pack into units from another.
func layoutOf(units []Unit) (sum [sha256.Size]byte) {
	h := sha256.New()
	var b [16]byte
	for _, u := range units {
		binary.LittleEndian.PutUint64(b[:], uint64(u.Off))
		binary.LittleEndian.PutUint64(b[8:], uint64(u.Len))
		h.Write(b[:])
		h.Write(u.Sum[:])
	}
	h.Sum(sum[:0])
	return sum
}

// layoutOfEnds is the layout of a pack that was written as a whole: no unit has a sum.
func layoutOfEnds(ends []int64) [sha256.Size]byte {
	units := make([]Unit, len(ends))
	var off int64
	for i, end := range ends {
		units[i] = Unit{Off: off, Len: end - off}
		off = end
	}
	return layoutOf(units)
}

// fillEntries marks every unit of a map as there, with these CRCs, but for the lost ones.
func fillEntries(m []byte, crcs []uint32, lost []bool) {
	for i, crc := range crcs {
		e := m[i*entrySize:]
		putEntry(e, i, int64(binary.LittleEndian.Uint64(e)), crc, !lost[i])
	}
}

package ztoc

import (
	"archive/tar"
	"encoding/binary"
	"time"
)

// A shape is the fields that all tables of a type have here, zeros included: their vtable
// is the same.
type shape struct {
	vtable []byte
	off    []int // of the fields in the table
	size   int
}

// newShape lays out fields of these sizes, each aligned to its own.
func newShape(sizes ...int) shape {
	s := shape{size: 4} // the distance of the vtable
	for _, n := range sizes {
		s.size = align(s.size, n)
		s.off = append(s.off, s.size)
		s.size += n
	}
	s.vtable = binary.LittleEndian.AppendUint16(nil, uint16(4+2*len(sizes)))
	s.vtable = binary.LittleEndian.AppendUint16(s.vtable, uint16(s.size))
	for _, off := range s.off {
		s.vtable = binary.LittleEndian.AppendUint16(s.vtable, uint16(off))
	}
	return s
}

func align(n, to int) int { return (n + to - 1) / to * to }

// A writer makes a FlatBuffer from front to back. Strings come last, each once, because
// references lead forward only.
type writer struct {
	b       []byte
	strings []stringRef
}

// A stringRef is a reference whose string is still to be written.
type stringRef struct {
	at int
	s  string
}

func (w *writer) align(to int) {
	w.b = append(w.b, make([]byte, align(len(w.b), to)-len(w.b))...)
}

// point makes the reference at at refer to what comes next.
func (w *writer) point(at int) {
	binary.LittleEndian.PutUint32(w.b[at:], uint32(len(w.b)-at))
}

// vtable writes the vtable of s and returns where it is.
func (w *writer) vtable(s shape) int {
	w.align(2)
	at := len(w.b)
	w.b = append(w.b, s.vtable...)
	return at
}

// A record is a table that is being written.
type record struct {
	w  *writer
	s  shape
	at int
}

// table writes an empty table of a shape, whose vtable is at vtable. ref is the reference to it.
func (w *writer) table(s shape, vtable, ref int) record {
	w.align(8)
	w.point(ref)
	at := len(w.b)
	w.b = append(w.b, make([]byte, s.size)...)
	binary.LittleEndian.PutUint32(w.b[at:], uint32(at-vtable))
	return record{w, s, at}
}

// single writes a table that is the only one of its shape.
func (w *writer) single(s shape, ref int) record { return w.table(s, w.vtable(s), ref) }

func (r record) field(slot int) int { return r.at + r.s.off[slot] }

func (r record) byte(slot int, v byte) { r.w.b[r.field(slot)] = v }

func (r record) uint32(slot int, v uint32) {
	binary.LittleEndian.PutUint32(r.w.b[r.field(slot):], v)
}

func (r record) int64(slot int, v int64) {
	binary.LittleEndian.PutUint64(r.w.b[r.field(slot):], uint64(v))
}

func (r record) string(slot int, v string) {
	r.w.strings = append(r.w.strings, stringRef{r.field(slot), v})
}

// refs writes a vector of n references and returns where they are.
func (r record) refs(slot, n int) int {
	r.w.align(4)
	r.w.point(r.field(slot))
	r.w.b = binary.LittleEndian.AppendUint32(r.w.b, uint32(n))
	at := len(r.w.b)
	r.w.b = append(r.w.b, make([]byte, 4*n)...)
	return at
}

func (r record) bytes(slot int, v []byte) {
	r.w.align(4)
	r.w.point(r.field(slot))
	r.w.b = binary.LittleEndian.AppendUint32(r.w.b, uint32(len(v)))
	r.w.b = append(r.w.b, v...)
}

// finish writes the strings. They end with a NUL that does not count.
func (w *writer) finish() []byte {
	written := map[string]int{}
	for _, r := range w.strings {
		at, ok := written[r.s]
		if !ok {
			w.align(4)
			at = len(w.b)
			written[r.s] = at
			w.b = binary.LittleEndian.AppendUint32(w.b, uint32(len(r.s)))
			w.b = append(append(w.b, r.s...), 0)
		}
		binary.LittleEndian.PutUint32(w.b[r.at:], uint32(at-r.at))
	}
	return w.b
}

// Encode returns the zTOC's bytes. The same ZTOC gives the same bytes.
func (z *ZTOC) Encode() []byte {
	w := &writer{b: make([]byte, 4, 1<<16)}
	root := w.single(newShape(4, 4, 8, 8, 4, 4), 0)
	root.string(ztocVersion, version)
	root.string(ztocBuildTool, z.BuildTool)
	root.int64(ztocArchiveSize, z.ArchiveSize)
	root.int64(ztocUncompressedSize, z.UncompressedSize)
	z.writeFiles(w.single(newShape(4), root.field(ztocTOC)))
	z.writeCompression(w.single(newShape(1, 4, 4, 4), root.field(ztocCompression)))
	return w.finish()
}

func (z *ZTOC) writeFiles(toc record) {
	w := toc.w
	refs := toc.refs(tocMetadata, len(z.Files))
	fields := []int{4, 4, 8, 8, 4, 8, 4, 4, 4, 4, 4, 8, 8, 4}
	plain, extended, pair := newShape(fields[:filePAX]...), newShape(fields...), newShape(4, 4)
	plainAt, extendedAt, pairAt := w.vtable(plain), w.vtable(extended), w.vtable(pair)
	for i := range z.Files {
		e := &z.Files[i]
		if len(e.PAX) == 0 {
			e.write(w.table(plain, plainAt, refs+4*i))
			continue
		}
		r := w.table(extended, extendedAt, refs+4*i)
		e.write(r)
		list := r.refs(filePAX, len(e.PAX))
		for j, p := range e.PAX {
			r := w.table(pair, pairAt, list+4*j)
			r.string(recordKey, p.Key)
			r.string(recordValue, p.Value)
		}
	}
}

func (e *File) write(r record) {
	r.string(fileName, e.Name)
	r.string(fileType, typeName(e.Type))
	r.int64(fileOffset, e.Offset)
	r.int64(fileSize, e.Size)
	r.string(fileLinkname, e.Linkname)
	r.int64(fileMode, e.Mode)
	r.uint32(fileUID, e.UID)
	r.uint32(fileGID, e.GID)
	r.string(fileUname, e.Uname)
	r.string(fileGname, e.Gname)
	r.string(fileModTime, timeText(e.ModTime))
	r.int64(fileDevMajor, e.DevMajor)
	r.int64(fileDevMinor, e.DevMinor)
}

// timeText is RFC 3339 with nanoseconds, as SOCI has it. It cannot say every time that a tar
// can: "" stands for the others.
func timeText(t time.Time) string {
	b, err := t.UTC().MarshalText()
	if t.IsZero() || err != nil {
		return ""
	}
	return string(b)
}

// typeName is SOCI's word for a type of entry, "" if it has none.
func typeName(t byte) string {
	if t == tar.TypeReg {
		return "reg"
	}
	for name, v := range fileTypes {
		if v == t {
			return name
		}
	}
	return ""
}

func (z *ZTOC) writeCompression(r record) {
	r.byte(compressionAlgorithm, byte(z.Algorithm))
	r.uint32(compressionMaxSpan, uint32(len(z.SpanDigests)-1))
	refs := r.refs(compressionDigests, len(z.SpanDigests))
	for i, d := range z.SpanDigests {
		r.w.strings = append(r.w.strings, stringRef{refs + 4*i, d.String()})
	}
	if z.Algorithm == Uncompressed {
		r.bytes(compressionCheckpoints, z.encodeTarZinfo())
		return
	}
	r.bytes(compressionCheckpoints, z.encodeZinfo())
}

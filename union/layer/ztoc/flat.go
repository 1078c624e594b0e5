package ztoc

import (
	"encoding/binary"
	"fmt"
)

// A flat is a FlatBuffer that is read (FlatBuffers, "Internals"). All in it is
// little-endian; references are distances forward in bytes, but that a table refers to
// its vtable by the distance back. Each one is checked before it is followed. The
// schema has no type that contains itself, so that reading always ends.
//
// The first error sticks; what is read after it is zero.
type flat struct {
	b   []byte
	s   string // the same: a string costs nothing, and a thousand entries can share one
	err error
}

func (f *flat) fail(what string, at int) {
	if f.err == nil {
		f.err = fmt.Errorf("%w: %s at byte %d", ErrFormat, what, at)
	}
}

// has tells whether n bytes at at lie inside, and fails when they do not.
func (f *flat) has(at, n int, what string) bool {
	ok := f.err == nil && at >= 0 && n <= len(f.b) && at <= len(f.b)-n
	if !ok {
		f.fail(what, at)
	}
	return ok
}

// follow returns what the reference at at refers to.
func (f *flat) follow(at int) int {
	if !f.has(at, 4, "reference") {
		return 0
	}
	return at + int(binary.LittleEndian.Uint32(f.b[at:]))
}

// A table is a record whose fields may be missing: its vtable has where they are.
type table struct {
	f      *flat
	at     int
	size   int
	vtable []byte // the part with the fields
}

// table reads the table at at. A table that could not be read has no fields.
func (f *flat) table(at int) table {
	t := table{f: f, at: at}
	if !f.has(at, 4, "table") {
		return t
	}
	v := at - int(int32(binary.LittleEndian.Uint32(f.b[at:])))
	if !f.has(v, 4, "vtable") {
		return t
	}
	n := int(binary.LittleEndian.Uint16(f.b[v:]))
	size := int(binary.LittleEndian.Uint16(f.b[v+2:]))
	if n < 4 || size < 4 {
		f.fail("vtable", v)
		return t
	}
	if f.has(v, n, "vtable") && f.has(at, size, "table") {
		t.size, t.vtable = size, f.b[v+4:v+n]
	}
	return t
}

// field returns where the field of a slot is, size bytes long; false when it is missing.
func (t table) field(slot, size int) (int, bool) {
	if 2*slot+2 > len(t.vtable) {
		return 0, false
	}
	off := int(binary.LittleEndian.Uint16(t.vtable[2*slot:]))
	if off == 0 {
		return 0, false
	}
	if off < 4 || off+size > t.size {
		t.f.fail("field", t.at)
		return 0, false
	}
	return t.at + off, true
}

func (t table) int64(slot int) int64 {
	at, ok := t.field(slot, 8)
	if !ok {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(t.f.b[at:]))
}

func (t table) uint32(slot int) uint32 {
	at, ok := t.field(slot, 4)
	if !ok {
		return 0
	}
	return binary.LittleEndian.Uint32(t.f.b[at:])
}

// byte returns a field of one byte, def if it is missing.
func (t table) byte(slot int, def byte) byte {
	at, ok := t.field(slot, 1)
	if !ok {
		return def
	}
	return t.f.b[at]
}

// child returns the table that a field refers to. One that is missing has no fields.
func (t table) child(slot int) table {
	at, ok := t.field(slot, 4)
	if !ok {
		return table{f: t.f}
	}
	return t.f.table(t.f.follow(at))
}

// vector returns where the n elements of a field are; none when it is missing.
func (t table) vector(slot, size int) (at, n int) {
	ref, ok := t.field(slot, 4)
	if !ok {
		return 0, 0
	}
	return t.f.vector(t.f.follow(ref), size)
}

func (f *flat) vector(at, size int) (int, int) {
	if !f.has(at, 4, "vector") {
		return 0, 0
	}
	n := int(binary.LittleEndian.Uint32(f.b[at:]))
	if !f.has(at+4, n*size, "vector") {
		return 0, 0
	}
	return at + 4, n
}

func (t table) bytes(slot int) []byte {
	at, n := t.vector(slot, 1)
	return t.f.b[at : at+n : at+n]
}

func (t table) string(slot int) string {
	at, n := t.vector(slot, 1)
	return t.f.s[at : at+n]
}

// stringAt is the string that the reference at at refers to.
func (f *flat) stringAt(at int) string {
	at, n := f.vector(f.follow(at), 1)
	return f.s[at : at+n]
}

package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A sqliteFile is a SQLite database in memory, as far as it takes to read the
// rows of a table ("Database File Format", sqlite.org/fileformat2.html). It believes no
// number of the file.
type sqliteFile struct {
	b     []byte
	page  int // bytes of a page
	used  int // of them, without what is reserved at the end ("usable size")
	steps int // pages that may still be looked at: in a sound file each is looked at once
}

var errSQLite = errors.New("not a sound SQLite database")

// Sections 1.2, 1.3 and 1.6 of the format.
const (
	sqliteMagic     = "SQLite format 3\x00"
	sqliteHeader    = 100
	interiorTable   = 5
	leafTable       = 13
	maxTreeDepth    = 20
	minPage         = 512
	schemaRootPage  = 1
	schemaType      = 0
	schemaName      = 1
	schemaPage      = 3
	tableCellHeader = 4 // the page number in a cell of an interior page
)

func openSQLite(b []byte) (*sqliteFile, error) {
	if len(b) < sqliteHeader || string(b[:len(sqliteMagic)]) != sqliteMagic {
		return nil, errSQLite
	}
	f := &sqliteFile{b: b, page: int(binary.BigEndian.Uint16(b[16:]))}
	if f.page == 1 {
		f.page = 1 << 16
	}
	f.used = f.page - int(b[20])
	if f.page < minPage || f.page&(f.page-1) != 0 || f.used < 480 {
		return nil, fmt.Errorf("%w: pages of %d bytes", errSQLite, f.page)
	}
	return f, nil
}

// pageAt is page n, from 1.
func (f *sqliteFile) pageAt(n uint32) ([]byte, error) {
	end := int64(n) * int64(f.page)
	if n == 0 || end > int64(len(f.b)) || f.steps <= 0 {
		return nil, fmt.Errorf("%w: page %d", errSQLite, n)
	}
	f.steps--
	return f.b[end-int64(f.page) : end], nil
}

// A sqliteValue is a column: an integer, or bytes (text and blobs alike). The others are nothing.
type sqliteValue struct {
	num   int64
	bytes []byte
}

// table calls row for each row of a table, which has a column at least, until that returns false.
func (f *sqliteFile) table(name string, row func([]sqliteValue) bool) error {
	root := int64(0)
	err := f.walk(schemaRootPage, func(v []sqliteValue) bool {
		if len(v) > schemaPage && string(v[schemaType].bytes) == "table" && string(v[schemaName].bytes) == name {
			root = v[schemaPage].num
		}
		return root == 0
	})
	if err != nil {
		return err
	}
	if root <= 0 || root > int64(len(f.b)/f.page) {
		return fmt.Errorf("%w: no table %s", errSQLite, name)
	}
	return f.walk(uint32(root), row)
}

// walk begins a walk through a B-tree.
func (f *sqliteFile) walk(root uint32, row func([]sqliteValue) bool) error {
	f.steps = len(f.b)/f.page + 1
	_, err := f.tree(root, 0, row)
	return err
}

func (f *sqliteFile) tree(n uint32, depth int, row func([]sqliteValue) bool) (more bool, err error) {
	p, err := f.pageAt(n)
	if err != nil {
		return false, err
	}
	if depth > maxTreeDepth {
		return false, fmt.Errorf("%w: a tree too deep", errSQLite)
	}
	head := p
	if n == schemaRootPage {
		head = p[sqliteHeader:]
	}
	kind, cells := head[0], int(binary.BigEndian.Uint16(head[3:]))
	pointers := head[8:]
	if kind == interiorTable {
		pointers = head[12:]
	}
	if kind != interiorTable && kind != leafTable || len(pointers) < 2*cells {
		return false, fmt.Errorf("%w: page %d is of kind %d", errSQLite, n, kind)
	}
	for i := range cells {
		at := int(binary.BigEndian.Uint16(pointers[2*i:]))
		if at+tableCellHeader > f.used {
			return false, fmt.Errorf("%w: a cell at %d of page %d", errSQLite, at, n)
		}
		if kind == interiorTable {
			more, err = f.tree(binary.BigEndian.Uint32(p[at:]), depth+1, row)
		} else {
			more, err = f.cell(p[:f.used], at, row)
		}
		if !more || err != nil {
			return false, err
		}
	}
	if kind == interiorTable {
		return f.tree(binary.BigEndian.Uint32(head[8:]), depth+1, row)
	}
	return true, nil
}

// cell reads a row of a leaf page.
func (f *sqliteFile) cell(p []byte, at int, row func([]sqliteValue) bool) (more bool, err error) {
	size, n := sqliteVarint(p[at:])
	_, m := sqliteVarint(p[min(at+n, len(p)):]) // the row's number
	if n == 0 || m == 0 || size > uint64(len(f.b)) {
		return false, fmt.Errorf("%w: a cell", errSQLite)
	}
	record, err := f.payload(p[at+n+m:], int(size))
	if err != nil {
		return false, err
	}
	values, err := sqliteRecord(record)
	if err == nil && len(values) == 0 {
		err = fmt.Errorf("%w: a row without columns", errSQLite)
	}
	if err != nil {
		return false, err
	}
	return row(values), nil
}

// payload puts a row together from its page and those that it overflows to (section 1.6).
func (f *sqliteFile) payload(p []byte, size int) ([]byte, error) {
	local := size
	if most := f.used - 35; size > most {
		least := (f.used-12)*32/255 - 23
		if local = least + (size-least)%(f.used-4); local > most {
			local = least
		}
	}
	if local > len(p) || local < size && local+4 > len(p) {
		return nil, fmt.Errorf("%w: a row that leaves its page", errSQLite)
	}
	if local == size {
		return p[:size], nil
	}
	out := append(make([]byte, 0, size), p[:local]...)
	for next := binary.BigEndian.Uint32(p[local:]); len(out) < size; {
		q, err := f.pageAt(next)
		if err != nil {
			return nil, err
		}
		next = binary.BigEndian.Uint32(q)
		out = append(out, q[4:min(f.used, 4+size-len(out))]...)
	}
	return out, nil
}

// sqliteRecord takes a row apart (section 2.1).
func sqliteRecord(b []byte) (values []sqliteValue, err error) {
	size, n := sqliteVarint(b)
	if n == 0 || size > uint64(len(b)) {
		return nil, fmt.Errorf("%w: a row", errSQLite)
	}
	head, body := b[n:max(n, int(size))], b[size:]
	for len(head) > 0 {
		kind, n := sqliteVarint(head)
		if n == 0 {
			return nil, fmt.Errorf("%w: a row", errSQLite)
		}
		head = head[n:]
		size := sqliteSize(kind)
		if size > uint64(len(body)) {
			return nil, fmt.Errorf("%w: a row that is cut short", errSQLite)
		}
		v := sqliteValue{bytes: body[:size]}
		if kind < 12 {
			v = sqliteValue{num: sqliteInt(kind, v.bytes)}
		}
		values, body = append(values, v), body[size:]
	}
	return values, nil
}

// sqliteSize is how many bytes a column of a serial type has.
func sqliteSize(kind uint64) uint64 {
	if kind >= 12 {
		return (kind - 12) / 2
	}
	return [...]uint64{0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0}[kind]
}

func sqliteInt(kind uint64, b []byte) (n int64) {
	switch kind {
	case 9:
		return 1
	case 1, 2, 3, 4, 5, 6:
		n = int64(int8(b[0]))
		for _, c := range b[1:] {
			n = n<<8 | int64(c)
		}
	}
	return n
}

// sqliteVarint is a number of up to nine bytes, the first ones of seven bits each; n is 0 where it is cut short.
func sqliteVarint(b []byte) (v uint64, n int) {
	for n < len(b) && n < 8 {
		c := b[n]
		n++
		if v = v<<7 | uint64(c&0x7f); c < 0x80 {
			return v, n
		}
	}
	if n < len(b) && n == 8 {
		return v<<8 | uint64(b[n]), 9
	}
	return 0, 0
}

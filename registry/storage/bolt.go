package storage

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
)

// A bolt is a bbolt database in memory, read without its library: that one maps the file,
// locks it, and trusts every page of it; a page that a damaged or hostile file has twice
// would have it run for ever, and one beyond the end is a SIGBUS. The format is that of
// go.etcd.io/bbolt, version 2 (db.go, page.go, bucket.go, node.go); numbers are little endian,
// as on every machine that containerd runs on but s390x.
type bolt struct {
	b        []byte
	pageSize uint64
	root     uint64
	visits   uint64 // pages read of the tree at hand: each of the file once at most
}

// What bbolt's files say.
const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	boltPageHeader = 16
	boltElement    = 16
	boltBranch     = 0x01
	boltLeaf       = 0x02
	boltBucket     = 0x01 // flag of a leaf's element
)

const (
	// maxBolt is the largest database that is read; containerd's have some MB.
	maxBolt = 512 << 20
	// maxBoltDepth is of a tree of pages: 16 levels hold more than a disk.
	maxBoltDepth = 16
)

func boltError(format string, args ...any) error {
	return fmt.Errorf("%w: bbolt database: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// newBolt takes up a database: its newer meta page with a right checksum.
func newBolt(b []byte) (*bolt, error) {
	d := &bolt{b: b}
	var newest uint64
	found := false
	size := uint64(4096)
	if len(b) >= boltPageHeader+64 && binary.LittleEndian.Uint32(b[boltPageHeader:]) == boltMagic {
		size = uint64(binary.LittleEndian.Uint32(b[boltPageHeader+8:]))
	}
	for _, at := range []uint64{0, size} {
		if at+boltPageHeader+64 > uint64(len(b)) || at > 1<<20 {
			continue
		}
		m := b[at+boltPageHeader : at+boltPageHeader+64]
		sum := fnv.New64a()
		sum.Write(m[:56])
		if binary.LittleEndian.Uint32(m) != boltMagic || binary.LittleEndian.Uint32(m[4:]) != boltVersion || sum.Sum64() != binary.LittleEndian.Uint64(m[56:]) {
			continue
		}
		if tx := binary.LittleEndian.Uint64(m[48:]); !found || tx > newest {
			found, newest = true, tx
			d.pageSize, d.root = uint64(binary.LittleEndian.Uint32(m[8:])), binary.LittleEndian.Uint64(m[16:])
		}
	}
	if !found || d.pageSize < 512 || d.pageSize > 1<<20 {
		return nil, boltError("no meta page")
	}
	return d, nil
}

// A boltItem is a key of a bucket: a value, or a bucket.
type boltItem struct {
	key, value []byte
	bucket     bool
}

// bucket lists a bucket by its path; one that is not there is empty.
func (d *bolt) bucket(path ...string) ([]boltItem, error) {
	items, err := d.list(d.root)
	for _, name := range path {
		if err != nil {
			return nil, err
		}
		value, ok := find(items, name, true)
		if !ok {
			return nil, nil
		}
		items, err = d.open(value)
	}
	return items, err
}

// find returns the value of a key.
func find(items []boltItem, key string, bucket bool) ([]byte, bool) {
	for _, it := range items {
		if string(it.key) == key && it.bucket == bucket {
			return it.value, true
		}
	}
	return nil, false
}

// open lists the bucket whose value is given: the page of its root, or the page itself.
func (d *bolt) open(value []byte) ([]boltItem, error) {
	if len(value) < 16 {
		return nil, boltError("a bucket of %d bytes", len(value))
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return d.list(root)
	}
	d.visits = 0
	return d.page(value[16:], 0)
}

// list lists the tree of a bucket.
func (d *bolt) list(root uint64) ([]boltItem, error) {
	d.visits = 0
	return d.tree(root, 0)
}

// tree lists the leaves below a page.
func (d *bolt) tree(id uint64, depth int) ([]boltItem, error) {
	if id < 2 || id >= uint64(len(d.b))/d.pageSize {
		return nil, boltError("page %d of %d", id, uint64(len(d.b))/d.pageSize)
	}
	at := id * d.pageSize
	if binary.LittleEndian.Uint64(d.b[at:]) != id {
		return nil, boltError("page %d says it is %d", id, binary.LittleEndian.Uint64(d.b[at:]))
	}
	pages := uint64(binary.LittleEndian.Uint32(d.b[at+12:])) + 1
	end := min(at+pages*d.pageSize, uint64(len(d.b)))
	return d.page(d.b[at:end], depth)
}

// page lists a page, or the leaves below a branch.
func (d *bolt) page(p []byte, depth int) (items []boltItem, err error) {
	if d.visits++; d.visits > uint64(len(d.b))/d.pageSize || depth > maxBoltDepth {
		return nil, boltError("its pages have no end")
	}
	if len(p) < boltPageHeader {
		return nil, boltError("a page of %d bytes", len(p))
	}
	flags, count := binary.LittleEndian.Uint16(p[8:]), int(binary.LittleEndian.Uint16(p[10:]))
	if boltPageHeader+count*boltElement > len(p) {
		return nil, boltError("%d elements in a page of %d bytes", count, len(p))
	}
	for i := range count {
		at := boltPageHeader + i*boltElement
		switch e := p[at : at+boltElement]; flags {
		case boltLeaf:
			it, err := leafItem(p[at:], e)
			if err != nil {
				return nil, err
			}
			items = append(items, it)
		case boltBranch:
			below, err := d.tree(binary.LittleEndian.Uint64(e[8:]), depth+1)
			if err != nil {
				return nil, err
			}
			items = append(items, below...)
		default:
			return nil, boltError("a page of type %#x", flags)
		}
	}
	return items, nil
}

// leafItem reads an element, whose key and value stand at a distance from itself.
func leafItem(from, e []byte) (boltItem, error) {
	pos, k, v := uint64(binary.LittleEndian.Uint32(e[4:])), uint64(binary.LittleEndian.Uint32(e[8:])), uint64(binary.LittleEndian.Uint32(e[12:]))
	if pos+k+v > uint64(len(from)) {
		return boltItem{}, boltError("an element beyond the end of its page")
	}
	data := from[pos : pos+k+v]
	return boltItem{data[:k], data[k:], binary.LittleEndian.Uint32(e)&boltBucket != 0}, nil
}

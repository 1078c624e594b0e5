package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// rpm reads the database of rpm 4.16 and later, which is SQLite: a row for each package
// with the package's header. Those of before are named and not read.
func (a *auditor) rpm(ctx context.Context) error {
	for _, dir := range []string{"usr/lib/sysimage/rpm", "var/lib/rpm"} {
		id, err := a.im.Tree.ResolveFollow(dir)
		if err != nil || !a.im.Tree.IsDir(id) {
			continue
		}
		if _, ok := a.im.Tree.Lookup(id, "rpmdb.sqlite"); ok {
			return a.rpmSQLite(ctx, dir)
		}
		for _, old := range []string{"Packages", "Packages.db"} {
			if _, ok := a.im.Tree.Lookup(id, old); ok {
				a.cannotRead("rpm: its database in /"+dir+" has an older form", nil)
				return nil
			}
		}
	}
	return nil
}

func (a *auditor) cannotRead(what string, err error) {
	if err != nil {
		what += ": " + err.Error()
	}
	a.result.Unreadable = append(a.result.Unreadable, what+` and is not read; "rpm --root MOUNT -Va" does that`)
}

func (a *auditor) rpmSQLite(ctx context.Context, dir string) error {
	b, err := a.text(ctx, dir+"/rpmdb.sqlite")
	if err != nil {
		return err
	}
	if log, err := a.im.Tree.ResolveFollow(dir + "/rpmdb.sqlite-wal"); err == nil && a.im.Tree.Size(log) > 0 {
		a.result.Unreadable = append(a.result.Unreadable, "rpm: what stands in /"+dir+"/rpmdb.sqlite-wal alone, the latest changes")
	}
	if err := a.rpmPackages(b, dir); err != nil {
		a.cannotRead("rpm: /"+dir+"/rpmdb.sqlite", err)
		return nil
	}
	a.result.Databases = append(a.result.Databases, "rpm")
	return nil
}

// rpmPackages reads the table of packages: a number and a header.
func (a *auditor) rpmPackages(db []byte, dir string) error {
	f, err := openSQLite(db)
	if err != nil {
		return err
	}
	return f.table("Packages", func(row []sqliteValue) bool {
		if h, err := parseRPMHeader(row[len(row)-1].bytes); err == nil {
			a.rpmPackage(h)
		} else {
			a.result.Unreadable = append(a.result.Unreadable, "rpm: a package in /"+dir+": "+err.Error())
		}
		return len(a.result.Unreadable) < maxComplaints
	})
}

// maxComplaints bounds what is said of a database that is broken everywhere.
const maxComplaints = 100

// The tags and flags of rpm's headers that are looked at (rpmtag.h and rpmfiles.h of rpm 4.18).
const (
	rpmName        = 1000
	rpmFileModes   = 1030
	rpmFileStates  = 1029
	rpmFileDigests = 1035
	rpmFileFlags   = 1037
	rpmDirIndexes  = 1116
	rpmBaseNames   = 1117
	rpmDirNames    = 1118
	rpmDigestAlgo  = 5011

	rpmFileConfig    = 1 << 0
	rpmFileMissingOK = 1 << 3
	rpmFileGhost     = 1 << 6

	rpmStateNormal     = 0
	rpmStateNetShared  = 3
	rpmEntrySize       = 16
	rpmMaxPackageFiles = 1 << 20
)

// rpmAlgorithms are the checksums of files by their number (RFC 4880 section 9.4). Without a number it is MD5.
var rpmAlgorithms = map[uint32]string{0: "md5", 1: "md5", 2: "sha1", 8: "sha256", 10: "sha512"}

// An rpmHeader is the index of a header and the bytes that it points into.
type rpmHeader struct {
	entries map[uint32]rpmEntry
	data    []byte
}

type rpmEntry struct{ kind, offset, count uint32 }

var errRPM = errors.New("not a sound header")

// parseRPMHeader reads a header as the database has it: without its magic, two numbers
// (entries, bytes of data), the entries, the data ("RPM Package format: Header").
func parseRPMHeader(b []byte) (*rpmHeader, error) {
	if len(b) < 8 {
		return nil, errRPM
	}
	n, size := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if uint64(len(b)) < 8+uint64(n)*rpmEntrySize+uint64(size) {
		return nil, fmt.Errorf("%w: %d entries and %d bytes in %d", errRPM, n, size, len(b))
	}
	h := &rpmHeader{entries: make(map[uint32]rpmEntry, n), data: b[8+n*rpmEntrySize:][:size]}
	for i := range n {
		e := b[8+i*rpmEntrySize:]
		h.entries[binary.BigEndian.Uint32(e)] = rpmEntry{binary.BigEndian.Uint32(e[4:]), binary.BigEndian.Uint32(e[8:]), binary.BigEndian.Uint32(e[12:])}
	}
	return h, nil
}

// at is where the data of a tag begins, and how many values it has.
func (h *rpmHeader) at(tag uint32) ([]byte, int) {
	e, ok := h.entries[tag]
	if !ok || uint64(e.offset) > uint64(len(h.data)) || e.count > rpmMaxPackageFiles {
		return nil, 0
	}
	return h.data[e.offset:], int(e.count)
}

// strings are the values of a tag that end with a zero byte each.
func (h *rpmHeader) strings(tag uint32) (list []string) {
	b, n := h.at(tag)
	for range n {
		s, rest, ok := bytes.Cut(b, []byte{0})
		if !ok {
			break
		}
		list, b = append(list, string(s)), rest
	}
	return list
}

// numbers are the values of a tag that have size bytes each: 1, 2 or 4.
func (h *rpmHeader) numbers(tag uint32, size int) (list []uint32) {
	b, n := h.at(tag)
	for ; n > 0 && len(b) >= size; n, b = n-1, b[size:] {
		switch size {
		case 1:
			list = append(list, uint32(b[0]))
		case 2:
			list = append(list, uint32(binary.BigEndian.Uint16(b)))
		default:
			list = append(list, binary.BigEndian.Uint32(b))
		}
	}
	return list
}

// rpmPackage claims the files of a package. What need not be there (ghosts, and what the
// installation left out) is owned, and not missing when it is not there.
func (a *auditor) rpmPackage(h *rpmHeader) {
	name := "?"
	if s := h.strings(rpmName); len(s) > 0 {
		name = s[0]
	}
	algorithm := rpmAlgorithms[first(h.numbers(rpmDigestAlgo, 4))]
	dirs, index := h.strings(rpmDirNames), h.numbers(rpmDirIndexes, 4)
	modes, flags, states := h.numbers(rpmFileModes, 2), h.numbers(rpmFileFlags, 4), h.numbers(rpmFileStates, 1)
	digests := h.strings(rpmFileDigests)
	for i, base := range h.strings(rpmBaseNames) {
		if i >= len(index) || int(index[i]) >= len(dirs) {
			break
		}
		flag, state := at(flags, i), at(states, i)
		c := claim{pkg: name, conffile: flag&rpmFileConfig != 0, optional: flag&(rpmFileGhost|rpmFileMissingOK) != 0}
		switch {
		case state != rpmStateNormal && state != rpmStateNetShared:
			c.optional = true
		case flag&rpmFileGhost == 0 && at(modes, i)&0o170000 == modeFile && i < len(digests) && algorithm != "":
			c.sum = sum{algorithm, digests[i]}
		}
		a.claim(dirs[index[i]]+base, c)
	}
}

func first(list []uint32) uint32 { return at(list, 0) }

func at(list []uint32, i int) uint32 {
	if i < len(list) {
		return list[i]
	}
	return 0
}

package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// The types of entries, as ustar, pax(1) and GNU tar write them.
const (
	tarReg        = '0'
	tarRegOld     = 0
	tarHardlink   = '1'
	tarSymlink    = '2'
	tarChar       = '3'
	tarBlock      = '4'
	tarDir        = '5'
	tarFIFO       = '6'
	tarContiguous = '7'
	tarGNUSparse  = 'S'
	tarGNULong    = 'L'
	tarGNULink    = 'K'
	tarPAX        = 'x'
	tarPAXGlobal  = 'g'
)

// maxMeta bounds what stands in front of one entry: a PAX header or a GNU long
// name. archive/tar has the same limit.
const maxMeta = 1 << 20

// A tarHeader is one entry of an archive, all formats' ways of writing it undone.
type tarHeader struct {
	typ          byte
	name, link   string
	mode         int64
	uid, gid     int64
	size         int64 // of the file, holes included
	sec          int64
	nsec         uint32
	major, minor int64
	xattrs       []Xattr
	sparse       bool
	data         []extent // of files, in ascending order; at is in the stream

	stored int64 // bytes that follow the header
}

// A tarReader reads the headers of an archive. It says where each body stands in
// the stream, sparse files with their map, which archive/tar does not tell.
type tarReader struct {
	in     *tarStream
	start  int64     // where the last entry, with all that stands in front of it, begins
	body   int64     // what is left of the last entry
	pad    int64     // and of the block that its end lies in
	global paxHeader // of all entries to come (POSIX pax, "g")
	blk    [blockSize]byte
}

var errTar = fmt.Errorf("%w: tar", ErrFormat)

// next returns the next entry; io.EOF at the end of the archive, which may be
// followed by anything.
func (t *tarReader) next() (*tarHeader, error) {
	var meta tarMeta
	for first := true; ; first = false {
		err := t.finish()
		if first {
			t.start = t.in.off
		}
		if err != nil {
			return nil, err
		}
		if err := t.readBlock(); err != nil {
			return nil, err
		}
		h, err := parseBlock(&t.blk)
		if err != nil {
			return nil, err
		}
		isMeta, err := t.readMeta(h, &meta)
		if err == nil && !isMeta {
			err = t.complete(h, &meta)
		}
		if err != nil {
			return nil, tarError(err)
		}
		if !isMeta {
			return h, nil
		}
	}
}

// finish passes over what is left of an entry. An archive may end without its last padding.
func (t *tarReader) finish() error {
	if err := t.in.skip(t.body); err != nil {
		return tarError(err)
	}
	err := t.in.skip(t.pad)
	t.body, t.pad = 0, 0
	if err == io.ErrUnexpectedEOF {
		return io.EOF
	}
	return err
}

// tarError makes a truncated archive a malformed one; the errors of the stream stay what they are.
func tarError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", errTar, err)
	}
	return err
}

// readBlock reads the next header block. Two blocks of zeros, or one at the very
// end, or no block at all, end the archive.
func (t *tarReader) readBlock() error {
	for zero := 0; ; zero++ {
		if _, err := io.ReadFull(t.in, t.blk[:]); err != nil {
			return tarError(err) // io.EOF: at the border of a block
		}
		switch {
		case t.blk != [blockSize]byte{} && zero == 0:
			return nil
		case t.blk != [blockSize]byte{}:
			return fmt.Errorf("%w: a block of zeros between entries", errTar)
		case zero == 1:
			return io.EOF
		}
	}
}

// tarMeta is what stands in front of an entry and belongs to it.
type tarMeta struct {
	pax            paxHeader
	longName, link string
}

// readMeta reads a header that only describes the one behind it.
func (t *tarReader) readMeta(h *tarHeader, m *tarMeta) (bool, error) {
	if !strings.ContainsRune("xgLK", rune(h.typ)) {
		return false, nil
	}
	if h.stored > maxMeta {
		return true, fmt.Errorf("%w: %d bytes of tar header", ErrLimit, h.stored)
	}
	b := make([]byte, h.stored)
	if _, err := io.ReadFull(t.in, b); err != nil {
		return true, unexpected(err)
	}
	t.pad = padding(h.stored)
	switch h.typ {
	case tarGNULong:
		m.longName = cString(b)
	case tarGNULink:
		m.link = cString(b)
	case tarPAX:
		return true, m.pax.parse(b)
	case tarPAXGlobal:
		return true, t.global.parse(b)
	}
	return true, nil
}

// complete merges what the headers say, by rising precedence, and finds the data.
func (t *tarReader) complete(h *tarHeader, m *tarMeta) error {
	pax := t.global.with(m.pax)
	if err := pax.apply(h); err != nil {
		return err
	}
	if m.longName != "" {
		h.name = m.longName
	}
	if m.link != "" {
		h.link = m.link
	}
	if h.typ == tarRegOld {
		h.typ = tarReg
		if strings.HasSuffix(h.name, "/") {
			h.typ = tarDir
		}
	}
	if h.size < 0 {
		return fmt.Errorf("%w: negative size", errTar)
	}
	h.stored = h.size
	if headerOnly(h.typ) {
		h.stored, h.size = 0, 0
		return nil
	}
	t.body, t.pad = h.stored, padding(h.stored)
	return t.findData(h, pax)
}

// headerOnly reports whether nothing follows such a header whatever its size says.
func headerOnly(typ byte) bool { return typ >= tarHardlink && typ <= tarFIFO }

func padding(n int64) int64 { return -n & (blockSize - 1) }

// pass passes over n bytes of the body.
func (t *tarReader) pass(n int64) error {
	t.body -= n
	return tarError(t.in.skip(n))
}

// readBody reads b from the body of the entry.
func (t *tarReader) readBody(b []byte) error {
	if int64(len(b)) > t.body {
		return fmt.Errorf("%w: body too short", errTar)
	}
	t.body -= int64(len(b))
	_, err := io.ReadFull(t.in, b)
	return unexpected(err)
}

// parseBlock reads a header block. Formats and offsets: POSIX ustar; GNU tar's
// "Basic Tar Format"; star(5).
func parseBlock(b *[blockSize]byte) (*tarHeader, error) {
	if !checksumOK(b) {
		return nil, fmt.Errorf("%w: header checksum", errTar)
	}
	var bad bool
	number := func(field []byte) int64 {
		n, ok := parseNumber(field)
		bad = bad || !ok
		return n
	}
	h := &tarHeader{
		typ: b[156], name: cString(b[:100]), link: cString(b[157:257]), mode: number(b[100:108]), uid: number(b[108:116]),
		gid: number(b[116:124]), size: number(b[124:136]), sec: number(b[136:148]),
	}
	if h.stored = h.size; h.stored < 0 {
		bad = true
	}
	if prefix, known := prefixOf(b); known {
		h.major, h.minor = number(b[329:337]), number(b[337:345])
		if prefix != "" {
			h.name = prefix + "/" + h.name
		}
	}
	if bad {
		return nil, fmt.Errorf("%w: header of %.64q: a number that is none", errTar, h.name)
	}
	return h, nil
}

const (
	magicUSTAR = "ustar\x00"
	magicGNU   = "ustar  \x00"
)

// prefixOf returns the part of the name that stands at the end of the block; known is
// false for headers older than ustar, which have nothing there.
func prefixOf(b *[blockSize]byte) (prefix string, known bool) {
	switch {
	case string(b[257:263]) == magicUSTAR && string(b[508:512]) == "tar\x00": // star
		return cString(b[345:476]), true
	case string(b[257:263]) == magicUSTAR:
		return cString(b[345:500]), true
	case string(b[257:265]) == magicGNU:
		return goPrefix(b), true
	}
	return "", false
}

// goPrefix undoes a bug of archive/tar before Go 1.8, which wrote a prefix into
// GNU headers, where two times have their place (golang.org/issue/12594, 21005).
func goPrefix(b *[blockSize]byte) string {
	_, aok := parseNumber(b[345:357])
	_, cok := parseNumber(b[357:369])
	prefix := cString(b[345:500])
	if aok && cok || strings.ContainsFunc(prefix, func(r rune) bool { return r >= 0x80 }) {
		return ""
	}
	return prefix
}

// checksumOK takes the sum of signed bytes too, as old tars made it.
func checksumOK(b *[blockSize]byte) bool {
	want, ok := parseOctal(b[148:156])
	var unsigned, signed int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return ok && (want == unsigned || want == signed)
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// parseNumber reads an octal field, or GNU's and star's two's complement in base
// 256, which the top bit of the first byte announces.
func parseNumber(b []byte) (int64, bool) {
	if b[0]&0x80 == 0 {
		return parseOctal(b)
	}
	n := int64(int8(b[0]<<1) >> 1) // the second bit is the sign
	for _, c := range b[1:] {
		if n > math.MaxInt64>>8 || n < math.MinInt64>>8 {
			return 0, false
		}
		n = n<<8 | int64(c)
	}
	return n, true
}

func parseOctal(b []byte) (int64, bool) {
	s := cString(bytes.Trim(b, " \x00"))
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 8, 63)
	return int64(n), err == nil
}

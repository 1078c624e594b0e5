package ztoc

import (
	"archive/tar"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// The slots of the tables in ztoc.fbs, in the order of its fields.
const (
	ztocVersion = iota
	ztocBuildTool
	ztocArchiveSize
	ztocUncompressedSize
	ztocTOC
	ztocCompression
)

const tocMetadata = 0

const (
	fileName = iota
	fileType
	fileOffset
	fileSize
	fileLinkname
	fileMode
	fileUID
	fileGID
	fileUname
	fileGname
	fileModTime
	fileDevMajor
	fileDevMinor
	filePAX
)

const (
	recordKey = iota
	recordValue
)

const (
	compressionAlgorithm = iota
	compressionMaxSpan
	compressionDigests
	compressionCheckpoints
)

// fileTypes are SOCI's words for the types of entries.
var fileTypes = map[string]byte{
	"reg": tar.TypeReg, "hardlink": tar.TypeLink, "symlink": tar.TypeSymlink, "dir": tar.TypeDir,
	"char": tar.TypeChar, "block": tar.TypeBlock, "fifo": tar.TypeFifo,
}

// minFileBytes is less than any entry takes in a zTOC (a reference, a table, a name). It
// bounds the memory that entries which are all the same few bytes can ask for.
const minFileBytes = 32

const tarBlock = 512

func newFlat(b []byte) *flat { return &flat{b: b, s: string(b)} }

// Parse reads a zTOC and checks that it makes sense in itself. The files are in the order
// of the tar. b must not change as long as the result is used. Errors wrap ErrFormat,
// ErrLimit or ErrUnsupported.
func Parse(b []byte) (*ZTOC, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrLimit, len(b), MaxSize)
	}
	f := newFlat(b)
	root := f.table(f.follow(0))
	z := &ZTOC{
		BuildTool:        root.string(ztocBuildTool),
		ArchiveSize:      root.int64(ztocArchiveSize),
		UncompressedSize: root.int64(ztocUncompressedSize),
	}
	if v := root.string(ztocVersion); f.err == nil && v != version {
		return nil, fmt.Errorf("%w: version %.20q", ErrUnsupported, v)
	}
	if err := z.readFiles(root.child(ztocTOC)); err != nil {
		return nil, err
	}
	if err := z.readCompression(root.child(ztocCompression)); err != nil {
		return nil, err
	}
	if f.err != nil {
		return nil, f.err
	}
	return z, nil
}

func (z *ZTOC) readFiles(toc table) error {
	f := toc.f
	at, n := toc.vector(tocMetadata, 4)
	if n > MaxEntries || n > len(f.b)/minFileBytes {
		return fmt.Errorf("%w: %d entries in %d bytes", ErrLimit, n, len(f.b))
	}
	z.Files = make([]File, n)
	records := 0
	for i := range z.Files {
		t := f.table(f.follow(at + 4*i))
		_, k := t.vector(filePAX, 4)
		if records += k; records > MaxEntries || records > len(f.b) {
			return fmt.Errorf("%w: more than %d PAX records", ErrLimit, records)
		}
		if err := z.Files[i].read(t); err != nil {
			return err
		}
	}
	if f.err != nil {
		return f.err
	}
	return z.checkFiles()
}

func (e *File) read(t table) (err error) {
	*e = File{
		Name: t.string(fileName), Linkname: t.string(fileLinkname), Type: fileTypes[t.string(fileType)],
		Offset: t.int64(fileOffset), Size: t.int64(fileSize), Mode: t.int64(fileMode),
		UID: t.uint32(fileUID), GID: t.uint32(fileGID), Uname: t.string(fileUname), Gname: t.string(fileGname),
		DevMajor: t.int64(fileDevMajor), DevMinor: t.int64(fileDevMinor),
	}
	at, n := t.vector(filePAX, 4)
	for i := range n {
		r := t.f.table(t.f.follow(at + 4*i))
		e.PAX = append(e.PAX, Record{r.string(recordKey), r.string(recordValue)})
	}
	if s := t.string(fileModTime); s != "" {
		e.ModTime, err = time.Parse(time.RFC3339Nano, s)
	}
	switch {
	case t.f.err != nil:
		return t.f.err
	case err != nil:
		return fmt.Errorf("%w: time of %.100q", ErrFormat, e.Name)
	case e.Type == 0:
		return fmt.Errorf("%w: %.100q is a %.20q", ErrUnsupported, e.Name, t.string(fileType))
	case isSparse(e.PAX):
		return fmt.Errorf("%w: sparse file %.100q", ErrUnsupported, e.Name)
	}
	return nil
}

// isSparse recognises the formats 0.0 to 1.0 of GNU tar. SOCI takes their files for
// ordinary ones, and what one would read of them is wrong.
func isSparse(pax []Record) bool {
	return slices.ContainsFunc(pax, func(r Record) bool { return strings.HasPrefix(r.Key, "GNU.sparse.") })
}

// checkFiles puts the files into their order and refuses contents that lie over each
// other or outside of the tar.
func (z *ZTOC) checkFiles() error {
	slices.SortStableFunc(z.Files, func(a, b File) int { return cmp.Compare(a.Offset, b.Offset) })
	next := int64(0) // where a header may begin
	for i := range z.Files {
		e := &z.Files[i]
		if e.Type != tar.TypeReg {
			e.Size = 0
		}
		if e.Offset < next+tarBlock || e.Size < 0 || e.Size > z.UncompressedSize || e.Offset > z.UncompressedSize-e.Size {
			return fmt.Errorf("%w: %.100q has %d bytes at %d of %d", ErrFormat, e.Name, e.Size, e.Offset, z.UncompressedSize)
		}
		next = (e.Offset + e.Size + tarBlock - 1) / tarBlock * tarBlock
	}
	return nil
}

func (z *ZTOC) readCompression(t table) error {
	z.Algorithm = Algorithm(t.byte(compressionAlgorithm, byte(Gzip)))
	at, n := t.vector(compressionDigests, 4)
	for i := range n {
		d := digest.Digest(t.f.stringAt(at + 4*i))
		if d.Validate() != nil {
			return fmt.Errorf("%w: digest %.100q", ErrFormat, d)
		}
		z.SpanDigests = append(z.SpanDigests, d)
	}
	if t.f.err != nil {
		return t.f.err
	}
	if err := z.readCheckpoints(t.bytes(compressionCheckpoints)); err != nil {
		return err
	}
	if have, last := z.spanCount(), int64(t.uint32(compressionMaxSpan)); have != last+1 || have != int64(n) {
		return fmt.Errorf("%w: %d spans, %d digests, and the last span is %d", ErrFormat, have, n, last)
	}
	return nil
}

func (z *ZTOC) readCheckpoints(b []byte) error {
	switch {
	case z.ArchiveSize <= 0 || z.UncompressedSize < 0, z.Algorithm == Uncompressed && z.UncompressedSize > z.ArchiveSize:
		return fmt.Errorf("%w: %d bytes of tar in %d", ErrFormat, z.UncompressedSize, z.ArchiveSize)
	case z.Algorithm == Gzip:
		return z.decodeZinfo(b)
	case z.Algorithm == Uncompressed:
		return z.decodeTarZinfo(b)
	}
	return fmt.Errorf("%w: compression %d", ErrUnsupported, z.Algorithm)
}

// spanCount is how many spans there must be.
func (z *ZTOC) spanCount() int64 {
	if z.Algorithm == Uncompressed {
		return (z.ArchiveSize-1)/z.SpanSize + 1
	}
	return int64(len(z.Checkpoints))
}

package layer

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
)

// maxSegment bounds a segment of a tar-split, which is a header of the tar and the padding
// before it: pax records hold attributes of 64 KiB, and a name.
const maxSegment = 64 << 20

// A splitReader reads a tar-split, uncompressed: one JSON object a line.
type splitReader struct {
	dec  *json.Decoder
	left *io.LimitedReader
}

func newSplitReader(r io.Reader) *splitReader {
	l := &io.LimitedReader{R: r}
	return &splitReader{json.NewDecoder(l), l}
}

// next returns the next entry; io.EOF behind the last.
func (s *splitReader) next() (e splitEntry, err error) {
	s.left.N = 2 * maxSegment // base64, and what the decoder reads ahead
	err = s.dec.Decode(&e)
	switch {
	case err == io.EOF && s.left.N > 0:
		return e, io.EOF
	case err != nil:
		return e, fmt.Errorf("%w: tar-split: %w", ErrFormat, err)
	case e.Type != splitFile && e.Type != splitSegment || e.Size < 0:
		return e, fmt.Errorf("%w: tar-split: entry %d of type %d and size %d", ErrFormat, e.Position, e.Type, e.Size)
	}
	if len(e.NameRaw) > 0 {
		e.Name = string(e.NameRaw)
	}
	return e, nil
}

// OpaqueDirs lists the directories that the tar of a layer makes opaque, by its tar-split:
// what a process without CAP_SYS_ADMIN cannot read of the unpacked layer (xattr(7),
// "Trusted extended attributes").
func OpaqueDirs(split io.Reader) (map[string]bool, error) {
	dirs := map[string]bool{}
	for r := newSplitReader(split); ; {
		e, err := r.next()
		if err == io.EOF {
			return dirs, nil
		}
		if err != nil {
			return nil, err
		}
		if name := clean(e.Name); e.Type == splitFile && path.Base(name) == opaqueMarker {
			dirs[strings.TrimSuffix(strings.TrimSuffix(name, opaqueMarker), "/")] = true
		}
	}
}

// FromSplit makes the tar of an unpacked layer again, of its tar-split and of the files as
// they are now, and returns the entries of that tar, without their content: package forensic
// compares them with those of the directory. faults name the files that are not what they
// were when the layer was unpacked; if there are none and the tar is not the one with this diff ID,
// the error wraps ErrDigest.
func (l *Layer) FromSplit(ctx context.Context, split io.Reader, diffID digest.Digest, limits Limits) (tar *Layer, faults []Defect, err error) {
	if l.dir == nil {
		return nil, nil, fmt.Errorf("check layer %s: %w: no directory", l.digest, ErrUnsupported)
	}
	if err := diffID.Validate(); err != nil {
		return nil, nil, fmt.Errorf("check layer %s: %w: diff ID: %w", l.digest, ErrFormat, err)
	}
	a := &assembly{ctx: ctx, layer: l, split: newSplitReader(split), sum: diffID.Algorithm().Hash(), crc: crc64.New(crcISO)}
	limits = limits.withDefaults()
	a.room = limits.Unpacked
	t, err := readTar(tarStreamOf(a), false, limits)
	if err != nil {
		return nil, nil, fmt.Errorf("check layer %s: %w", l.digest, err)
	}
	faults = a.found
	if got := digest.NewDigest(diffID.Algorithm(), a.sum); len(faults) == 0 && !a.lost && got != diffID {
		return nil, nil, fmt.Errorf("check layer %s: %w: the tar is %s, not %s", l.digest, ErrDigest, got, diffID)
	}
	return &Layer{digest: diffID, tree: t, dir: &dirData{size: l.dir.size}, kind: "tar", src: &source{}}, faults, nil
}

// An assembly is the tar that a tar-split and files make.
type assembly struct {
	ctx   context.Context
	layer *Layer
	split *splitReader
	sum   hash.Hash
	room  int64

	cur  []byte // of a segment, not read yet
	file *splitEntry
	id   ID
	bad  string // why the file is another; "": it is not, so far
	off  int64
	crc  hash.Hash64

	found []Defect
	lost  bool // the tar has content that no directory has: a whiteout's
	blank bool // that is so of file
}

func (a *assembly) Read(p []byte) (n int, err error) {
	for n == 0 && err == nil && len(p) > 0 {
		switch {
		case len(a.cur) > 0:
			n = copy(p, a.cur)
			a.cur = a.cur[n:]
		case a.file != nil:
			n, err = a.readFile(p)
		default:
			err = a.next()
		}
	}
	a.sum.Write(p[:n])
	if a.room -= int64(n); a.room < 0 {
		return 0, &LimitError{"unpacked", maxTar}
	}
	return n, err
}

func (a *assembly) next() error {
	e, err := a.split.next()
	if err != nil {
		return err
	}
	if e.Type == splitSegment {
		a.cur = e.Payload
		return nil
	}
	if e.Size == 0 {
		return nil
	}
	a.file, a.off, a.bad = &e, 0, ""
	a.crc.Reset()
	if strings.HasPrefix(path.Base(clean(e.Name)), whiteoutPrefix) {
		a.lost, a.blank = true, true // nobody unpacks what a whiteout has for content
		return nil
	}
	id, ok := a.layer.tree.resolve(clean(e.Name))
	a.blank = false
	switch in := &a.layer.tree.inodes[id]; {
	case !ok:
		a.bad = "missing"
	case in.mode&modeFormat != modeReg:
		a.bad = "no regular file any more"
	case in.size != e.Size:
		a.bad = fmt.Sprintf("%d bytes, %d when it was unpacked", in.size, e.Size)
	}
	a.id = id
	return nil
}

// readFile reads on in a file; zeros stand for what cannot be had.
func (a *assembly) readFile(p []byte) (n int, err error) {
	p = p[:min(int64(len(p)), a.file.Size-a.off)]
	if a.bad == "" && !a.blank {
		if _, err := a.layer.ReadAt(a.ctx, a.id, p, a.off); err != nil && !errors.Is(err, io.EOF) {
			if a.ctx.Err() != nil {
				return 0, a.ctx.Err()
			}
			a.bad = fmt.Sprintf("cannot be read: %v", err)
		}
	}
	if a.bad != "" || a.blank {
		clear(p)
	}
	a.crc.Write(p)
	if a.off += int64(len(p)); a.off == a.file.Size {
		a.finish()
	}
	return len(p), nil
}

// finish compares a file with its checksum.
func (a *assembly) finish() {
	if sum := a.file.Payload; a.bad == "" && !a.blank && (len(sum) != 8 || binary.BigEndian.Uint64(sum) != a.crc.Sum64()) {
		a.bad = "content"
	}
	if a.bad != "" {
		a.found = append(a.found, Defect{clean(a.file.Name), a.bad})
	}
	a.file = nil
}

// resolve finds a path in a finished tree. Symlinks on the way are followed inside of it, as
// they were when the layer was unpacked.
func (t *tree) resolve(name string) (ID, bool) {
	stack, rest := []ID{Root}, name
	for followed := 0; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		id, ok := t.lookup(stack[len(stack)-1], part)
		if !ok {
			return 0, false
		}
		if n := &t.inodes[id]; n.mode&modeFormat == modeLink && rest != "" {
			if followed++; followed > maxFollow {
				return 0, false
			}
			target := t.name(n.link)
			if strings.HasPrefix(target, "/") {
				stack = stack[:1]
			}
			rest = target + "/" + rest
			continue
		}
		stack = append(stack, id)
	}
	return stack[len(stack)-1], true
}

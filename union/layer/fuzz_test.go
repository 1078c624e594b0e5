package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/layerfs/layerfs/union/layer/layertest"
)

var tarSeeds = []string{
	``,
	"dir d 0700 1:2\nfile d/f \"text\" user.x=\"\\x00\"\nlink l d/f\nsymlink s ../x\nchar c 1:3\nblock b 8:1\nfifo p",
	"file a \"x\" format=v7\nfile b \"y\" format=ustar\nfile c \"z\" 3000000000:1 format=gnu",
	"file " + strings.Repeat("n", 200) + " \"long\" format=gnu\nsymlink k " + strings.Repeat("t", 150) + " format=gnu",
	"file " + strings.Repeat("p/", 200) + "x \"pax\" @1.25\nfile t \"\" @-5.25",
	"sparse s 1MiB 4096:\"data\" 100000:\"more\" sparse=0.0",
	"sparse s 1MiB 4096:\"data\" 100000:\"more\" sparse=0.1",
	"sparse s 1MiB 4096:\"data\" 100000:\"more\" sparse=1.0\nfile behind \"x\"",
	"sparse s 1MiB 4096:\"data\" 100000:\"more\" sparse=gnu\nfile behind \"x\"",
	"whiteout a\nopaque d\nfile d/.wh. \"\"\nfile x/../../y \"\"",
}

func streamOf(b []byte) *tarStream { return tarStreamOf(&halves{b}) }

// halves yields ever smaller pieces, so that borders fall everywhere.
type halves struct{ b []byte }

func (h *halves) Read(p []byte) (int, error) {
	if len(h.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, h.b[:(len(h.b)+1)/2])
	h.b = h.b[n:]
	return n, nil
}

// FuzzTar holds the tar reader to archive/tar: what that one reads, ours reads too,
// with the same names, attributes and content.
func FuzzTar(f *testing.F) {
	for _, text := range tarSeeds {
		f.Add(layertest.Tar(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = resum(b)
		ours, oursErr := readOurs(b)
		theirs, theirsErr := readTheirs(b)
		if theirsErr != nil {
			return // ours may be more lenient; it must not panic, and readTar must agree with itself
		}
		if oursErr != nil {
			t.Fatalf("archive/tar reads %d entries, ours: %v", len(theirs), oursErr)
		}
		if len(ours) != len(theirs) {
			t.Fatalf("%d entries, archive/tar has %d", len(ours), len(theirs))
		}
		for i := range ours {
			if ours[i] != theirs[i] {
				t.Fatalf("entry %d:\n%s\narchive/tar:\n%s", i, ours[i], theirs[i])
			}
		}
	})
}

// resum gives every block that looks like a header the checksum it should have:
// otherwise hardly a mutation would get past it.
func resum(b []byte) []byte {
	b = bytes.Clone(b)
	for block := b; len(block) >= blockSize; block = block[blockSize:] {
		if block[154] != 0 || block[155] != ' ' {
			continue
		}
		copy(block[148:], "        ")
		sum := 0
		for _, c := range block[:blockSize] {
			sum += int(c)
		}
		copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	}
	return b
}

// maxFuzzSize keeps expanded sparse files small.
const maxFuzzSize = 1 << 20

func readOurs(b []byte) (all []string, err error) {
	r := &tarReader{in: streamOf(b)}
	for {
		h, err := r.next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		content := ""
		if !headerOnly(h.typ) && h.size <= maxFuzzSize {
			p := make([]byte, h.size)
			for _, x := range h.data {
				if x.at+x.n > int64(len(b)) {
					return nil, io.ErrUnexpectedEOF
				}
				copy(p[x.off:], b[x.at:x.at+x.n])
			}
			content = string(p)
		}
		all = append(all, describe(h.typ, h.name, h.link, h.mode, h.uid, h.gid, h.size, h.sec, int64(h.nsec), h.xattrs, content))
	}
}

var errSkip = errors.New("not compared")

func readTheirs(b []byte) (all []string, err error) {
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader || h.Size > maxFuzzSize {
			return nil, errSkip // archive/tar leaves global headers to its caller
		}
		content := ""
		if !headerOnly(h.Typeflag) {
			p, err := io.ReadAll(r)
			if err != nil {
				return nil, err
			}
			content = string(p)
		} else {
			h.Size = 0
		}
		var xattrs []Xattr
		for key, value := range h.PAXRecords {
			if name, ok := strings.CutPrefix(key, xattrPrefix); ok {
				xattrs = append(xattrs, Xattr{name, []byte(value)})
			}
		}
		all = append(all, describe(h.Typeflag, h.Name, h.Linkname, h.Mode, int64(h.Uid), int64(h.Gid), h.Size, h.ModTime.Unix(), int64(h.ModTime.Nanosecond()), xattrs, content))
	}
}

func describe(typ byte, name, link string, mode, uid, gid, size, sec, nsec int64, xattrs []Xattr, content string) string {
	m := map[string]string{} // printed in order
	for _, x := range xattrs {
		m[x.Name] = string(x.Value)
	}
	return fmt.Sprintf("%q %q %q %o %d:%d %d %d.%d %q %q", typ, name, link, mode, uid, gid, size, sec, nsec, m, content)
}

// FuzzTree: no archive makes a tree that its own index decoder would refuse.
func FuzzTree(f *testing.F) {
	for _, text := range tarSeeds {
		f.Add(layertest.Tar(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = resum(b)
		tr, err := readTar(streamOf(b), false, Limits{}.withDefaults())
		if err != nil {
			return
		}
		x := &index{blob: "sha256:x", size: int64(len(b)), tree: tr}
		y, err := decodeRawIndex(x.encodeRaw())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x.encodeRaw(), y.encodeRaw()) {
			t.Fatal("the index changes when it is read and written")
		}
		visit(t, y.tree, Root, 0)
	})
}

// visit uses all of a tree.
func visit(t *testing.T, tr *tree, dir ID, depth int) {
	for name, id := range tr.children(dir) {
		if got, ok := tr.lookup(dir, name); !ok || got != id {
			t.Fatalf("lookup of %q in %d: %d, %v", name, dir, got, ok)
		}
		e := tr.entry(id)
		for off := int64(0); off < e.Size && e.Mode&modeFormat == modeReg; {
			start, end := tr.nextData(id, off)
			if start < off || end < start || end > e.Size {
				t.Fatalf("data of %q at %d: %d to %d of %d", name, off, start, end, e.Size)
			}
			if start == e.Size {
				break
			}
			if at, n := tr.place(id, start); at < 0 || n <= 0 {
				t.Fatalf("place of %q at %d: %d, %d", name, start, at, n)
			}
			off = end
		}
		if depth < 1000 {
			visit(t, tr, id, depth+1)
		}
	}
	for name := range tr.hidden(dir) {
		if _, ok := tr.lookup(dir, name); ok {
			t.Fatalf("%q is there and hidden", name)
		}
	}
}

func FuzzIndex(f *testing.F) {
	for _, text := range tarSeeds {
		b := layertest.Tar(text)
		tr, err := readTar(streamOf(b), false, Limits{}.withDefaults())
		if err != nil {
			f.Fatal(err)
		}
		x := &index{blob: "sha256:x", diff: "sha256:y", size: int64(len(b)), tree: tr}
		f.Add(x.encodeRaw())
		x.coding = codingNamed("gzip")
		x.sections = []section{{end: 100}, {in: 100, end: 150, out: x.size / 2, bits: 3, window: []byte("window")}}
		f.Add(x.encodeRaw())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := decodeRawIndex(b)
		if err != nil {
			return
		}
		if len(x.sections) > 0 && x.size < 1<<24 {
			visitSections(t, x)
		}
		for id := range x.tree.inodes {
			x.tree.entry(ID(id))
		}
		for name, id := range x.tree.children(Root) {
			if got, ok := x.tree.lookup(Root, name); !ok || got != id {
				t.Fatalf("lookup of %q: %d, %v", name, got, ok)
			}
		}
	})
}

// visitSections wants every unit in one section, and every section to have one.
func visitSections(t *testing.T, x *index) {
	units := x.units()
	s, unit := newSections(x, units), 0
	for i := range s.count() {
		off, end := s.bounds(i)
		first, last := s.units(i)
		if off < 0 || end <= off || first != unit || last < first {
			t.Fatalf("section %d: bytes %d to %d, units %d to %d, wanted from %d", i, off, end, first, last, unit)
		}
		unit = last + 1
	}
	if unit != len(units) {
		t.Fatalf("%d units in the sections, %d in all", unit, len(units))
	}
}

func FuzzTOC(f *testing.F) {
	f.Add([]byte(`{"version":1,"entries":[{"name":"d/","type":"dir","mode":493},{"name":"d/f","type":"reg","size":3,"offset":9,
		"chunkDigest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","xattrs":{"user.x":"AA=="}},
		{"name":"l","type":"hardlink","linkName":"d/f"}]}`))
	f.Add([]byte(`{"version":1,"entries":[{"name":"f","type":"reg","size":8,"offset":9,"chunkSize":4,
		"chunkDigest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},{"name":"f","type":"chunk","chunkOffset":4,
		"offset":20,"innerOffset":1,"chunkDigest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}`))
	f.Add([]byte(`{"version":1,"entries":[{"name":"f","type":"reg","size":30,"offset":9,"chunkSize":4,"chunkType":"zeros","endOffset":40},
		{"name":"f","type":"chunk","chunkOffset":4,"chunkSize":6,"offset":20,
		"chunkDigest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{"name":"f","type":"chunk","chunkOffset":10,"chunkType":"zeros"},{"name":".prefetch.landmark","type":"reg","size":1,"offset":41,
		"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for codec := range codecs {
			fuzzTOC(t, b, codec)
		}
	})
}

func fuzzTOC(t *testing.T, b []byte, codec codec) {
	c, err := parseTOC(b, Limits{}.withDefaults())
	if err != nil {
		return
	}
	x, err := c.index(1000, codec, Limits{}.withDefaults())
	if err != nil {
		return
	}
	x.toc = "sha256:x"
	y, err := decodeIndex(x.encode())
	if err != nil {
		t.Fatal(err)
	}
	if y.codec != codec || y.prefix != x.prefix || !bytes.Equal(x.encode(), y.encode()) {
		t.Fatal("the index changes when it is read and written")
	}
	visit(t, x.tree, Root, 0)
}

// FuzzManifest: a position and what is there make a TOC or an error, and never take more
// memory than the limit, whatever they say.
func FuzzManifest(f *testing.F) {
	json := []byte(`{"version":1,"entries":[{"name":"f","type":"reg"}]}`)
	f.Add("8:10:51:1", zframe(f, json))
	f.Add("8:10:51:1", zstream(f, json))
	f.Add("18446744073709551615:0:-1:1", []byte{})
	f.Add("::: ", zframe(f, nil))
	f.Fuzz(func(t *testing.T, s string, b []byte) {
		p, err := parsePosition(s)
		if err != nil {
			if !errors.Is(err, errNoTOC) {
				t.Fatal(err)
			}
			return
		}
		if q, err := parsePosition(p.String() + ":1"); err != nil || p != q {
			t.Fatalf("%+v is %s and that %+v, %v", p, p, q, err)
		}
		blob := int64(len(b)) + p.off&0xffff
		if p.check(blob, maxTOC) == nil && (p.off < skippableHeader || p.off+p.packed > blob || p.size > maxTOC) {
			t.Fatalf("%+v in a blob of %d", p, blob)
		}
		if size := p.size & 0xffff; size > 0 {
			got, err := chunkedTOC{packed: digest.FromBytes(b)}.unpack(b, size)
			if err == nil && int64(len(got)) != size || err != nil && !errors.Is(err, ErrFormat) {
				t.Fatalf("%d bytes, %v, want %d", len(got), err, size)
			}
		}
	})
}

// FuzzFrames: a chunk out of anything is its bytes or an error.
func FuzzFrames(f *testing.F) {
	f.Add(append(zframe(f, text(300)), zstream(f, text(1000))...), 10, 200)
	f.Add(zstream(f, bytes.Repeat(text(100), 2000)), 3000, 60_000)
	f.Add(zframe(f, make([]byte, 1<<20), zstd.WithSingleSegment(true)), 0, 1)
	f.Fuzz(func(t *testing.T, b []byte, inner, n int) {
		c := chunk{inner: int64(inner) & 0xfffff, n: int64(n)&0xfffff + 1}
		r := codecZstd.reader(bytes.NewReader(b), 0)
		if err := r.open(0, int64(len(b)), c.inner+c.n); err != nil {
			t.Fatal(err)
		}
		got, err := r.chunk(&c)
		if err != nil {
			return
		}
		z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		want := make([]byte, c.inner+c.n)
		if k, _ := io.ReadFull(z, want); int64(len(got)) != c.n || !bytes.HasPrefix(got, want[min(c.inner, int64(k)):k]) {
			t.Fatalf("%d bytes differ from the %d that the stream has", len(got), k)
		}
	})
}

func FuzzFooter(f *testing.F) {
	f.Add(footer(0))
	f.Add(footer(1 << 40))
	legacy := append([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 22, 0}, footer(77)[16:]...)
	f.Add(append([]byte("...."), legacy...))
	f.Add(append([]byte("....."), []byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x15\x00SG\x11\x00"+externalMagic+"\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != footerSize {
			return
		}
		off, err := parseFooter(b)
		if err == nil && (off < 0 || !bytes.Contains(bytes.ToLower(b), fmt.Appendf(nil, "%016xstargz", off))) {
			t.Errorf("offset %d in %q", off, b)
		}
	})
}

package layertest

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

// The tar is written here and not by archive/tar, because half of what a reader
// has to cope with (names in no encoding, sparse files, numbers in base 256,
// headers of 1979) is what archive/tar rightly refuses to write.

const (
	block     = 512
	maxID     = 1 << 21 // octal fields of 8 bytes end here
	maxNumber = 1 << 33 // and those of 12
)

// Tar is the tar of a text archive. It panics on what Parse refuses: the text
// stands in the caller's source.
func Tar(text string) []byte {
	var b bytes.Buffer
	if err := Write(&b, mustParse(text)); err != nil {
		panic(fmt.Sprintf("layertest: %v", err))
	}
	return b.Bytes()
}

func mustParse(text string) []Entry {
	entries, err := Parse(text)
	if err != nil {
		panic(fmt.Sprintf("layertest: %v", err))
	}
	return entries
}

// Write writes a tar, with the two blocks of zeros at its end. It never holds
// the content of a file as a whole.
func Write(w io.Writer, entries []Entry) error {
	for _, e := range entries {
		if e.Sparse == "gnu" {
			e.Format = "gnu"
		}
		if err := writeEntry(w, &e); err != nil {
			return fmt.Errorf("write tar: %s: %w", e.Name, err)
		}
	}
	_, err := w.Write(make([]byte, 2*block))
	return err
}

// A header is what ends up in a header block, and the PAX records before it.
type header struct {
	name, link string
	typ        byte
	size       int64 // of what follows the header
	records    []string
	body       io.Reader
	gnuSparse  []Extent // of the old GNU format: they stand in the header itself
}

func writeEntry(w io.Writer, e *Entry) error {
	h := header{name: e.Name, link: e.Link, typ: e.Type, size: e.Size, body: e.Content()}
	if e.Type == tar.TypeDir && !strings.HasSuffix(h.name, "/") {
		h.name += "/"
	}
	if e.Sparse != "" {
		h.sparse(e)
	}
	long, err := h.fit(e)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(long, h.block(e)...)); err != nil {
		return err
	}
	n, err := io.Copy(w, h.body)
	if err != nil {
		return err
	}
	_, err = w.Write(make([]byte, padding(n)))
	return err
}

func padding(n int64) int64 { return -n & (block - 1) }

// record is a PAX record: its length, which counts itself, then key=value.
func record(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for n != len(rest)+len(fmt.Sprint(n)) {
		n = len(rest) + len(fmt.Sprint(n))
	}
	return fmt.Sprint(n) + rest
}

// fit brings what the header block cannot hold into extra headers before it.
func (h *header) fit(e *Entry) ([]byte, error) {
	_, _, ok := splitName(h.name)
	tooLong := !ok || len(h.link) > 100 || e.Format == "v7" && len(h.name) > 100
	tooBig := e.UID >= maxID || e.GID >= maxID || e.Sec < 0 || e.Sec >= maxNumber || h.size >= maxNumber
	switch gnu := e.Format == "gnu" || e.Format == "base256"; {
	case gnu && e.Nsec == 0:
		return append(gnuLong('K', h.link, 100), gnuLong('L', h.name, 100)...), nil
	case !gnu && (e.Format == "" || e.Format == "pax"):
		h.pax(e)
	case gnu || tooLong || tooBig || e.Nsec != 0:
		return nil, fmt.Errorf("does not fit format=%s", e.Format)
	}
	if len(h.records) == 0 {
		return nil, nil
	}
	records := strings.Join(h.records, "")
	return extra(tar.TypeXHeader, "PaxHeaders/"+cut(h.name, 80), records), nil
}

// pax collects the records: what does not fit, what is finer than a second, and
// names that are not ASCII, as POSIX wants. Names that are no UTF-8 stand there
// only when they are too long, as GNU tar does it.
func (h *header) pax(e *Entry) {
	add := func(key, value string) { h.records = append(h.records, record(key, value)) }
	if _, _, ok := splitName(h.name); !ok || wantsPAX(h.name) {
		add("path", h.name)
	}
	if len(h.link) > 100 || wantsPAX(h.link) {
		add("linkpath", h.link)
	}
	if h.size >= maxNumber {
		add("size", fmt.Sprint(h.size))
	}
	if e.UID >= maxID {
		add("uid", fmt.Sprint(e.UID))
	}
	if e.GID >= maxID {
		add("gid", fmt.Sprint(e.GID))
	}
	if e.Nsec != 0 || e.Sec < 0 || e.Sec >= maxNumber {
		add("mtime", paxTime(e.Sec, e.Nsec))
	}
	for _, x := range e.Xattrs {
		add("SCHILY.xattr."+x.Name, x.Value)
	}
}

// wantsPAX: not ASCII, but UTF-8.
func wantsPAX(s string) bool {
	ascii := strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
	return !ascii && strings.ToValidUTF8(s, "") == s
}

// paxTime is decimal: half a second before the epoch is -0.5, which Entry has as
// -1 s and 5e8 ns.
func paxTime(sec, nsec int64) string {
	if nsec == 0 {
		return fmt.Sprint(sec)
	}
	sign := ""
	if sec < 0 {
		sign, sec, nsec = "-", -sec-1, 1e9-nsec
	}
	return sign + strings.TrimRight(fmt.Sprintf("%d.%09d", sec, nsec), "0")
}

// gnuLong is the extra entry of a name longer than max.
func gnuLong(typ byte, name string, max int) []byte {
	if len(name) <= max {
		return nil
	}
	return extra(typ, "././@LongLink", name+"\x00")
}

// extra is an entry that says something of the next one.
func extra(typ byte, name, content string) []byte {
	h := header{name: name, typ: typ, size: int64(len(content))}
	b := h.block(&Entry{Mode: 0o644})
	b = append(b, content...)
	return append(b, make([]byte, padding(h.size))...)
}

// splitName finds a way to have a name in ustar's two fields, 155 and 100 bytes.
func splitName(name string) (prefix, rest string, ok bool) {
	if len(name) <= 100 {
		return "", name, true
	}
	for i := min(155, len(name)-1); i > 0; i-- {
		if name[i] == '/' && i+1 < len(name) && len(name)-i-1 <= 100 {
			return name[:i], name[i+1:], true
		}
	}
	return "", "", false
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

// block is the header block itself. What does not fit is cut off: an extra header
// has it.
func (h *header) block(e *Entry) []byte {
	b := make([]byte, block)
	gnu := e.Format == "gnu" || e.Format == "base256" || h.gnuSparse != nil
	if prefix, rest, ok := splitName(h.name); ok && !gnu {
		copy(b[:100], rest)
		copy(b[345:500], prefix)
	} else {
		copy(b[:100], h.name)
	}
	number := func(at, n int, v int64) { putNumber(b[at:at+n], v, gnu, e.Format == "base256") }
	number(100, 8, e.Mode)
	number(108, 8, e.UID)
	number(116, 8, e.GID)
	number(124, 12, h.size)
	number(136, 12, e.Sec)
	copy(b[157:257], h.link)
	b[156] = h.typ
	switch {
	case e.Format == "v7":
		if h.typ == tar.TypeReg || h.typ == tar.TypeDir {
			b[156] = 0 // a directory is known by its slash
		}
	case gnu:
		copy(b[257:], "ustar  \x00")
	default:
		copy(b[257:], "ustar\x0000")
	}
	if h.typ == tar.TypeChar || h.typ == tar.TypeBlock {
		number(329, 8, e.Major)
		number(337, 8, e.Minor)
	}
	more := h.putSparse(b, e.Size)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(b, more...)
}

// putNumber writes octal digits and a NUL, or in GNU's format two's complement
// with the top bit set, where octal does not do.
func putNumber(b []byte, v int64, gnu, always bool) {
	digits := fmt.Sprintf("%0*o", len(b)-1, v)
	if v < 0 || len(digits) >= len(b) {
		digits = strings.Repeat("0", len(b)-1) // a PAX record has it
		always = always || gnu
	}
	if !always {
		copy(b, digits)
		return
	}
	if v < 0 {
		for i := range b {
			b[i] = 0xff
		}
	}
	if len(b) == 8 {
		binary.BigEndian.PutUint64(b, uint64(v))
	} else {
		binary.BigEndian.PutUint64(b[len(b)-8:], uint64(v))
	}
	b[0] |= 0x80
}

// Content is what a reader of the file gets, holes and all.
func (e *Entry) Content() io.Reader {
	if e.Random {
		return io.LimitReader(rand.NewChaCha8([32]byte{byte(e.Size), byte(e.Size >> 8), byte(e.Size >> 16), 1}), e.Size)
	}
	if e.Text {
		return io.LimitReader(&words{r: rand.New(rand.NewPCG(uint64(e.Size), 1))}, e.Size)
	}
	var parts []io.Reader
	at := int64(0)
	for _, x := range e.Data {
		parts = append(parts, io.LimitReader(zeros{}, x.Off-at), strings.NewReader(x.Data))
		at = x.Off + int64(len(x.Data))
	}
	return io.MultiReader(append(parts, io.LimitReader(zeros{}, e.Size-at))...)
}

// words are of one to eight letters, drawn from few, as text is; some lines come again.
type words struct {
	r    *rand.Rand
	line []byte
	old  [256][]byte
}

func (w *words) Read(p []byte) (int, error) {
	if len(w.line) == 0 {
		i := w.r.IntN(len(w.old))
		if w.old[i] == nil || w.r.IntN(3) == 0 {
			w.old[i] = w.newLine()
		}
		w.line = w.old[i]
	}
	n := copy(p, w.line)
	w.line = w.line[n:]
	return n, nil
}

func (w *words) newLine() (line []byte) {
	for range 4 + w.r.IntN(12) {
		for range 1 + w.r.IntN(8) {
			line = append(line, "etaoinshrdlu"[w.r.IntN(12)])
		}
		line = append(line, ' ')
	}
	return append(line, '\n')
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

package layer

import (
	"fmt"
	"strconv"
	"strings"
)

// maxSparse bounds the runs of data in one sparse file: with it, a map is at most some 40 MB.
const maxSparse = 1 << 20

// findData sets h.data. A file that is not sparse is one run.
func (t *tarReader) findData(h *tarHeader, pax paxHeader) error {
	runs, sparse, err := t.sparseMap(h, pax)
	if err != nil {
		return err
	}
	if !sparse {
		if h.size > 0 {
			h.data = []extent{{off: 0, n: h.size, at: t.in.off}}
		}
		return nil
	}
	h.sparse = true
	if h.size < 0 {
		return fmt.Errorf("%w: negative size", errTar)
	}
	end, at, left := int64(0), t.in.off, t.body
	for _, x := range runs {
		if x.off < end || x.n < 0 || x.n > h.size-x.off || x.n > left {
			return fmt.Errorf("%w: map of a sparse file", errTar)
		}
		end, left = x.off+x.n, left-x.n
		if x.n > 0 {
			h.data = append(h.data, extent{off: x.off, n: x.n, at: at})
		}
		at += x.n
	}
	return nil
}

// sparseMap returns the runs of data of a sparse file (at is not set), in all the
// ways that GNU tar has written them ("Storing Sparse Files"), and sets its real size and name.
func (t *tarReader) sparseMap(h *tarHeader, pax paxHeader) (runs []extent, sparse bool, err error) {
	if h.typ == tarGNUSparse {
		runs, err = t.oldSparseMap(h)
		return runs, true, err
	}
	version, ok := sparseVersion(&pax)
	if !ok {
		return nil, false, nil
	}
	if s := pax.records["GNU.sparse.name"]; s != "" {
		h.name = s
	}
	for _, key := range []string{"GNU.sparse.realsize", "GNU.sparse.size"} {
		if err := pax.number(key, &h.size); err != nil {
			return nil, true, err
		}
	}
	if version == "1.0" {
		runs, err = t.sparseMap10()
	} else {
		runs, err = pax.sparseMap01()
	}
	return runs, true, err
}

// sparseVersion is what the records say, or must mean: before 1.0 there was no version.
func sparseVersion(h *paxHeader) (string, bool) {
	major, minor := h.records["GNU.sparse.major"], h.records["GNU.sparse.minor"]
	switch v := major + "." + minor; {
	case v == "1.0" || v == "0.0" || v == "0.1":
		return v, true
	case v != ".":
		return "", false
	}
	return "0.1", h.records["GNU.sparse.map"] != "" || len(h.sparse) > 0
}

// sparseMap01 reads "offset,length,offset,length…", or the records of 0.0.
func (h *paxHeader) sparseMap01() ([]extent, error) {
	numbers := h.sparse
	if s := h.records["GNU.sparse.map"]; s != "" && len(numbers) == 0 {
		numbers = strings.Split(s, ",")
	}
	var count int64
	if err := h.number("GNU.sparse.numblocks", &count); err != nil {
		return nil, err
	}
	if int64(len(numbers)) != 2*count {
		return nil, fmt.Errorf("%w: map of a sparse file: %d numbers for %d runs", errTar, len(numbers), count)
	}
	runs := make([]extent, count)
	for i := range runs {
		var err1, err2 error
		runs[i].off, err1 = strconv.ParseInt(numbers[2*i], 10, 64)
		runs[i].n, err2 = strconv.ParseInt(numbers[2*i+1], 10, 64)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("%w: map of a sparse file", errTar)
		}
	}
	return runs, nil
}

// sparseMap10 reads the map at the start of the body: decimal numbers in lines (how
// many runs; offset and length of each), padded to a block.
func (t *tarReader) sparseMap10() ([]extent, error) {
	lines := &mapLines{t: t}
	count, err := lines.next()
	if err != nil {
		return nil, err
	}
	if count > maxSparse {
		return nil, fmt.Errorf("%w: sparse file of %d runs", ErrLimit, count)
	}
	var runs []extent
	for range count {
		var x extent
		if x.off, err = lines.next(); err != nil {
			return nil, err
		}
		if x.n, err = lines.next(); err != nil {
			return nil, err
		}
		runs = append(runs, x)
	}
	return runs, nil
}

// mapLines reads numbers out of blocks.
type mapLines struct {
	t   *tarReader
	buf []byte
}

func (m *mapLines) next() (int64, error) {
	var digits []byte
	for len(digits) < 20 {
		if len(m.buf) == 0 {
			m.buf = m.t.blk[:]
			if err := m.t.readBody(m.buf); err != nil {
				return 0, err
			}
		}
		c := m.buf[0]
		m.buf = m.buf[1:]
		if c == '\n' {
			break
		}
		digits = append(digits, c)
	}
	n, err := strconv.ParseInt(string(digits), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: map of a sparse file: %q", errTar, digits)
	}
	return n, nil
}

// oldSparseMap reads the map in GNU's own header: 4 runs there and 21 in each block that follows.
func (t *tarReader) oldSparseMap(h *tarHeader) ([]extent, error) {
	b := &t.blk
	real, ok := parseNumber(b[483:495])
	if !ok || string(b[257:265]) != magicGNU {
		return nil, fmt.Errorf("%w: GNU sparse header", errTar)
	}
	h.size = real
	runs, err := appendRuns(nil, b[386:482])
	for extended := b[482] != 0; err == nil && extended && len(runs) <= maxSparse; extended = b[504] != 0 {
		// These blocks are no part of the body: its size does not count them.
		if err := t.readExtension(); err != nil {
			return nil, err
		}
		runs, err = appendRuns(runs, b[:504])
	}
	if len(runs) > maxSparse {
		return nil, fmt.Errorf("%w: sparse file of more than %d runs", ErrLimit, maxSparse)
	}
	return runs, err
}

func (t *tarReader) readExtension() error {
	t.body += blockSize
	return t.readBody(t.blk[:])
}

// appendRuns reads pairs of numbers, up to an empty one.
func appendRuns(runs []extent, b []byte) ([]extent, error) {
	for ; len(b) >= 24 && b[0] != 0; b = b[24:] {
		off, ok1 := parseNumber(b[:12])
		n, ok2 := parseNumber(b[12:24])
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("%w: GNU sparse header", errTar)
		}
		runs = append(runs, extent{off: off, n: n})
	}
	return runs, nil
}

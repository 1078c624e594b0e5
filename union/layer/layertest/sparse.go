package layertest

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"
)

// sparse makes a header that of a sparse file (GNU tar manual, "Storing Sparse
// Files"): only the data follows it, and a map says where it belongs.
func (h *header) sparse(e *Entry) {
	extents := withEnd(e.Data, e.Size)
	var data []string
	for _, x := range extents {
		data = append(data, x.Data)
	}
	content := strings.Join(data, "")
	add := func(key, value string) { h.records = append(h.records, record("GNU.sparse."+key, value)) }
	numbers := func(between string) string {
		var s []string
		for _, x := range extents {
			s = append(s, fmt.Sprint(x.Off), fmt.Sprint(len(x.Data)))
		}
		return strings.Join(s, between)
	}
	switch e.Sparse {
	case "0.0":
		add("size", fmt.Sprint(e.Size))
		add("numblocks", fmt.Sprint(len(extents)))
		for _, x := range extents {
			add("offset", fmt.Sprint(x.Off))
			add("numbytes", fmt.Sprint(len(x.Data)))
		}
	case "0.1":
		add("size", fmt.Sprint(e.Size))
		add("numblocks", fmt.Sprint(len(extents)))
		add("name", h.name)
		add("map", numbers(","))
		h.name = "GNUSparseFile.0/file"
	case "1.0":
		add("major", "1")
		add("minor", "0")
		add("name", h.name)
		add("realsize", fmt.Sprint(e.Size))
		h.name = "GNUSparseFile.0/file"
		head := fmt.Sprintf("%d\n%s\n", len(extents), numbers("\n"))
		content = head + strings.Repeat("\x00", int(padding(int64(len(head))))) + content
	case "gnu":
		h.typ = tar.TypeGNUSparse
		h.gnuSparse = extents
	}
	h.size = int64(len(content))
	h.body = io.Reader(strings.NewReader(content))
}

// withEnd adds the empty extent by which GNU tar marks the end of a file that
// ends in a hole.
func withEnd(data []Extent, size int64) []Extent {
	out := append([]Extent{}, data...)
	if n := len(out); n == 0 || out[n-1].Off+int64(len(out[n-1].Data)) < size {
		out = append(out, Extent{Off: size})
	}
	return out
}

// putSparse writes the map of the old GNU format: four extents into the header,
// and 21 into each block after it, which are returned.
func (h *header) putSparse(b []byte, realSize int64) []byte {
	if h.gnuSparse == nil {
		return nil
	}
	rest := putExtents(b[386:482], h.gnuSparse)
	putNumber(b[483:495], realSize, true, false)
	if len(rest) > 0 {
		b[482] = 1
	}
	var more []byte
	for len(rest) > 0 {
		ext := make([]byte, block)
		rest = putExtents(ext[:504], rest)
		if len(rest) > 0 {
			ext[504] = 1
		}
		more = append(more, ext...)
	}
	return more
}

// putExtents fills b, 24 bytes an extent, and returns those that are left.
func putExtents(b []byte, extents []Extent) []Extent {
	for ; len(b) >= 24 && len(extents) > 0; b, extents = b[24:], extents[1:] {
		putNumber(b[:12], extents[0].Off, true, false)
		putNumber(b[12:24], int64(len(extents[0].Data)), true, false)
	}
	return extents
}

package layer

import (
	"bytes"
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// A paxHeader is the records of a PAX extended header (POSIX pax, "pax Extended
// Header"), by keyword.
type paxHeader struct {
	records map[string]string
	xattrs  []string // keywords, in their order
	sparse  []string // the numbers of GNU.sparse.offset and numbytes, which repeat (sparse format 0.0)
}

const xattrPrefix = "SCHILY.xattr."

// parse reads the records in b: "LENGTH KEYWORD=VALUE\n", where the length counts itself.
func (h *paxHeader) parse(b []byte) error {
	if h.records == nil {
		h.records = map[string]string{}
	}
	for len(b) > 0 {
		key, value, rest, ok := cutRecord(b)
		if !ok {
			return fmt.Errorf("%w: PAX record", errTar)
		}
		b = rest
		if err := h.add(key, value); err != nil {
			return err
		}
	}
	return nil
}

func cutRecord(b []byte) (key, value string, rest []byte, ok bool) {
	sp := bytes.IndexByte(b, ' ')
	if sp <= 0 || sp > 8 {
		return "", "", nil, false
	}
	n, err := strconv.ParseUint(string(b[:sp]), 10, 31)
	if err != nil || int(n) > len(b) || int(n) < sp+3 || b[n-1] != '\n' {
		return "", "", nil, false
	}
	key, value, ok = strings.Cut(string(b[sp+1:n-1]), "=")
	return key, value, b[n:], ok && key != ""
}

func (h *paxHeader) add(key, value string) error {
	switch {
	case key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes":
		if (key == "GNU.sparse.offset") != (len(h.sparse)%2 == 0) {
			return fmt.Errorf("%w: %s out of order", errTar, key)
		}
		h.sparse = append(h.sparse, value)
	case strings.HasPrefix(key, xattrPrefix):
		if _, ok := h.records[key]; !ok {
			h.xattrs = append(h.xattrs, key)
		}
	}
	h.records[key] = value
	return nil
}

// with returns h with the records of o, which come before h's.
func (h paxHeader) with(o paxHeader) paxHeader {
	if h.records == nil {
		return o
	}
	if o.records == nil {
		return h
	}
	all := maps.Clone(h.records)
	maps.Copy(all, o.records)
	xattrs := h.xattrs[:len(h.xattrs):len(h.xattrs)]
	for _, key := range o.xattrs {
		if _, ok := h.records[key]; !ok {
			xattrs = append(xattrs, key)
		}
	}
	return paxHeader{records: all, xattrs: xattrs, sparse: o.sparse}
}

// apply overrides h with the records. An empty value means that the ustar field
// stands, but for an xattr, which can be empty.
func (h *paxHeader) apply(t *tarHeader) error {
	if h.records == nil {
		return nil
	}
	if s := h.records["path"]; s != "" {
		t.name = s
	}
	if s := h.records["linkpath"]; s != "" {
		t.link = s
	}
	for key, field := range map[string]*int64{"uid": &t.uid, "gid": &t.gid, "size": &t.size} {
		if err := h.number(key, field); err != nil {
			return err
		}
	}
	if s := h.records["mtime"]; s != "" {
		var ok bool
		if t.sec, t.nsec, ok = parseTime(s); !ok {
			return fmt.Errorf("%w: PAX mtime %.32q", errTar, s)
		}
	}
	for _, key := range h.xattrs {
		t.xattrs = append(t.xattrs, Xattr{Name: key[len(xattrPrefix):], Value: []byte(h.records[key])})
	}
	return nil
}

// number stores a decimal record, if there is one.
func (h *paxHeader) number(key string, to *int64) error {
	s := h.records[key]
	if s == "" {
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: PAX %s %.32q", errTar, key, s)
	}
	*to = n
	return nil
}

// parseTime reads decimal seconds with a fraction, cut (not rounded) to
// nanoseconds. "-1.25" is a quarter of a second before -1.
func parseTime(s string) (sec int64, nsec uint32, ok bool) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || strings.Trim(frac, "0123456789") != "" {
		return 0, 0, false
	}
	n, _ := strconv.ParseUint((frac + "000000000")[:9], 10, 32) // digits only
	if n > 0 && strings.HasPrefix(whole, "-") {
		return sec - 1, uint32(1e9 - n), sec > -1<<63
	}
	return sec, uint32(n), true
}

package layer

import (
	"bytes"
	"io"
)

// A memberReader takes chunks out of a stream of gzip members.
type memberReader struct {
	body io.Reader
	at   int64 // of body, in the blob

	packed []byte // the compressed bytes of the member
	z      gunzipper
	opened bool
	pos    int64 // of z, when opened
	out    []byte
}

// open starts at the member at off, which ends at end; no more than need bytes of
// what it unpacks to will be asked for.
func (m *memberReader) open(off, end, need int64) error {
	if _, err := io.CopyN(io.Discard, m.body, off-m.at); err != nil {
		return unexpected(err)
	}
	// What follows the chunks in a member may be long (it is not ours, and not
	// verified); DEFLATE never needs more than this for what is wanted.
	n := min(end-off, need+need/64+1<<16)
	if int64(cap(m.packed)) < n {
		m.packed = make([]byte, n)
	}
	m.packed = m.packed[:n]
	if _, err := io.ReadFull(m.body, m.packed); err != nil {
		return unexpected(err)
	}
	m.at, m.opened = off+n, false
	return nil
}

// chunk returns the bytes of c, valid until the next call.
func (m *memberReader) chunk(c *chunk) ([]byte, error) {
	if !m.opened || m.pos > c.inner {
		m.opened, m.pos = true, 0
		m.z.reset(bytes.NewReader(m.packed))
	}
	skipped, err := io.CopyN(io.Discard, &m.z, c.inner-m.pos)
	m.pos += skipped
	if err != nil {
		return nil, unexpected(err)
	}
	if int64(cap(m.out)) < c.n {
		m.out = make([]byte, c.n)
	}
	m.out = m.out[:c.n]
	n, err := io.ReadFull(&m.z, m.out)
	m.pos += int64(n)
	return m.out, unexpected(err)
}

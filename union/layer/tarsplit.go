package layer

import (
	"bytes"
	"encoding/json"
	"errors"
	"hash"
	"hash/crc64"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// A tarSplit is a tar without the content of its files, from which and from these the
// tar can be made again: one JSON object a line, in the format of vbatts/tar-split.
// containers/storage wants it of layers that it does not pull whole. Methods of a nil
// one do nothing.
type tarSplit struct {
	packed   bytes.Buffer
	z        *zstd.Encoder
	json     *json.Encoder
	out      hashing // counts the JSON
	position int
	segment  []byte
	crc      hash.Hash64 // of a file's content; nil outside of one
	err      error
}

var crcISO = crc64.MakeTable(crc64.ISO)

// The types of a splitEntry.
const (
	splitFile    = 1 // every entry of the tar, at its content's place
	splitSegment = 2 // all else, as it is
)

type splitEntry struct {
	Type     int    `json:"type"`
	Name     string `json:"name,omitempty"`
	NameRaw  []byte `json:"name_raw,omitempty"` // of names that are no UTF-8
	Size     int64  `json:"size,omitempty"`
	Payload  []byte `json:"payload"` // the bytes of a segment, the CRC-64 of a file
	Position int    `json:"position"`
}

func newTarSplit(level zstd.EncoderLevel) (*tarSplit, error) {
	s := &tarSplit{}
	var err error
	s.z, err = zstd.NewWriter(&s.packed, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
	s.out.w = s.z
	s.json = json.NewEncoder(&s.out)
	return s, err
}

// take is called with every byte of the tar.
func (s *tarSplit) take(b []byte) {
	switch {
	case s == nil:
	case s.crc != nil:
		s.crc.Write(b)
	default:
		s.segment = append(s.segment, b...)
	}
}

// flush ends a segment.
func (s *tarSplit) flush() {
	if s == nil || len(s.segment) == 0 {
		return
	}
	s.add(splitEntry{Type: splitSegment, Payload: s.segment})
	s.segment = s.segment[:0]
}

// body says that a file's content follows.
func (s *tarSplit) body() {
	if s == nil {
		return
	}
	s.flush()
	s.crc = crc64.New(crcISO)
}

// file ends an entry of the tar, whether it has content or not.
func (s *tarSplit) file(h *tarHeader) {
	if s == nil {
		return
	}
	s.flush()
	e := splitEntry{Type: splitFile, Name: h.name}
	if s.crc != nil {
		e.Size, e.Payload = h.size, s.crc.Sum(nil)
	}
	s.add(e)
	s.crc = nil
}

func (s *tarSplit) add(e splitEntry) {
	e.Position = s.position
	s.position++
	s.err = errors.Join(s.err, s.json.Encode(e))
}

// finish returns all of it, compressed, and the digest of that.
func (s *tarSplit) finish() (packed []byte, sum digest.Digest, err error) {
	s.flush()
	err = errors.Join(s.err, s.z.Close())
	return s.packed.Bytes(), digest.FromBytes(s.packed.Bytes()), err
}

package ztoc

import (
	"encoding/binary"
	"fmt"
)

// The zinfo of a gzip layer is a header and the checkpoints, packed, little-endian:
//
//	count int32, span size int64
//	count × { in int64, out int64, bits uint8, window [32768]byte }
//
// In what SOCI calls its first version the first checkpoint is left out, because every gzip header
// was thought to have 10 bytes. Only the length tells which version it is.
const (
	zinfoHeader     = 4 + 8
	zinfoCheckpoint = 8 + 8 + 1 + windowSize
	plainGzipHeader = 10 // RFC 1952, without optional fields
)

func (z *ZTOC) encodeZinfo() []byte {
	b := make([]byte, 0, zinfoHeader+len(z.Checkpoints)*zinfoCheckpoint)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(z.Checkpoints)))
	b = binary.LittleEndian.AppendUint64(b, uint64(z.SpanSize))
	for _, c := range z.Checkpoints {
		b = binary.LittleEndian.AppendUint64(b, uint64(c.In))
		b = binary.LittleEndian.AppendUint64(b, uint64(c.Out))
		b = append(b, c.Bits)
		b = append(b, c.Window...)
	}
	return b
}

// decodeZinfo reads the checkpoints. The windows are parts of b.
func (z *ZTOC) decodeZinfo(b []byte) error {
	if len(b) < zinfoHeader {
		return fmt.Errorf("%w: %d bytes of checkpoints", ErrFormat, len(b))
	}
	count := int64(int32(binary.LittleEndian.Uint32(b)))
	z.SpanSize = int64(binary.LittleEndian.Uint64(b[4:]))
	b = b[zinfoHeader:]
	switch int64(len(b)) {
	case count * zinfoCheckpoint:
	case (count - 1) * zinfoCheckpoint:
		z.Checkpoints = append(z.Checkpoints, Checkpoint{In: plainGzipHeader, Window: make([]byte, windowSize)})
	default:
		return fmt.Errorf("%w: %d checkpoints in %d bytes", ErrFormat, count, len(b))
	}
	for ; len(b) > 0; b = b[zinfoCheckpoint:] {
		z.Checkpoints = append(z.Checkpoints, Checkpoint{
			In:     int64(binary.LittleEndian.Uint64(b)),
			Out:    int64(binary.LittleEndian.Uint64(b[8:])),
			Bits:   b[16],
			Window: b[17:zinfoCheckpoint:zinfoCheckpoint],
		})
	}
	return z.checkCheckpoints()
}

// checkCheckpoints refuses those that do not go forward. That nothing comes between two is
// possible: SOCI makes a checkpoint of every block before the first byte of output. So are
// some behind the end of the tar: SOCI takes its size from the end marker, which archivers
// pad, and its checkpoints from the whole stream.
func (z *ZTOC) checkCheckpoints() error {
	var last Checkpoint
	for i, c := range z.Checkpoints {
		first := i == 0
		switch {
		case c.In <= last.In, c.In > z.ArchiveSize, c.Out < last.Out, c.Bits > 7,
			first && (c.Out != 0 || c.Bits != 0):
			return fmt.Errorf("%w: checkpoint %d", ErrFormat, i)
		}
		last = c
	}
	if last.In == z.ArchiveSize && last.Bits == 0 && last.Out < z.UncompressedSize {
		return fmt.Errorf("%w: %d bytes of tar come out of none", ErrFormat, z.UncompressedSize-last.Out)
	}
	return nil
}

// The zinfo of a layer that is not compressed is a FlatBuffer of its own: TarZinfo
// {version int32, span_size int64, size int64}.
const (
	tarZinfoVersion = iota
	tarZinfoSpanSize
	tarZinfoSize
)

func (z *ZTOC) encodeTarZinfo() []byte {
	w := &writer{b: make([]byte, 4)}
	r := w.single(newShape(4, 8, 8), 0)
	r.uint32(tarZinfoVersion, 2)
	r.int64(tarZinfoSpanSize, z.SpanSize)
	r.int64(tarZinfoSize, z.ArchiveSize)
	return w.b
}

func (z *ZTOC) decodeTarZinfo(b []byte) error {
	f := newFlat(b)
	z.SpanSize = f.table(f.follow(0)).int64(tarZinfoSpanSize)
	if f.err != nil {
		return f.err
	}
	if z.SpanSize <= 0 {
		return fmt.Errorf("%w: spans of %d bytes", ErrFormat, z.SpanSize)
	}
	return nil
}

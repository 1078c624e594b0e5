// Package zstdchunkedtest encodes zstd:chunked layers in both dialects, for tests.
package zstdchunkedtest

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ChunkSize is small, so that files of a few hundred KiB have several chunks.
const ChunkSize = 64 << 10

const containers = "io.github.containers.zstd-chunked."

// Encode is a layertest.Encoder for the dialect of containers/storage, as
// pkg/chunked/internal/minimal/compression.go describes it: chunks and what stands
// between them in frames of their own, the TOC compressed in a skippable frame, one for
// tar-split, and one with the footer. A chunk of zeros is marked as such. It refuses
// sparse files.
func Encode(b []byte) ([]byte, ocispec.Descriptor, digest.Digest, error) {
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd}
	w := &writer{tar: b, in: bytes.NewReader(b)}
	if err := w.entries(); err != nil {
		return nil, desc, "", err
	}
	desc.Annotations = w.manifest()
	return w.blob, desc, digest.FromBytes(b), nil
}

// An entry is one of the TOC.
type entry map[string]any

type writer struct {
	tar  []byte
	in   *bytes.Reader
	done int // of tar
	blob []byte
	toc  []entry
}

var types = map[byte]string{
	tar.TypeReg: "reg", tar.TypeLink: "hardlink", tar.TypeChar: "char", tar.TypeBlock: "block",
	tar.TypeDir: "dir", tar.TypeFifo: "fifo", tar.TypeSymlink: "symlink",
}

// entries relies on archive/tar to read no further than the header.
func (w *writer) entries() error {
	r := tar.NewReader(w.in)
	for {
		h, err := r.Next()
		if err == io.EOF {
			w.frames(w.tar[w.done:])
			return nil
		}
		if err != nil {
			return err
		}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return errors.New("zstdchunkedtest: sparse file")
			}
		}
		if types[h.Typeflag] == "" {
			return fmt.Errorf("zstdchunkedtest: type %q", h.Typeflag)
		}
		at := len(w.tar) - w.in.Len()
		w.header(h)
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			w.frames(w.tar[w.done:at])
			w.content(h, w.tar[at:at+int(h.Size)])
			w.done = at + int(h.Size)
		}
	}
}

func (w *writer) header(h *tar.Header) {
	e := entry{"type": types[h.Typeflag], "name": h.Name, "mode": h.Mode, "uid": h.Uid, "gid": h.Gid, "accesstime": time.Unix(1, 0)}
	if !h.ModTime.IsZero() {
		e["modtime"] = h.ModTime
	}
	if h.Linkname != "" {
		e["linkName"] = h.Linkname
	}
	if h.Typeflag == tar.TypeReg {
		e["size"] = h.Size
	}
	if h.Devmajor != 0 || h.Devminor != 0 {
		e["devMajor"], e["devMinor"] = h.Devmajor, h.Devminor
	}
	xattrs := map[string][]byte{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			xattrs[name] = []byte(value)
		}
	}
	if len(xattrs) > 0 {
		e["xattrs"] = xattrs
	}
	w.toc = append(w.toc, e)
}

// content writes the chunks of a file. One that is its whole file is described by the
// file's digest alone.
func (w *writer) content(h *tar.Header, b []byte) {
	file := w.toc[len(w.toc)-1]
	file["digest"], file["offset"] = digest.FromBytes(b).String(), len(w.blob)
	if len(b) <= ChunkSize {
		w.frames(b)
	}
	for off := 0; off < len(b) && len(b) > ChunkSize; off += ChunkSize {
		chunk := b[off:min(off+ChunkSize, len(b))]
		e := file
		if off > 0 {
			e = entry{"type": "chunk", "name": h.Name, "chunkOffset": off}
			w.toc = append(w.toc, e)
		}
		e["chunkSize"], e["offset"], e["chunkDigest"] = len(chunk), len(w.blob), digest.FromBytes(chunk).String()
		if len(bytes.Trim(chunk, "\x00")) == 0 {
			e["chunkType"] = "zeros"
		}
		w.frames(chunk)
	}
	file["endOffset"] = len(w.blob)
}

// frames compresses b into a frame.
func (w *writer) frames(b []byte) {
	if len(b) > 0 {
		w.blob = append(w.blob, compress(b)...)
	}
}

func compress(b []byte) []byte {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(fmt.Sprintf("zstdchunkedtest: %v", err)) // the options are constant
	}
	return z.EncodeAll(b, nil)
}

func (w *writer) skippable(b []byte) (off int) {
	w.blob = append(w.blob, 0x50, 0x2a, 0x4d, 0x18)
	w.blob = binary.LittleEndian.AppendUint32(w.blob, uint32(len(b)))
	off = len(w.blob)
	w.blob = append(w.blob, b...)
	return off
}

// manifest writes what stands behind the tar and returns the annotations.
func (w *writer) manifest() map[string]string {
	b, err := json.Marshal(entry{"version": 1, "entries": w.toc})
	if err != nil {
		panic(fmt.Sprintf("zstdchunkedtest: %v", err)) // plain values
	}
	packed := compress(b)
	off := w.skippable(packed)
	split := compress([]byte("no tar-split"))
	splitOff := w.skippable(split)
	var footer []byte
	for _, v := range []int{off, len(packed), len(b), 1, splitOff, len(split), 12} {
		footer = binary.LittleEndian.AppendUint64(footer, uint64(v))
	}
	w.skippable(append(footer, "GNUlInUx"...))
	return map[string]string{
		containers + "manifest-checksum": digest.FromBytes(packed).String(),
		containers + "manifest-position": fmt.Sprintf("%d:%d:%d:1", off, len(packed), len(b)),
		containers + "tarsplit-position": fmt.Sprintf("%d:%d:12", splitOff, len(split)),
	}
}

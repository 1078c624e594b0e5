package registry

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// tarFiles are the files of a tar, found by one pass over its headers.
type tarFiles struct {
	f     *os.File
	index map[string]tarEntry
}

type tarEntry struct {
	off, size int64
	link      string // of links: the name they lead to
}

// maxArchiveEntries bounds the index of an archive. An image of 127 layers, the
// most that docker builds, has some 400 entries.
const maxArchiveEntries = 100_000

// openTar opens a tar and indexes it. One that is compressed as a whole, as
// "docker save | gzip" makes it, is unpacked into a temporary file.
func openTar(name, tempDir string) (*tarFiles, error) {
	st, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, faultf(ErrNotFound, "no such file").because(err)
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, faultf(ErrNotFound, "not a regular file").withHint("oci: reads directories")
	}
	f, err := openQuietly(name)
	if err != nil {
		return nil, err
	}
	if f, err = plainTar(f, tempDir); err != nil {
		return nil, err
	}
	t := &tarFiles{f, map[string]tarEntry{}}
	if err := t.scan(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return t, nil
}

// plainTar returns f itself, or what it unpacks to. It owns f.
func plainTar(f *os.File, tempDir string) (*os.File, error) {
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && err != io.EOF {
		_ = f.Close()
		return nil, err
	}
	var r io.Reader
	var err error
	switch {
	case isGzip(magic[:]):
		r, err = gzip.NewReader(bufio.NewReader(f))
	case isZstd(magic[:]):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderMaxWindow(128<<20)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		return f, nil
	}
	defer func() { _ = f.Close() }()
	if err != nil {
		return nil, faultf(ErrIntegrity, "%w", err)
	}
	return unpack(r, tempDir)
}

func isGzip(b []byte) bool { return bytes.HasPrefix(b, []byte{0x1f, 0x8b}) }
func isZstd(b []byte) bool { return bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}) }

// unpack copies r into a temporary file that has no name any more.
func unpack(r io.Reader, tempDir string) (*os.File, error) {
	f, err := os.CreateTemp(tempDir, "layerfs-archive-")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		_, err = io.Copy(f, r)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// scan reads all headers; archive/tar seeks over the bodies. Of two entries of
// one name the last counts.
func (t *tarFiles) scan() error {
	r := tar.NewReader(t.f)
	for n := 0; ; n++ {
		h, err := r.Next()
		switch {
		case err == io.EOF && n == 0:
			return faultf(ErrIntegrity, "an empty archive")
		case err == io.EOF:
			return nil
		case err != nil:
			return faultf(ErrIntegrity, "not a tar archive: %w", err)
		case n >= maxArchiveEntries:
			return faultf(ErrUnsupported, "an archive of more than %d entries", maxArchiveEntries)
		}
		if err := t.add(h); err != nil {
			return err
		}
	}
}

func (t *tarFiles) add(h *tar.Header) error {
	name := cleanName(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
		off, err := t.f.Seek(0, io.SeekCurrent) // archive/tar reads headers by blocks and nothing ahead
		if err != nil {
			return err
		}
		t.index[name] = tarEntry{off: off, size: h.Size}
	case tar.TypeSymlink:
		t.index[name] = tarEntry{link: cleanName(path.Join(path.Dir(name), h.Linkname))}
	case tar.TypeLink:
		t.index[name] = tarEntry{link: cleanName(h.Linkname)}
	}
	return nil
}

// cleanName gives an archive's name the form in which it is looked up.
func cleanName(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// maxLinks is how many links are followed: docker makes one.
const maxLinks = 8

func (t *tarFiles) find(name string) (tarEntry, error) {
	at := cleanName(name)
	for range maxLinks {
		e, ok := t.index[at]
		if !ok {
			break
		}
		if e.link == "" {
			return e, nil
		}
		at = e.link
	}
	return tarEntry{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (t *tarFiles) open(name string) (io.ReaderAt, int64, int64, func(), error) {
	e, err := t.find(name)
	return t.f, e.off, e.size, func() {}, err
}

func (t *tarFiles) close() error { return t.f.Close() }

// openLayoutArchive opens an OCI layout in a tar.
func openLayoutArchive(r Ref, o Options) (source, error) {
	t, err := openTar(r.Path, o.TempDir)
	if err != nil {
		return nil, err
	}
	return newLayout(r, t)
}

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// files are the named files of a directory or an archive.
type files interface {
	// open returns a file's content and size. end gives it back.
	open(name string) (at io.ReaderAt, off, size int64, end func(), err error)
	close() error
}

// A layout is an OCI image layout (image-spec image-layout.md), in a directory or a tar.
type layout struct {
	ref   Ref
	files files
}

func openLayout(r Ref) (source, error) {
	st, err := os.Stat(r.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, faultf(ErrNotFound, "no such directory").because(err)
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, faultf(ErrNotFound, "not a directory").withHint("oci-archive: and docker-archive: read files")
	}
	return newLayout(r, dirFiles(r.Path))
}

// newLayout checks the version file. It owns f also when it fails.
func newLayout(r Ref, f files) (source, error) {
	b, err := readFile(f, ocispec.ImageLayoutFile, maxManifest)
	var v ocispec.ImageLayout
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = faultf(ErrNotFound, "not an OCI image layout: it has no file %s", ocispec.ImageLayoutFile)
	case err == nil && json.Unmarshal(b, &v) != nil:
		err = faultf(ErrIntegrity, "malformed %s", ocispec.ImageLayoutFile)
	case err == nil && !strings.HasPrefix(v.Version, "1."):
		err = faultf(ErrUnsupported, "image layout of version %q", v.Version)
	}
	if err != nil {
		_ = f.close()
		return nil, err
	}
	return &layout{r, f}, nil
}

func (l *layout) close() error { return l.files.close() }

// resolve finds the reference in index.json.
func (l *layout) resolve(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	b, err := readFile(l.files, ocispec.ImageIndexFile, maxManifest)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return ocispec.Descriptor{}, nil, faultf(ErrIntegrity, "index.json: %w", err)
	}
	d, err := l.find(index.Manifests)
	if err != nil {
		return d, nil, err
	}
	raw, err := fetchManifest(ctx, l, d)
	return d, raw, err
}

// find returns the entry of index.json that the reference means. A digest need
// not stand there: any manifest in the layout can be opened by it.
func (l *layout) find(list []ocispec.Descriptor) (ocispec.Descriptor, error) {
	if l.ref.Digest != "" {
		_, _, size, end, err := l.files.open(blobPath(l.ref.Digest))
		if err != nil {
			return ocispec.Descriptor{}, notFound(err, "manifest unknown")
		}
		end()
		return ocispec.Descriptor{Digest: l.ref.Digest, Size: size}, nil
	}
	list = slices.DeleteFunc(list, isSide)
	if l.ref.Tag == "" && len(list) == 1 {
		return list[0], nil
	}
	var tags []string
	for _, d := range list {
		tag := d.Annotations[ocispec.AnnotationRefName]
		if l.ref.Tag != "" && (tag == l.ref.Tag || d.Annotations["io.containerd.image.name"] == l.ref.Tag) {
			return d, nil
		}
		if tag != "" {
			tags = append(tags, tag)
		}
	}
	hint := "it has no tags; name the manifest by @DIGEST"
	if len(tags) > 0 {
		hint = "it has " + strings.Join(tags, ", ")
	}
	if l.ref.Tag == "" {
		return ocispec.Descriptor{}, faultf(ErrUsage, "the layout holds %d images: name one by its tag", len(list)).withHint(hint)
	}
	return ocispec.Descriptor{}, faultf(ErrNotFound, "no tag %q", l.ref.Tag).withHint(hint)
}

// notFound gives a missing file the text and the sentinel of a registry.
func notFound(err error, text string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return faultf(ErrNotFound, "%s", text).because(err)
	}
	return err
}

// blobPath is where a layout keeps a blob; d must be valid.
func blobPath(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

func (l *layout) manifest(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b := l.blob(d, new(counter))
	rc, err := b.readRange(ctx, 0, d.Size)
	if err != nil {
		b.close()
		return nil, err
	}
	return &closer{rc, b.close}, nil
}

func (l *layout) blob(d ocispec.Descriptor, c *counter) ranger {
	return &fileBlob{files: l.files, desc: d, name: blobPath(d.Digest), count: c}
}

// A fileBlob opens its file at the first read.
type fileBlob struct {
	files files
	desc  ocispec.Descriptor
	name  string
	count *counter

	mu sync.Mutex
	s  *section // protected by mu
}

func (b *fileBlob) readRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s, err := b.section()
	if err != nil {
		return nil, err
	}
	return s.readRange(ctx, off, n)
}

func (b *fileBlob) section() (*section, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.s != nil {
		return b.s, nil
	}
	if err := b.desc.Digest.Validate(); err != nil {
		return nil, faultf(ErrIntegrity, "digest %q: %w", b.desc.Digest, err)
	}
	at, off, size, end, err := b.files.open(b.name)
	if err != nil {
		return nil, notFound(err, "blob "+b.desc.Digest.String()+" is missing")
	}
	if size != b.desc.Size {
		end()
		return nil, faultf(ErrIntegrity, "%s has %d bytes instead of %d", b.desc.Digest, size, b.desc.Size)
	}
	b.s = &section{at: at, off: off, count: b.count, end: end}
	return b.s, nil
}

func (b *fileBlob) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.s != nil {
		b.s.close()
		b.s = nil
	}
}

// dirFiles are the files below a directory.
type dirFiles string

func (d dirFiles) open(name string) (io.ReaderAt, int64, int64, func(), error) {
	path := filepath.Join(string(d), filepath.FromSlash(name))
	st, err := os.Stat(path) // before the open, which could wait for ever on a FIFO
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, 0, 0, nil, err
	}
	f, err := openQuietly(path)
	if err != nil {
		return nil, 0, 0, nil, err
	}
	return f, 0, st.Size(), func() { _ = f.Close() }, nil
}

func (d dirFiles) close() error { return nil }

// openQuietly opens a file to be read and leaves its access time, where we own the file or
// the superuser asks: others may not (open(2), O_NOATIME).
func openQuietly(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOATIME, 0)
	if errors.Is(err, syscall.EPERM) {
		return os.Open(path)
	}
	return f, err
}

// readFile reads one file whole.
func readFile(f files, name string, limit int64) ([]byte, error) {
	at, off, size, end, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer end()
	if size > limit {
		return nil, faultf(ErrUnsupported, "%s has %d bytes, more than the limit of %d", name, size, limit)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(at, off, size), b); err != nil {
		return nil, faultf(ErrIntegrity, "%s: %w", name, err)
	}
	return b, nil
}

// A closer is a stream with something to do after it.
type closer struct {
	io.ReadCloser
	end func()
}

func (c *closer) Close() error {
	err := c.ReadCloser.Close()
	c.end()
	return err
}

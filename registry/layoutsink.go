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

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// layoutVersion is the content of the file oci-layout.
const layoutVersion = `{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`

// A layoutSink writes to an OCI image layout in a directory, which it makes
// where there is none.
type layoutSink struct {
	ref Ref
	dir string
}

func newLayoutSink(r Ref) (sink, error) {
	s := &layoutSink{r, r.Path}
	list, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	_, err = os.Stat(filepath.Join(s.dir, ocispec.ImageLayoutFile))
	if errors.Is(err, fs.ErrNotExist) && slices.ContainsFunc(list, notBlobs) {
		return nil, faultf(ErrUsage, "the directory is neither empty nor an OCI image layout")
	}
	return s, os.MkdirAll(filepath.Join(s.dir, ocispec.ImageBlobsDir, "sha256"), 0o755)
}

// notBlobs is false for what a commit that did not come to its end may leave in a new layout.
func notBlobs(e fs.DirEntry) bool { return e.Name() != ocispec.ImageBlobsDir }

func (s *layoutSink) close() {}

func (s *layoutSink) parallel() int { return 2 }

func (s *layoutSink) blob(d digest.Digest) string {
	return filepath.Join(s.dir, filepath.FromSlash(blobPath(d)))
}

// create writes to a temporary file and gives it its name afterwards.
func (s *layoutSink) create(ctx context.Context, _ bool, write blobWriter) (ocispec.Descriptor, error) {
	f, err := newTempFile(filepath.Join(s.dir, ocispec.ImageBlobsDir))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.discard()
	d, err := write(ctx, f)
	if err == nil {
		err = d.Digest.Validate()
	}
	if err != nil {
		return d, err
	}
	if err := os.MkdirAll(filepath.Dir(s.blob(d.Digest)), 0o755); err != nil {
		return d, err
	}
	return d, f.publish(s.blob(d.Digest))
}

func (s *layoutSink) copy(ctx context.Context, base *Image, d ocispec.Descriptor, progress func(Progress)) error {
	if IsForeign(d.MediaType) {
		progress(Progress{Blob: d.Digest, State: "skipped", Total: d.Size})
		return nil
	}
	if err := d.Digest.Validate(); err != nil {
		return faultf(ErrIntegrity, "digest %q: %w", d.Digest, err)
	}
	if st, err := os.Stat(s.blob(d.Digest)); err == nil && st.Mode().IsRegular() && st.Size() == d.Size {
		progress(Progress{Blob: d.Digest, State: "exists", Total: d.Size})
		return nil
	}
	_, err := s.create(ctx, true, func(ctx context.Context, w io.Writer) (ocispec.Descriptor, error) {
		return d, copyBlob(ctx, w, base, d, progress)
	})
	return err
}

func (s *layoutSink) put(ctx context.Context, d ocispec.Descriptor, b []byte) error {
	_, err := s.create(ctx, true, func(_ context.Context, w io.Writer) (ocispec.Descriptor, error) {
		_, err := w.Write(b)
		return d, err
	})
	return err
}

func (s *layoutSink) manifest(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	return s.put(ctx, d, raw)
}

// commit adds the manifest to index.json, in place of what had its tag.
func (s *layoutSink) commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	if err := s.put(ctx, d, raw); err != nil {
		return err
	}
	unlock, err := lockDir(ctx, s.dir)
	if err != nil {
		return err
	}
	defer unlock()
	index, err := s.readIndex()
	if err != nil {
		return err
	}
	b, err := indexWith(index, d, s.ref.Tag)
	if err != nil {
		return err
	}
	if err := replaceFile(s.dir, ocispec.ImageLayoutFile, []byte(layoutVersion)); err != nil {
		return err
	}
	return replaceFile(s.dir, ocispec.ImageIndexFile, b)
}

func (s *layoutSink) readIndex() ([]byte, error) {
	b, err := readFile(dirFiles(s.dir), ocispec.ImageIndexFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// indexWith returns index.json with d under tag. Entries with other tags stay as they are.
func indexWith(index []byte, d ocispec.Descriptor, tag string) ([]byte, error) {
	if index == nil {
		index, _ = marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}})
	}
	o, err := parseRaw(index)
	if err != nil {
		return nil, faultf(ErrIntegrity, "index.json: %w", err)
	}
	list, err := o.list("manifests")
	if err != nil {
		return nil, faultf(ErrIntegrity, "index.json: %w", err)
	}
	var keep []json.RawMessage
	for _, raw := range list {
		var have ocispec.Descriptor
		if err := json.Unmarshal(raw, &have); err != nil {
			return nil, faultf(ErrIntegrity, "index.json: %w", err)
		}
		old := have.Annotations[ocispec.AnnotationRefName]
		if old != tag || tag == "" && have.Digest != d.Digest {
			keep = append(keep, raw)
		}
	}
	if tag != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	}
	entry, err := marshal(d)
	if err != nil {
		return nil, err
	}
	o.setRaw("manifests", rawList(append(keep, entry)))
	return o.bytes(), nil
}

// replaceFile writes a small file so that it is there whole or not at all.
func replaceFile(dir, name string, b []byte) error {
	f, err := newTempFile(dir)
	if err != nil {
		return err
	}
	defer f.discard()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.publish(filepath.Join(dir, name))
}

// lockDir keeps other processes that do the same out of a directory.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, err
		}
		if err := sleep(ctx, lockPoll); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
}

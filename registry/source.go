package registry

import (
	"context"
	_ "crypto/sha256" // the two algorithms of image-spec descriptor.md, "Registered algorithms"
	_ "crypto/sha512"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A source is where one image's manifests and blobs come from.
type source interface {
	// resolve returns what the reference points to, index or manifest. The
	// digest of the descriptor is that of the bytes.
	resolve(ctx context.Context) (ocispec.Descriptor, []byte, error)
	// manifest opens a manifest by its digest, blob one blob.
	manifest(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
	blob(d ocispec.Descriptor, c *counter) ranger
	close() error
}

// A ranger reads ranges of one blob; see Blob.ReadRange for the contract.
// off and n have been checked against the blob's size.
type ranger interface {
	readRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
	close()
}

// newSource returns the source that r names. It may open files but uses no network.
func newSource(r Ref, o Options) (source, error) {
	switch r.Transport {
	case transportOCI:
		return openLayout(r)
	case transportOCIArchive:
		return openLayoutArchive(r, o)
	case transportDockerArchive:
		return openDockerArchive(r, o)
	}
	if r.inStore() || r.Transport == transportDir {
		return openUnpacked(r)
	}
	return newRemote(r, o)
}

// Limits of what is read into memory whole.
const (
	// maxManifest is what the distribution registry accepts at most, and
	// so does distribution-spec ("Pushing Manifests": at least 4 MiB).
	maxManifest = 4 << 20
	// maxConfig has no rule behind it. The largest configs in use are some
	// hundred KiB of history; 8 MiB leave room and keep a hostile registry
	// from filling the memory.
	maxConfig = 8 << 20
)

// fetchManifest reads and verifies the manifest or index that d describes.
func fetchManifest(ctx context.Context, s source, d ocispec.Descriptor) ([]byte, error) {
	return fetchSmall(ctx, s, d, maxManifest, true)
}

// fetchSmall reads and verifies what d describes into memory.
func fetchSmall(ctx context.Context, s source, d ocispec.Descriptor, limit int64, manifest bool) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, faultf(ErrIntegrity, "descriptor with digest %q: %w", d.Digest, err)
	}
	if d.Size < 0 || d.Size > limit {
		return nil, faultf(ErrUnsupported, "%s has %d bytes, more than the limit of %d", d.Digest, d.Size, limit)
	}
	if len(d.Data) > 0 && int64(len(d.Data)) == d.Size && verify(d.Digest, d.Data) == nil {
		return d.Data, nil
	}
	kept, _ := s.(keeper)
	if kept != nil {
		if b, ok := kept.small(d.Digest); ok {
			return b, nil
		}
	}
	b, err := readSmall(ctx, s, d, manifest)
	if err != nil {
		return nil, err
	}
	if kept != nil {
		kept.keep(d.Digest, b)
	}
	return b, nil
}

// A keeper is a source that remembers small things by digest.
type keeper interface {
	small(d digest.Digest) ([]byte, bool)
	keep(d digest.Digest, b []byte)
}

// readSmall reads and verifies it, from another host where one has it wrong.
func readSmall(ctx context.Context, s source, d ocispec.Descriptor, manifest bool) (b []byte, err error) {
	open := func() (io.ReadCloser, error) { return s.manifest(ctx, d) }
	if !manifest {
		r := s.blob(d, new(counter))
		defer r.close()
		open = func() (io.ReadCloser, error) { return r.readRange(ctx, 0, d.Size) }
	}
	err = unlessDoubted(func() error {
		b, err = readVerified(open, d)
		return err
	})
	return b, err
}

func readVerified(open func() (io.ReadCloser, error), d ocispec.Descriptor) ([]byte, error) {
	rc, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = rc.Close() }()
	b, err := readAll(rc, d.Size)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size {
		return nil, ifOther(rc, faultf(ErrIntegrity, "%s has %d bytes instead of %d", d.Digest, len(b), d.Size))
	}
	return b, ifOther(rc, verify(d.Digest, b))
}

// maxDoubts bounds how often wrong bytes are read again. Nobody has more mirrors; it is for hosts that are
// believed again, by other readers, while this one doubts them.
const maxDoubts = 8

// unlessDoubted calls f again while its error is of wrong bytes that another host may have right.
func unlessDoubted(f func() error) error {
	err := f()
	for n := 0; n < maxDoubts && err != nil && errors.As(err, new(*doubted)); n++ {
		err = f()
	}
	return err
}

// A doubted error is of wrong bytes that another host may have right.
type doubted struct{ error }

func (d *doubted) Unwrap() error { return d.error }

// ifOther blames the host that a stream came from for an error of its bytes, and makes it *doubted if there is another.
func ifOther(rc io.ReadCloser, err error) error {
	if err != nil && doubt(rc) {
		return &doubted{err}
	}
	return err
}

// readAll reads r to its end, which must come within limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = faultf(ErrUnsupported, "more than the limit of %d bytes", limit)
	}
	return b, err
}

// verify compares b with d. Algorithms other than sha256 and sha512 are refused.
func verify(d digest.Digest, b []byte) error {
	if err := d.Validate(); err != nil {
		return faultf(ErrIntegrity, "digest %q: %w", d, err)
	}
	if got := d.Algorithm().FromBytes(b); got != d {
		return faultf(ErrIntegrity, "digest is %s instead of %s", got, d)
	}
	return nil
}

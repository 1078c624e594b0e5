package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// records saves what was read of images, verified, and gives it back. What
// cannot be saved is only logged: an image can be used without.
type records struct {
	store Records
	log   *slog.Logger
}

// A name of a record has only letters, digits and dashes, whatever the reference.
func digestRecord(d digest.Digest) string {
	return "image-" + d.Algorithm().String() + "-" + d.Encoded()
}

func tagRecord(r Ref) string {
	sum := sha256.Sum256([]byte(r.String()))
	return "tag-" + hex.EncodeToString(sum[:])
}

func (r records) load(name string) ([]byte, error) {
	if r.store == nil {
		return nil, fs.ErrNotExist
	}
	return r.store.Load(name)
}

func (r records) save(name string, b []byte) {
	if r.store == nil {
		return
	}
	if err := r.store.Save(name, b); err != nil {
		r.log.Warn("save record", "name", name, "error", err)
	}
}

// content returns what was saved under a digest, if it still has it.
func (r records) content(d digest.Digest) ([]byte, bool) {
	b, err := r.load(digestRecord(d))
	return b, err == nil && verify(d, b) == nil
}

// A recorded source remembers the manifests and configs that come from inner,
// and what tags meant. Manifests and configs that are there already are not
// asked for again, for their digest says all; tags are, unless inner is nil.
type recorded struct {
	ref   Ref
	rec   records
	inner source // nil: offline

	stale  bool  // Options.Stale
	missed error // why a tag was not asked for
}

// staleAfter is how long a tag is asked for when it is known what it meant last.
const staleAfter = 5 * time.Second

func (s *recorded) resolve(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	if s.ref.Digest != "" {
		if raw, ok := s.rec.content(s.ref.Digest); ok {
			return ocispec.Descriptor{Digest: s.ref.Digest, Size: int64(len(raw))}, raw, nil
		}
	}
	if s.inner == nil {
		return s.resolveOffline()
	}
	if s.stale && s.ref.Digest == "" {
		if d, raw, err := s.resolveOffline(); err == nil {
			return s.resolveOrStale(ctx, d, raw)
		}
	}
	return s.resolveNow(ctx)
}

// resolveOrStale asks the registry, and takes what the tag meant last where it does not answer.
func (s *recorded) resolveOrStale(ctx context.Context, last ocispec.Descriptor, lastRaw []byte) (ocispec.Descriptor, []byte, error) {
	soon, cancel := context.WithTimeout(ctx, staleAfter)
	defer cancel()
	d, raw, err := s.resolveNow(soon)
	if err == nil || ctx.Err() != nil || !errors.Is(err, ErrUnreachable) && !errors.Is(err, context.DeadlineExceeded) {
		return d, raw, err
	}
	s.missed = err
	return last, lastRaw, nil
}

func (s *recorded) resolveNow(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	d, raw, err := s.inner.resolve(ctx)
	if err != nil {
		return d, raw, err
	}
	s.rec.save(digestRecord(d.Digest), raw)
	if b, err := json.Marshal(d); err == nil && s.ref.Digest == "" {
		s.rec.save(tagRecord(s.ref), b)
	}
	return d, raw, nil
}

func (s *recorded) resolveOffline() (ocispec.Descriptor, []byte, error) {
	var d ocispec.Descriptor
	if s.ref.Digest != "" {
		return d, nil, errOffline()
	}
	b, err := s.rec.load(tagRecord(s.ref))
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil, errOffline()
	}
	if err != nil {
		return d, nil, err
	}
	if err := json.Unmarshal(b, &d); err != nil || d.Digest.Validate() != nil {
		return d, nil, errOffline()
	}
	raw, ok := s.rec.content(d.Digest)
	if !ok {
		return d, nil, errOffline()
	}
	return d, raw, nil
}

func errOffline() error {
	return faultf(ErrOffline, "not in the cache, and offline").withHint("open it once without --offline")
}

func (s *recorded) manifest(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if s.inner == nil {
		return nil, errOffline()
	}
	return s.inner.manifest(ctx, d)
}

// small returns a manifest or config from the records.
func (s *recorded) small(d digest.Digest) ([]byte, bool) { return s.rec.content(d) }

// keep saves a manifest or config that was verified.
func (s *recorded) keep(d digest.Digest, b []byte) { s.rec.save(digestRecord(d), b) }

func (s *recorded) blob(d ocispec.Descriptor, c *counter) ranger {
	if s.inner == nil {
		return offlineBlob{}
	}
	return s.inner.blob(d, c)
}

func (s *recorded) close() error {
	if s.inner == nil {
		return nil
	}
	return s.inner.close()
}

// An offlineBlob is what a registry has while nobody may ask it.
type offlineBlob struct{}

func (offlineBlob) readRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, errOffline()
}

func (offlineBlob) close() {}

package registry

import (
	"context"
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// A NewLayer is a layer that does not exist before it is written.
type NewLayer struct {
	// Write writes the blob to w in one pass and then tells what it was:
	// media type, digest, size, annotations, and the diff ID.
	Write func(ctx context.Context, w io.Writer) (d ocispec.Descriptor, diffID digest.Digest, err error)
	// Repeatable allows a second call of Write where a connection broke.
	Repeatable bool
}

// PushOptions say what Push adds to the base image.
type PushOptions struct {
	Options // how the destination is reached

	// BaseName is the reference by which people know base, for its annotation: base may have been
	// opened by digest. "", and that of local files: the one that base was opened by.
	BaseName string

	Layer     *NewLayer // nil: the image gets a new config only
	Squash    bool      // Layer takes the place of all layers of base
	Changes   []string  // lines of a Dockerfile, see ApplyChanges
	Message   string    // the comment in the history
	Author    string
	CreatedBy string // the command in the history
	Epoch     *int64 // Unix time in place of the current one; makes config and manifest reproducible

	Progress func(Progress) // called from one goroutine at a time; nil for none
}

// Progress is where one blob of a Push stands.
type Progress struct {
	Blob        digest.Digest // "" is the new layer, until it is written
	State       string        // "exists", "mounted", "uploading", "done", "skipped" (foreign layers)
	Done, Total int64         // bytes; Total is 0 for the new layer
}

// Push writes an image to dest that is base with one layer more: to a registry,
// to oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:REF. It returns the
// manifest's descriptor and DEST@DIGEST. The new layer is streamed and stored
// nowhere on the way. Blobs of the base that the destination lacks are mounted
// there from a repository of the same registry, or streamed through and
// verified; foreign layers stay with the addresses in their descriptors. The
// name is moved last: a Push that fails leaves blobs behind at most.
//
// With Squash the image has the new layer alone, one diff ID and one entry of history,
// and is based on nothing; the rest of the config is the base's.
//
// Where base was found in an index, dest gets that index with the new manifest in the place
// of the old one: the images of the other platforms are copied as Copy does it, what was about the
// replaced one (its attestation) is left out, and the descriptor is the index's. A docker archive
// holds one image, and gets that.
//
// base must stay open until Push returns. Errors are *Error, or what Layer.Write
// returned.
func Push(ctx context.Context, base *Image, dest string, o PushOptions) (ocispec.Descriptor, string, error) {
	d, name, err := push(ctx, base, dest, o)
	if err != nil {
		return ocispec.Descriptor{}, "", wrapError("push", quoteRef(dest), err)
	}
	return d, name, nil
}

func push(ctx context.Context, base *Image, dest string, o PushOptions) (ocispec.Descriptor, string, error) {
	var none ocispec.Descriptor
	r, err := parseDest(dest)
	if err != nil {
		return none, "", err
	}
	if err := applyChanges(&rawObject{values: map[string]json.RawMessage{}}, o.Changes); err != nil {
		return none, "", err // before a byte is sent
	}
	from := base
	if o.Squash {
		if base, err = squashed(base); err != nil {
			return none, "", err
		}
	}
	now := pushTime(o)
	s, err := newSink(ctx, r, o.Options, now)
	if err != nil {
		return none, "", err
	}
	defer s.close()
	p := &pushing{mover: mover{base: base, sink: s, report: o.Progress}, from: from, dest: r, o: o, now: now}
	d, err := p.run(ctx)
	if err != nil {
		return none, "", err
	}
	return d, dest + "@" + d.Digest.String(), nil
}

func parseDest(dest string) (Ref, error) {
	r, err := parseRef(dest)
	if err == nil && r.Digest != "" {
		err = faultf(ErrUsage, "a destination is named by a tag, not by a digest")
	}
	return r, err
}

func pushTime(o PushOptions) time.Time {
	if o.Epoch != nil {
		return time.Unix(*o.Epoch, 0).UTC()
	}
	return time.Now().UTC()
}

// A sink is where an image is written to.
type sink interface {
	// create stores the bytes that write gives it, and returns what write says of them.
	create(ctx context.Context, repeatable bool, write blobWriter) (ocispec.Descriptor, error)
	// copy sees to it that a blob of the base image is there.
	copy(ctx context.Context, base *Image, d ocispec.Descriptor, progress func(Progress)) error
	// put stores a small blob.
	put(ctx context.Context, d ocispec.Descriptor, b []byte) error
	// manifest stores a manifest that an index names.
	manifest(ctx context.Context, d ocispec.Descriptor, raw []byte) error
	// commit stores the manifest and moves the name to it.
	commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error
	// close drops what was not committed.
	close()
	// parallel is how many calls of create and copy may run at a time.
	parallel() int
}

type blobWriter func(ctx context.Context, w io.Writer) (ocispec.Descriptor, error)

// newSink opens a destination; now is when the files in an archive were made.
func newSink(ctx context.Context, r Ref, o Options, now time.Time) (sink, error) {
	switch r.Transport {
	case transportOCI:
		return newLayoutSink(r)
	case transportOCIArchive, transportDockerArchive:
		return newArchiveSink(r, now)
	}
	return newRemoteSink(ctx, r, o)
}

// A mover copies blobs of an image to a sink.
type mover struct {
	base   *Image
	sink   sink
	report func(Progress) // may be nil

	mu sync.Mutex // lets one goroutine at a time call report
}

func (m *mover) progress(v Progress) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report(v)
}

// copy copies each blob once, in the group.
func (m *mover) copy(ctx context.Context, g *errgroup.Group, blobs []ocispec.Descriptor, progress func(Progress)) {
	seen := map[digest.Digest]bool{}
	for _, d := range blobs {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			g.Go(func() error {
				return unlessDoubted(func() error { return m.sink.copy(ctx, m.base, d, progress) })
			})
		}
	}
}

// A pushing is one Push under way.
type pushing struct {
	mover
	from *Image // base as it was opened
	dest Ref
	o    PushOptions
	now  time.Time
}

// run moves blobs first, then the config, the manifest last.
func (p *pushing) run(ctx context.Context) (ocispec.Descriptor, error) {
	layer, diffID, err := p.blobs(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	raw, err := newConfig(p.base, diffID, p.o, p.now)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := p.sink.put(ctx, config, raw); err != nil {
		return ocispec.Descriptor{}, err
	}
	created := p.now.Format(time.RFC3339Nano)
	raw, mediaType, err := newManifest(p.base, config, layer, p.o.BaseName, created)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if p.from.index != nil && p.dest.Transport != transportDockerArchive {
		return p.commitIndex(ctx, d, raw, created)
	}
	return d, p.sink.commit(ctx, d, raw)
}

// blobs copies the base's layers and creates the new one, side by side where
// the sink can.
func (p *pushing) blobs(ctx context.Context) (layer *ocispec.Descriptor, diffID digest.Digest, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.sink.parallel())
	if p.o.Layer != nil {
		g.Go(func() error {
			d, id, err := p.create(ctx, p.o.Layer, "")
			layer, diffID = &d, id
			return err
		})
	}
	p.copy(ctx, g, p.base.Manifest.Layers, p.progress)
	err = g.Wait()
	return layer, diffID, err
}

// create writes a new layer; name is what progress calls it until it has its digest.
func (m *mover) create(ctx context.Context, l *NewLayer, name digest.Digest) (ocispec.Descriptor, digest.Digest, error) {
	var diffID digest.Digest
	d, err := m.sink.create(ctx, l.Repeatable, func(ctx context.Context, w io.Writer) (ocispec.Descriptor, error) {
		c := &checkedWriter{w: w, sum: digest.SHA256.Digester(), moved: func(n int64) { m.progress(Progress{Blob: name, State: "uploading", Done: n}) }}
		d, id, err := l.Write(ctx, c)
		if err != nil {
			return d, err
		}
		diffID = id
		return d, c.check(d, id)
	})
	if err != nil {
		return d, "", err
	}
	if name == "" {
		name = d.Digest
	}
	m.progress(Progress{Blob: name, State: "done", Done: d.Size, Total: d.Size})
	return d, diffID, nil
}

// A checkedWriter sees what goes through it, to hold a layer's author to his word.
type checkedWriter struct {
	w     io.Writer
	sum   digest.Digester
	n     int64
	moved func(n int64)
}

func (c *checkedWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.sum.Hash().Write(b[:n])
	c.n += int64(n)
	c.moved(c.n)
	return n, err
}

func (c *checkedWriter) check(d ocispec.Descriptor, diffID digest.Digest) error {
	switch {
	case d.Digest != c.sum.Digest() || d.Size != c.n:
		return faultf(ErrIntegrity, "the new layer is %s of %d bytes, not %s of %d", c.sum.Digest(), c.n, d.Digest, d.Size)
	case diffID.Validate() != nil:
		return faultf(ErrIntegrity, "the new layer has the diff ID %q", diffID)
	}
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// commit --continue: the mount goes on from the image that was made of it. The
// client keeps the blob of the new layer while it is sent, and has it read into the
// cache; then it tells the server, on the connection of the commit, the moment of
// which is still open there, what image to go on from.

// A goOnRequest is what the client says after a commit, and the server answers with a commitAnswer.
type goOnRequest struct {
	Image string        `json:"image"`
	Layer digest.Digest `json:"layer,omitempty"` // of the blob that was made of this connection's tar; "": there was nothing to commit
}

// awaitGoOn reads the request in the background; the channel is closed, and cancel
// called, when the client goes.
func awaitGoOn(r io.Reader, cancel func()) <-chan goOnRequest {
	requests := make(chan goOnRequest, 1)
	go func() {
		defer cancel()
		defer close(requests)
		var q goOnRequest
		d := json.NewDecoder(r)
		if d.Decode(&q) == nil {
			requests <- q
			_, _ = io.Copy(io.Discard, r) // until the client goes
		}
	}()
	return requests
}

// answerGoOn waits until the image is pushed, and goes on from it. m is nil when
// nothing was to be committed.
func (s *server) answerGoOn(ctx context.Context, m *union.Moment, requests <-chan goOnRequest, out *json.Encoder) {
	q, ok := <-requests
	if !ok {
		return
	}
	a := commitAnswer{Marked: true}
	err := s.goOn(ctx, m, q)
	if err != nil {
		s.e.log.Error("go on from the new image", "image", q.Image, "err", err)
	}
	a.setError(err)
	_ = out.Encode(a) // who asked may have gone
}

func (s *server) goOn(ctx context.Context, m *union.Moment, q goOnRequest) error {
	if m == nil {
		var err error
		if m, err = s.markSoon(ctx); err != nil {
			return err
		}
		defer m.Close()
	}
	im, err := s.e.openManifest(ctx, q.Image)
	if err != nil {
		return err
	}
	next, err := s.image().extended(ctx, s.e, im, q.Layer)
	if err != nil {
		return errors.Join(err, im.Close())
	}
	if err := m.Continue(ctx, next.tree, next.Name, next.note(s.e).String()); err != nil {
		next.before = nil // it stays in use
		return errors.Join(err, next.closeOwn())
	}
	s.latest.Store(next)
	if s.folder != nil {
		s.folder.Show(next.layers, next.tree, next.steps())
	}
	s.state.Image, s.state.Name, s.state.Index, s.state.Layers = next.Ref, next.Name, next.IndexName(), len(next.layers)
	if err := s.leave(""); err != nil {
		s.e.log.Warn("tell the holder of the new image", "err", err)
	}
	s.e.log.Info("going on from a new image", "mountpoint", s.plan.dir, "image", next.Name)
	return s.held.update(s.state)
}

// image is what the mount shows below its upper directory by now.
func (s *server) image() *image {
	if im := s.latest.Load(); im != nil {
		return im
	}
	return s.im
}

// extended is the image from with the layers that im has open, which are its own too, and
// one more on top, if added names one. It owns both images then.
func (im *image) extended(ctx context.Context, e *env, from *image, added digest.Digest) (*image, error) {
	n, list := len(im.Manifest.Layers), from.Manifest.Layers
	same := len(list) >= n && slices.EqualFunc(list[:n], im.Manifest.Layers, func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest })
	if !same || added == "" && len(list) != n || added != "" && (len(list) != n+1 || list[n].Digest != added) {
		return nil, fmt.Errorf("%w: %s is not the image that was pushed any more", union.ErrNoContinue, from.Ref)
	}
	next := &image{Image: from.Image, store: from.store, index: im.index, files: from.files, warnings: im.warnings, before: im, layers: slices.Clone(im.layers), descs: slices.Clone(im.descs), blobs: slices.Clone(im.blobs)}
	if added != "" {
		b := from.Blob(list[n])
		l, err := layer.Open(ctx, next.asIndexed(list[n]), e.source(list[n].Digest, b), from.store,
			layer.Options{Limits: e.limits.Limits, FindDiffID: from.findDiffID(n), Logger: e.log, Checked: e.checked(list[n].Digest)})
		if err != nil {
			return nil, fmt.Errorf("open the new layer of %s: %w", from.Ref, err)
		}
		next.layers, next.descs, next.blobs = append(next.layers, l), append(next.descs, list[n]), append(next.blobs, b)
	}
	var err error
	if next.tree, err = union.Merge(ctx, next.layers); err != nil {
		return nil, errors.Join(err, next.layers[len(next.layers)-1].Close())
	}
	return next, nil
}

// closeOwn closes what extended opened, and leaves the image it was made of.
func (im *image) closeOwn() error {
	im.layers = im.layers[len(im.layers)-min(1, len(im.layers)):]
	return im.Close()
}

// A keptBlob is the blob of a new layer on the local disk, while it is sent.
type keptBlob struct {
	f      *os.File
	d      ocispec.Descriptor // set when it was written
	diffID digest.Digest
}

// keepBlob makes a file without a name, below the root, where the cache is too.
func (e *env) keepBlob() (*keptBlob, error) {
	dir := filepath.Join(e.root, "cache", "tmp")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "commit-")
	if err != nil {
		return nil, fmt.Errorf("keep the new layer: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &keptBlob{f: f}, nil
}

// wrap has all that a layer writes kept as well; a layer written again is kept anew.
func (k *keptBlob) wrap(l *registry.NewLayer) *registry.NewLayer {
	return &registry.NewLayer{Repeatable: l.Repeatable, Write: func(ctx context.Context, w io.Writer) (d ocispec.Descriptor, diffID digest.Digest, err error) {
		if _, err := k.f.Seek(0, io.SeekStart); err != nil {
			return d, "", err
		}
		if err := k.f.Truncate(0); err != nil {
			return d, "", err
		}
		d, diffID, err = l.Write(ctx, io.MultiWriter(w, k.f))
		k.d, k.diffID = d, diffID
		return d, diffID, err
	}}
}

// ReadRange makes it a layer.Ranger.
func (k *keptBlob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(k.f, off, n)), nil
}

// intoCache reads the layer into the cache, so that nobody has to fetch it.
func (k *keptBlob) intoCache(ctx context.Context, e *env, im *image) error {
	l, err := layer.Open(ctx, k.d, k, im.store, layer.Options{
		Limits: e.limits.Limits, Logger: e.log, FindDiffID: func(context.Context) (digest.Digest, error) { return k.diffID, nil },
	})
	if err != nil {
		return fmt.Errorf("read the new layer into the cache: %w", err)
	}
	return errors.Join(l.Fetch(ctx), l.Close())
}

// goOn has the mount go on from the image that was pushed as name, the layer of which is k.
func (c *changeSet) goOn(ctx context.Context, e *env, k *keptBlob, name string) error {
	q := goOnRequest{Image: name, Layer: k.d.Digest}
	if q.Layer != "" {
		if err := k.intoCache(ctx, e, c.image); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(c.live().conn).Encode(q); err != nil {
		return fmt.Errorf("ask the server of the mount to go on: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.live().conn.Close() })
	defer stop()
	_, err := c.live().answer()
	return err
}

package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/registry/storage"
)

// Unpacked is an image whose layers are directories: in the storage root of an engine, or
// given one by one. Its manifest is made from what the store says, unless the store has the
// image's own: a layer is called by its diff ID, and one that has none (a container's) by a
// digest of its place, which says nothing about its bytes.
type Unpacked struct {
	Store    *storage.Store // nil: directories given one by one
	Layers   []storage.Layer
	Warnings []string
}

// OpenDir opens the directory of layer i; the caller closes it. A layer without one is a blob.
func (u *Unpacked) OpenDir(i int) (*os.File, error) {
	l := u.Layers[i]
	if u.Store != nil {
		return u.Store.OpenLayer(l)
	}
	return storage.OpenDir(l.Dir)
}

// unpacked is the source of an image with layers on disk.
type unpacked struct {
	Unpacked
	ref       Ref
	stored    []byte
	config    []byte
	title     string // of the container
	container bool
}

// inStore tells whether the reference is one into a storage root.
func (r Ref) inStore() bool {
	return r.Transport == transportDockerRoot || r.Transport == transportStorage || r.Transport == transportContainerdRoot
}

// parseUnpacked parses DIR#NAME, or PATH[:PATH…].
func parseUnpacked(transport, s string) (Ref, error) {
	r := Ref{Transport: transport, Path: s}
	if transport == transportDir {
		for p := range strings.SplitSeq(s, ":") {
			if p == "" {
				return Ref{}, faultf(ErrUsage, "an empty path in %q", s).withHint("dir: takes the directories of the layers, the topmost first, with colons between")
			}
		}
		return r, nil
	}
	i := strings.LastIndex(s, "#")
	if i <= 0 || i == len(s)-1 {
		dir := s
		if i > 0 {
			dir = s[:i]
		}
		return Ref{}, faultf(ErrUsage, "no image or container after %q", "#").
			withHint(fmt.Sprintf(`"layerfs images %s" and "layerfs containers %s" list them`, dir, dir))
	}
	r.Path, r.Tag = s[:i], s[i+1:]
	return r, nil
}

// openUnpacked finds the image or the container in its store.
func openUnpacked(r Ref) (source, error) {
	if r.Transport == transportDir {
		return openDirs(r)
	}
	s, err := storage.Open(r.Path)
	if err != nil {
		return nil, storageFault(err)
	}
	u := &unpacked{ref: r, Unpacked: Unpacked{Store: s}}
	if err := u.find(); err != nil {
		return nil, errors.Join(storageFault(err), s.Close())
	}
	return u, nil
}

// kinds are the stores that a transport reads.
var kinds = map[string]string{
	transportDockerRoot: storage.Docker, transportStorage: storage.Containers, transportContainerdRoot: storage.Containerd,
}

func (u *unpacked) find() error {
	if want := kinds[u.ref.Transport]; u.Store.Kind != want {
		return faultf(ErrUsage, "%s is a storage root of %s, not of %s", u.ref.Path, u.Store.Kind, want)
	}
	im, c, err := u.Store.Find(u.ref.Tag)
	switch {
	case err != nil:
		return err
	case c != nil:
		u.container, u.title = true, cmp.Or(strings.Join(c.Names, " "), c.ID)
		u.Layers, u.Warnings, u.config, err = c.Layers, c.Warnings, c.Config, c.Problem
		u.ref.Tag = c.ID
	default:
		u.Layers, u.Warnings, u.config, err = im.Layers, im.Warnings, im.Config, im.Problem
		u.stored, u.ref.Tag = im.Manifest, im.ID
	}
	if err != nil {
		return err
	}
	return u.document()
}

// openDirs takes up directories that are given one by one, the topmost first.
func openDirs(r Ref) (source, error) {
	u := &unpacked{ref: r}
	for p := range strings.SplitSeq(r.Path, ":") {
		abs, err := filepath.Abs(p)
		if err != nil {
			return nil, err
		}
		f, err := storage.OpenDir(abs)
		if err != nil {
			return nil, storageFault(err)
		}
		_ = f.Close()
		u.Layers = append([]storage.Layer{{ID: filepath.Base(abs), Dir: abs, Size: -1}}, u.Layers...)
	}
	return u, u.document()
}

// document makes the manifest, and the config that a store lacks.
func (u *unpacked) document() error {
	if u.config == nil {
		config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: ocispec.RootFS{Type: "layers"}}
		var err error
		if u.config, err = json.Marshal(config); err != nil {
			return err
		}
	}
	if u.ownManifest() {
		return nil
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(u.config), Size: int64(len(u.config))},
		Layers: []ocispec.Descriptor{},
	}
	for _, l := range u.Layers {
		m.Layers = append(m.Layers, u.descriptor(l))
	}
	var err error
	u.stored, err = json.Marshal(m)
	return err
}

// ownManifest tells whether the store's manifest is of these layers and this config.
func (u *unpacked) ownManifest() bool {
	var m ocispec.Manifest
	if u.stored == nil || u.container || json.Unmarshal(u.stored, &m) != nil {
		return false
	}
	kind, err := manifestKind("", u.stored)
	return err == nil && !isIndex(kind) && len(m.Layers) == len(u.Layers) && m.Config.Digest == digest.FromBytes(u.config)
}

func (u *unpacked) descriptor(l storage.Layer) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: max(l.Size, 0)}
	switch {
	case l.Dir == "":
		d.MediaType, d.Digest, d.Size = l.BlobType, l.Blob, l.BlobSize
	case d.Digest == "" || d.Digest.Validate() != nil:
		d.Digest = digest.FromString("layerfs directory " + u.ref.Path + "\x00" + l.Dir)
	}
	return d
}

// describe names the image in full, and tells of a container's layers in the history.
func (u *unpacked) describe(im *Image) {
	im.ref = u.ref
	steps := 0
	for _, h := range im.Config.History {
		if !h.EmptyLayer {
			steps++
		}
	}
	words := map[string]string{"init": "mount points, made by the engine for container ", "container": "changes of container "}
	for i, l := range u.Layers {
		if l.Role != "" && i == steps {
			im.Config.History = append(im.Config.History, ocispec.History{CreatedBy: words[l.Role] + u.title})
			steps++
		}
	}
}

func (u *unpacked) resolve(context.Context) (ocispec.Descriptor, []byte, error) {
	d := ocispec.Descriptor{Digest: digest.FromBytes(u.stored), Size: int64(len(u.stored))}
	return d, u.stored, nil
}

func (u *unpacked) manifest(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return nil, faultf(ErrNotFound, "no manifest %s", d.Digest)
}

func (u *unpacked) blob(d ocispec.Descriptor, c *counter) ranger {
	if d.Digest == digest.FromBytes(u.config) {
		return &section{at: bytes.NewReader(u.config), count: c}
	}
	return &fileBlob{files: storeBlobs{u}, desc: d, name: d.Digest.String(), count: c}
}

func (u *unpacked) close() error {
	if u.Store == nil {
		return nil
	}
	return u.Store.Close()
}

// storeBlobs are the blobs of a store that keeps some.
type storeBlobs struct{ u *unpacked }

func (b storeBlobs) open(name string) (io.ReaderAt, int64, int64, func(), error) {
	if b.u.Store == nil {
		return nil, 0, 0, nil, faultf(ErrUnsupported, "its layers are directories, of which no blob is kept")
	}
	f, size, err := b.u.Store.OpenBlob(digest.Digest(name))
	if err != nil {
		return nil, 0, 0, nil, storageFault(err)
	}
	return f, 0, size, func() { _ = f.Close() }, nil
}

func (b storeBlobs) close() error { return nil }

// storageFault gives an error of package storage its sentinel here.
func storageFault(err error) error {
	for _, row := range []struct{ of, is error }{
		{storage.ErrNotFound, ErrNotFound}, {storage.ErrAmbiguous, ErrUsage}, {storage.ErrDamaged, ErrIntegrity},
		{storage.ErrUnsupported, ErrUnsupported}, {fs.ErrNotExist, ErrNotFound},
	} {
		if errors.Is(err, row.of) {
			return faultf(row.is, "%w", err)
		}
	}
	return err
}

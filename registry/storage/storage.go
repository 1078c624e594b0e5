// Package storage finds images and containers in what a container engine keeps on disk:
// docker's /var/lib/docker (overlay2, or the containerd store of newer ones), containers/storage
// of podman, buildah and CRI-O, and containerd's /var/lib/containerd.
//
// The disk is evidence: nothing is written, no lock is taken, no engine is asked, no link is
// followed. What is read is foreign input; every chain of digests that the store has is checked.
package storage

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Errors of Open and Find.
var (
	// ErrNotFound says that there is no store, or no such image or container in it.
	ErrNotFound = errors.New("not found")
	// ErrUnsupported says that a store keeps its layers in a way that this package does not read.
	ErrUnsupported = errors.New("unsupported storage")
	// ErrDamaged says that a store contradicts itself or lacks what it speaks of.
	ErrDamaged = errors.New("damaged storage")
	// ErrAmbiguous says that a name fits several images or containers.
	ErrAmbiguous = errors.New("ambiguous name")
)

// The kinds of stores.
const (
	Docker     = "docker"
	Containers = "containers"
	Containerd = "containerd"
)

// A Store is a storage root.
type Store struct {
	Kind string // Docker, Containers or Containerd
	// Rootless: the directory is not root's. The engine was an unprivileged user's, which marks
	// opaque directories in user.* and whose files have the owners of his user namespace; or it is a copy.
	Rootless bool
	DotWh    bool // the layers may have whiteouts in the form of .wh. files (fuse-overlayfs)
	root     *root
	engine   engine
}

// An engine knows one kind of store.
type engine interface {
	images() ([]*Image, error)
	containers() ([]*Container, error)
}

// An Image is an image of a store. Layers are those of the engine's storage, the base first.
type Image struct {
	ID       string // sha256:… of its config, or of its manifest in containerd's store
	Names    []string
	Created  time.Time // zero: not known
	Layers   []Layer
	Config   []byte // as stored; nil: missing
	Manifest []byte // as stored; nil: the store keeps none
	Problem  error  // why Layers or Config are incomplete; nil: they are not
	Warnings []string
}

// A Container is a container of a store: the layers of its image, and its own.
type Container struct {
	ID      string
	Names   []string
	Created time.Time // zero: not known
	State   string    // as the engine last wrote it: "exited (0)", "running"; "" not known
	Image   string    // its image's name, as far as known
	ImageID string
	Layers  []Layer
	Config  []byte // of the image; nil: missing

	Problem  error // why Layers or Config are incomplete; nil: they are not
	Warnings []string
}

// A Layer is a layer as a store keeps it.
type Layer struct {
	ID       string        // the directory's name in the store
	DiffID   digest.Digest // of its tar; "" for a container's own
	Role     string        // "": of the image; "init": what the engine puts below a container; "container"
	Size     int64         // bytes of its files, as the store says; -1: it does not
	Dir      string        // of its files, in the store
	TarSplit string        // the file from which its tar can be made again; "": there is none
	Blob     digest.Digest // in the store, of which the layer was unpacked; "": there is none
	BlobType string        // media type of Blob
	BlobSize int64
}

// Open recognises what dir holds and opens it: the storage root, or for containerd the
// directory that has the directories io.containerd.….
func Open(dir string) (*Store, error) {
	r, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{root: r}
	for _, try := range []func(*Store) (bool, error){openContainers, openDocker, openContainerd} {
		found, err := try(s)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open %s: %w", dir, err), r.Close())
		}
		if found {
			return s, nil
		}
	}
	_ = r.Close()
	return nil, fmt.Errorf("open %s: %w: no image/overlay2 (docker), overlay-layers (containers-storage) or io.containerd.metadata.v1.bolt (containerd) in it", dir, ErrNotFound)
}

// Close closes the store; files that were opened stay open.
func (s *Store) Close() error { return s.root.Close() }

// Images lists the images, by name.
func (s *Store) Images() ([]*Image, error) {
	list, err := s.engine.images()
	slices.SortStableFunc(list, func(a, b *Image) int { return compareNamed(a.Names, b.Names, a.ID, b.ID) })
	return list, err
}

// Containers lists the containers, by name.
func (s *Store) Containers() ([]*Container, error) {
	list, err := s.engine.containers()
	slices.SortStableFunc(list, func(a, b *Container) int { return compareNamed(a.Names, b.Names, a.ID, b.ID) })
	return list, err
}

func compareNamed(a, b []string, idA, idB string) int {
	if c := slices.Compare(a, b); c != 0 {
		return c
	}
	return strings.Compare(idA, idB)
}

// Find finds a container or an image by a name or the begin of an ID, as the engines do.
// Exactly one of the results is not nil if err is.
func (s *Store) Find(name string) (*Image, *Container, error) {
	images, err := s.Images()
	if err != nil {
		return nil, nil, err
	}
	containers, err := s.Containers()
	if err != nil {
		return nil, nil, err
	}
	for _, fits := range []func(id string, names []string) bool{
		func(id string, names []string) bool { return id == name || slices.Contains(names, name) },
		func(id string, names []string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return shortName(n) == shortName(name) })
		},
		func(id string, _ []string) bool {
			return len(name) >= 3 && strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), strings.TrimPrefix(name, "sha256:"))
		},
	} {
		im := onePerID(slices.DeleteFunc(slices.Clone(images), func(i *Image) bool { return !fits(i.ID, i.Names) }))
		co := slices.DeleteFunc(slices.Clone(containers), func(c *Container) bool { return !fits(c.ID, c.Names) })
		switch {
		case len(co) == 1 && len(im) == 0:
			return nil, co[0], nil
		case len(im) == 1 && len(co) == 0:
			return im[0], nil, nil
		case len(im)+len(co) > 1:
			return nil, nil, fmt.Errorf("%w: %q fits %d images and containers", ErrAmbiguous, name, len(im)+len(co))
		}
	}
	return nil, nil, fmt.Errorf("%w: no image or container %q", ErrNotFound, name)
}

// onePerID leaves one image for each ID: several namespaces of containerd may have the same,
// and the one with the most unpacked layers shows the most.
func onePerID(list []*Image) (out []*Image) {
	dirs := func(im *Image) (n int) {
		for _, l := range im.Layers {
			if l.Dir != "" {
				n++
			}
		}
		return n
	}
	for _, im := range list {
		i := slices.IndexFunc(out, func(o *Image) bool { return o.ID == im.ID })
		switch {
		case i < 0:
			out = append(out, im)
		case dirs(im) > dirs(out[i]):
			out[i] = im
		}
	}
	return out
}

// shortName takes away what people leave out of a name.
func shortName(n string) string {
	n = strings.TrimPrefix(strings.TrimPrefix(n, "docker.io/"), "library/")
	n = strings.TrimPrefix(n, "localhost/")
	if !strings.Contains(n, "@") && strings.LastIndex(n, ":") <= strings.LastIndex(n, "/") {
		n += ":latest"
	}
	return n
}

// OpenLayer opens the directory of a layer.
func (s *Store) OpenLayer(l Layer) (*os.File, error) { return s.root.openDir(l.Dir) }

// OpenTarSplit opens the tar-split of a layer, which is uncompressed on the way. The caller
// closes the file.
func (s *Store) OpenTarSplit(l Layer) (io.Reader, io.Closer, error) {
	f, _, err := s.root.openFile(l.TarSplit)
	if err != nil {
		return nil, nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrDamaged, l.TarSplit, err), f.Close())
	}
	return z, f, nil
}

// contents is the part of the store that keeps blobs; nil: there is none.
func (s *Store) contents() *containerd {
	switch e := s.engine.(type) {
	case *containerd:
		return e
	case *docker:
		return e.inner
	}
	return nil
}

// OpenBlob opens a blob of the store's content.
func (s *Store) OpenBlob(d digest.Digest) (*os.File, int64, error) {
	c := s.contents()
	if c == nil || d.Validate() != nil {
		return nil, 0, fmt.Errorf("%w: blob %s: a %s store keeps layers unpacked, and no blobs", ErrUnsupported, d, s.Kind)
	}
	return s.root.openFile(c.blobPath(d))
}

// chainIDs are what layer stores call a layer with all below it (image-spec config.md,
// "Layer ChainID").
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	var chain []digest.Digest
	for i, d := range diffIDs {
		if i > 0 {
			d = digest.FromString(chain[i-1].String() + " " + d.String())
		}
		chain = append(chain, d)
	}
	return chain
}

// plainName tells whether a name of a store is one component of a path.
func plainName(s string) bool {
	return s != "" && s != "." && s != ".." && path.Base(s) == s && !strings.Contains(s, "\x00")
}

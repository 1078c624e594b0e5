package storage

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerd is a containerd root: its metadata, its content, and its overlayfs snapshotter
// (containerd: core/metadata/buckets.go, core/snapshots/storage/bolt.go, plugins/content/local).
type containerd struct {
	root *root
	base string // of the directories io.containerd.…, below root
	meta *bolt
	snap map[string]snapshot // of the overlayfs snapshotter, by its own names
	ns   []string            // namespaces
}

// Files below a containerd root.
const (
	boltFile     = "io.containerd.metadata.v1.bolt/meta.db"
	snapshotRoot = "io.containerd.snapshotter.v1.overlayfs"
	contentRoot  = "io.containerd.content.v1.content"
	snapshotter  = "overlayfs"
)

// A snapshot is a record of the snapshotter.
type snapshot struct {
	id     uint64
	parent string
}

// openContainerd recognises a containerd root.
func openContainerd(s *Store) (found bool, err error) {
	if !s.root.has(boltFile) {
		return false, nil
	}
	s.Kind, s.Rootless = Containerd, s.root.owner(snapshotRoot) != 0
	s.engine, err = newContainerd(s.root, "")
	return true, err
}

func newContainerd(r *root, base string) (*containerd, error) {
	c := &containerd{root: r, base: base}
	var err error
	if c.meta, err = c.database(boltFile); err != nil {
		return nil, err
	}
	spaces, err := c.meta.bucket("v1")
	if err != nil {
		return nil, err
	}
	for _, s := range spaces {
		if s.bucket {
			c.ns = append(c.ns, string(s.key))
		}
	}
	db, err := c.database(path.Join(snapshotRoot, "metadata.db"))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil // other snapshotters alone were used
	}
	if err != nil {
		return nil, err
	}
	return c, c.readSnapshots(db)
}

// database reads a database whole: nobody's lock is taken, and no access time is left by mapping.
func (c *containerd) database(name string) (*bolt, error) {
	b, err := c.root.readFile(path.Join(c.base, name), maxBolt)
	if err != nil {
		return nil, err
	}
	d, err := newBolt(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return d, nil
}

func (c *containerd) readSnapshots(db *bolt) error {
	list, err := db.bucket("v1", "snapshots")
	if err != nil {
		return err
	}
	c.snap = map[string]snapshot{}
	for _, it := range list {
		if !it.bucket {
			continue
		}
		fields, err := db.open(it.value)
		if err != nil {
			return err
		}
		id, _ := find(fields, "id", false)
		parent, _ := find(fields, "parent", false)
		n, _ := binary.Uvarint(id)
		c.snap[string(it.key)] = snapshot{n, string(parent)}
	}
	return nil
}

// blobPath is where the content store keeps a blob; d must be valid.
func (c *containerd) blobPath(d digest.Digest) string {
	return path.Join(c.base, contentRoot, "blobs", d.Algorithm().String(), d.Encoded())
}

// readBlob reads a small blob, which must be what its digest says.
func (c *containerd) readBlob(d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %q: %w", ErrDamaged, d, err)
	}
	b, err := c.root.readFile(c.blobPath(d), maxConfig)
	if err == nil && d.Algorithm().FromBytes(b) != d {
		err = fmt.Errorf("%w: blob %s has another digest", ErrDamaged, d)
	}
	return b, err
}

func (c *containerd) images() ([]*Image, error) {
	byKey := map[string]*Image{}
	var list []*Image
	for _, ns := range c.ns {
		items, err := c.meta.bucket("v1", ns, "images")
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			target, err := c.target(ns, string(it.key))
			if err != nil {
				return nil, err
			}
			key := ns + "\x00" + string(target)
			if im := byKey[key]; im != nil {
				im.Names = append(im.Names, string(it.key))
				continue
			}
			im := c.image(ns, target)
			im.Names = []string{string(it.key)}
			byKey[key] = im
			list = append(list, im)
		}
	}
	return list, nil
}

// target is the digest that a name of an image stands for.
func (c *containerd) target(ns, name string) (digest.Digest, error) {
	items, err := c.meta.bucket("v1", ns, "images", name, "target")
	d, _ := find(items, "digest", false)
	return digest.Digest(d), err
}

// image reads an image's documents and finds its layers: unpacked, or else its blobs.
func (c *containerd) image(ns string, target digest.Digest) *Image {
	im := &Image{ID: target.String()}
	raw, config, err := c.documents(target, 0)
	if err != nil {
		im.Problem = err
		return im
	}
	im.Manifest, im.Config = raw, config
	var m ocispec.Manifest
	var conf ocispec.Image
	if err := errors.Join(json.Unmarshal(raw, &m), json.Unmarshal(config, &conf)); err != nil {
		im.Problem = fmt.Errorf("%w: image %s: %w", ErrDamaged, target, err)
		return im
	}
	if conf.Created != nil {
		im.Created = *conf.Created
	}
	if len(m.Layers) != len(conf.RootFS.DiffIDs) {
		im.Problem = fmt.Errorf("%w: image %s has %d layers and %d diff IDs", ErrDamaged, target, len(m.Layers), len(conf.RootFS.DiffIDs))
		return im
	}
	for i, chain := range chainIDs(conf.RootFS.DiffIDs) {
		l := Layer{ID: m.Layers[i].Digest.String(), DiffID: conf.RootFS.DiffIDs[i], Size: m.Layers[i].Size}
		if d := m.Layers[i].Digest; d.Validate() == nil && c.root.has(c.blobPath(d)) {
			l.Blob, l.BlobType, l.BlobSize = d, m.Layers[i].MediaType, m.Layers[i].Size
		}
		if err := c.unpacked(ns, chain.String(), &l); err != nil {
			im.Warnings = append(im.Warnings, err.Error())
		}
		if l.Dir == "" && l.Blob == "" {
			im.Problem = errors.Join(im.Problem, fmt.Errorf("%w: layer %d (%s) is neither unpacked nor kept as a blob", ErrDamaged, i+1, m.Layers[i].Digest))
		}
		im.Layers = append(im.Layers, l)
	}
	return im
}

// documents finds the manifest and the config below a digest: of an index that one whose
// content is here, for only one platform's was fetched.
func (c *containerd) documents(d digest.Digest, depth int) (manifest, config []byte, err error) {
	if depth > 3 {
		return nil, nil, fmt.Errorf("%w: indexes in indexes", ErrDamaged)
	}
	raw, err := c.readBlob(d)
	if err != nil {
		return nil, nil, err
	}
	var doc struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, nil, fmt.Errorf("%w: manifest %s: %w", ErrDamaged, d, err)
	}
	if doc.Config != nil {
		config, err := c.readBlob(doc.Config.Digest)
		return raw, config, err
	}
	err = fmt.Errorf("%w: index %s: the content of none of its images is here", ErrNotFound, d)
	for _, m := range doc.Manifests {
		manifest, config, subErr := c.documents(m.Digest, depth+1)
		if subErr == nil && m.Annotations["vnd.docker.reference.type"] == "" {
			return manifest, config, nil
		}
	}
	return nil, nil, err
}

// unpacked finds the directory of the snapshot that a namespace calls key; l stays as it is
// where there is none.
func (c *containerd) unpacked(ns, key string, l *Layer) error {
	items, err := c.meta.bucket("v1", ns, "snapshots", snapshotter, key)
	name, ok := find(items, "name", false)
	if err != nil || !ok {
		return err
	}
	return c.place(string(name), l)
}

func (c *containerd) place(name string, l *Layer) error {
	s, ok := c.snap[name]
	if !ok {
		return fmt.Errorf("%w: the snapshotter has no %q", ErrDamaged, name)
	}
	dir := path.Join(c.base, snapshotRoot, "snapshots", strconv.FormatUint(s.id, 10), "fs")
	if !c.root.has(dir) {
		return fmt.Errorf("%w: %s is missing, or may not be reached", ErrDamaged, dir)
	}
	l.ID, l.Dir = strconv.FormatUint(s.id, 10), dir
	return nil
}

func (c *containerd) containers() ([]*Container, error) {
	var list []*Container
	for _, ns := range c.ns {
		items, err := c.meta.bucket("v1", ns, "containers")
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			if !it.bucket {
				continue
			}
			fields, err := c.meta.open(it.value)
			if err != nil {
				return nil, err
			}
			list = append(list, c.container(ns, string(it.key), fields))
		}
	}
	return c.dockers(list)
}

func (c *containerd) container(ns, id string, fields []boltItem) *Container {
	image, _ := find(fields, "image", false)
	driver, _ := find(fields, "snapshotter", false)
	key, _ := find(fields, "snapshotKey", false)
	out := &Container{ID: id, Image: string(image)}
	if created, ok := find(fields, "createdat", false); ok {
		_ = out.Created.UnmarshalBinary(created) // it stays zero
	}
	if string(driver) != snapshotter {
		out.Problem = fmt.Errorf("%w: snapshotter %q; overlayfs is read", ErrUnsupported, driver)
		return out
	}
	c.layers(ns, string(key), string(image), out)
	return out
}

// layers finds the layers of a container: its snapshot and those below it.
func (c *containerd) layers(ns, key, image string, out *Container) {
	items, err := c.meta.bucket("v1", ns, "snapshots", snapshotter, key)
	name, ok := find(items, "name", false)
	if err != nil || !ok {
		out.Problem = errors.Join(err, fmt.Errorf("%w: no snapshot %q", ErrDamaged, key))
		return
	}
	var list []Layer
	for at := string(name); at != ""; at = c.snap[at].parent {
		if len(list) == maxChain {
			out.Problem = fmt.Errorf("%w: more than %d snapshots below %q", ErrDamaged, maxChain, key)
			return
		}
		l := Layer{Size: -1}
		if err := c.place(at, &l); err != nil {
			out.Problem = err
			return
		}
		if strings.HasSuffix(at, "-init") {
			l.Role = "init"
		}
		list = append(list, l)
	}
	slices.Reverse(list)
	list[len(list)-1].Role = "container"
	out.Layers = list
	c.describe(ns, image, out)
}

// describe adds what the image says of the layers: its config, and diff IDs for the snapshots
// that are its layers.
func (c *containerd) describe(ns, image string, out *Container) {
	target, err := c.target(ns, image)
	if err != nil || target == "" {
		out.Warnings = append(out.Warnings, fmt.Sprintf("image %q is not here: the layers have no diff IDs to be checked against", image))
		return
	}
	im := c.image(ns, target)
	out.ImageID, out.Config = im.ID, im.Config
	for i, l := range im.Layers {
		if i >= len(out.Layers) || out.Layers[i].Role != "" || l.Dir != "" && l.Dir != out.Layers[i].Dir {
			out.Warnings = append(out.Warnings, fmt.Sprintf("snapshot %d of the container is not layer %d of %s", i+1, i+1, image))
			return
		}
		l.ID, l.Dir = out.Layers[i].ID, out.Layers[i].Dir
		out.Layers[i] = l
	}
}

// dockers adds what dockerd keeps beside its containerd: containerd itself knows docker's
// containers only while they run, but keeps their snapshots under their IDs.
func (c *containerd) dockers(list []*Container) ([]*Container, error) {
	if c.base == "" {
		return list, nil
	}
	list = slices.DeleteFunc(list, func(o *Container) bool { return c.root.has(path.Join("containers", o.ID)) })
	err := dockerContainers(c.root, func(d *dockerContainer, problem error) {
		if d.Driver != "" && d.Driver != snapshotter {
			return // of the time before this image store
		}
		out := newDockerContainer(d, problem)
		if problem == nil {
			c.layers(dockerNamespace, d.ID, d.Config.Image, out)
		}
		list = append(list, out)
	})
	return list, err
}

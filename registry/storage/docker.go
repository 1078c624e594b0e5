package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// docker is a docker data root. Driver is one of those whose layers are directories: what
// stands under image/DRIVER speaks of directories under DRIVER (moby: layer/filestore.go,
// image/fs.go, daemon/graphdriver/overlay2).
type docker struct {
	root   *root
	driver string
	inner  *containerd // the image store of docker 29, beside which older images may be left; nil: none
}

// Limits of what is read into memory: far above what engines write.
const (
	maxConfig = 8 << 20  // of an image or container: some hundred KiB of history at most
	maxTable  = 64 << 20 // of a list of images or layers: some KiB an entry
	maxID     = 4 << 10  // of a file with a name in it
	maxLower  = 64 << 10 // overlay2's lower: 128 names of 28 bytes, and twice that in newer ones
	maxChain  = 1000     // layers of an image: overlayfs takes 500, docker 127
)

// openDocker recognises a docker data root.
func openDocker(s *Store) (bool, error) {
	drivers, err := s.root.names("image")
	if err != nil {
		return false, err
	}
	inner, err := dockerContainerd(s.root)
	if err != nil {
		return false, err
	}
	for _, d := range []string{"overlay2", "fuse-overlayfs"} {
		if slices.Contains(drivers, d) {
			s.Kind, s.DotWh, s.Rootless = Docker, d == "fuse-overlayfs", s.root.owner(d) != 0
			s.engine = &docker{s.root, d, inner}
			return true, nil
		}
	}
	if inner != nil {
		s.Kind, s.engine, s.Rootless = Docker, inner, s.root.owner(inner.base) != 0
		return true, nil
	}
	switch {
	case len(drivers) > 0:
		return false, fmt.Errorf("%w: docker's %s driver; overlay2, fuse-overlayfs and the containerd image store are read", ErrUnsupported, strings.Join(drivers, ", "))
	case s.root.has("containers") && s.root.has("buildkit"):
		return false, fmt.Errorf("%w: this docker keeps its images in a containerd that has a root of its own; look at containerd's, usually /var/lib/containerd", ErrNotFound)
	}
	return false, nil
}

// dockerContainerd opens the containerd that dockerd runs itself; nil if it has no images: older
// dockers run one, too, but keep nothing of their own there.
func dockerContainerd(r *root) (*containerd, error) {
	const at = "containerd/daemon"
	if !r.has(path.Join(at, boltFile)) {
		return nil, nil
	}
	c, err := newContainerd(r, at)
	if err != nil || !slices.Contains(c.ns, dockerNamespace) {
		return nil, err
	}
	return c, nil
}

// dockerNamespace is docker's in containerd.
const dockerNamespace = "moby"

func (d *docker) at(parts ...string) string {
	return path.Join(append([]string{"image", d.driver}, parts...)...)
}

func (d *docker) images() ([]*Image, error) {
	names, err := d.repositories()
	if err != nil {
		return nil, err
	}
	ids, err := d.root.names(d.at("imagedb", "content", "sha256"))
	if err != nil {
		return nil, err
	}
	var list []*Image
	for _, hex := range ids {
		im := &Image{ID: "sha256:" + hex, Names: names["sha256:"+hex]}
		im.Config, im.Layers, im.Problem = d.image(digest.Digest(im.ID))
		var c ocispec.Image
		if json.Unmarshal(im.Config, &c) == nil && c.Created != nil {
			im.Created = *c.Created
		}
		list = append(list, im)
	}
	if d.inner == nil {
		return list, nil
	}
	more, err := d.inner.images()
	return append(list, more...), err
}

// repositories are the names of the images, by ID.
func (d *docker) repositories() (map[string][]string, error) {
	b, err := d.root.readFile(d.at("repositories.json"), maxTable)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r struct{ Repositories map[string]map[string]string }
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: repositories.json: %w", ErrDamaged, err)
	}
	names := map[string][]string{}
	for _, refs := range r.Repositories {
		for ref, id := range refs {
			names[id] = append(names[id], ref)
		}
	}
	for _, list := range names {
		slices.Sort(list)
	}
	return names, nil
}

// image reads a config, which must be what its name says, and finds its layers.
func (d *docker) image(id digest.Digest) (config []byte, layers []Layer, err error) {
	if err := id.Validate(); err != nil {
		return nil, nil, fmt.Errorf("%w: image %q: %w", ErrDamaged, id, err)
	}
	config, err = d.root.readFile(d.at("imagedb", "content", id.Algorithm().String(), id.Encoded()), maxConfig)
	if err != nil {
		return nil, nil, err
	}
	if got := id.Algorithm().FromBytes(config); got != id {
		return config, nil, fmt.Errorf("%w: the config of image %s has the digest %s", ErrDamaged, id, got)
	}
	var c ocispec.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return config, nil, fmt.Errorf("%w: config of image %s: %w", ErrDamaged, id, err)
	}
	for i, chain := range chainIDs(c.RootFS.DiffIDs) {
		l, parent, err := d.layer(chain)
		if err == nil {
			err = l.expect(c.RootFS.DiffIDs, i, parent)
		}
		if err != nil {
			return config, layers, err
		}
		layers = append(layers, l)
	}
	return config, layers, nil
}

// expect checks that layer i is the one with the i-th diff ID, on top of those below it.
func (l Layer) expect(diffIDs []digest.Digest, i int, parent digest.Digest) error {
	want := digest.Digest("")
	if i > 0 {
		want = chainIDs(diffIDs[:i])[i-1]
	}
	if l.DiffID != diffIDs[i] || parent != want {
		return fmt.Errorf("%w: layer %s has the diff ID %q and the parent %q, not %q and %q", ErrDamaged, l.ID, l.DiffID, parent, diffIDs[i], want)
	}
	return nil
}

// layer reads what the layer database says of a chain ID.
func (d *docker) layer(chain digest.Digest) (l Layer, parent digest.Digest, err error) {
	if err := chain.Validate(); err != nil {
		return l, "", fmt.Errorf("%w: layer %q: %w", ErrDamaged, chain, err)
	}
	at := d.at("layerdb", chain.Algorithm().String(), chain.Encoded())
	cacheID, err := d.word(path.Join(at, "cache-id"))
	if err != nil {
		return l, "", fmt.Errorf("layer %s: %w", chain, err)
	}
	diff, err := d.word(path.Join(at, "diff"))
	if err != nil {
		return l, "", fmt.Errorf("layer %s: %w", chain, err)
	}
	up, err := d.word(path.Join(at, "parent"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return l, "", fmt.Errorf("layer %s: %w", chain, err)
	}
	l = Layer{ID: cacheID, DiffID: digest.Digest(diff), Size: -1}
	if size, err := d.word(path.Join(at, "size")); err == nil {
		if n, err := strconv.ParseInt(size, 10, 64); err == nil {
			l.Size = n
		}
	}
	if split := path.Join(at, "tar-split.json.gz"); d.root.has(split) {
		l.TarSplit = split
	}
	return l, digest.Digest(up), d.place(&l)
}

// place finds the directory of a layer.
func (d *docker) place(l *Layer) error {
	if !plainName(l.ID) {
		return fmt.Errorf("%w: %q is no name of a layer's directory", ErrDamaged, l.ID)
	}
	l.Dir = path.Join(d.driver, l.ID, "diff")
	if !d.root.has(l.Dir) {
		return fmt.Errorf("%w: %s is missing, or may not be reached", ErrDamaged, l.Dir)
	}
	return nil
}

// word reads a file that holds one word.
func (d *docker) word(name string) (string, error) {
	b, err := d.root.readFile(name, maxID)
	return strings.TrimSpace(string(b)), err
}

// dockerContainer is what matters in config.v2.json (moby: container/container.go).
type dockerContainer struct {
	ID, Name, Image, Driver string
	Created                 time.Time
	Config                  struct{ Image string }
	State                   struct {
		Running, Paused, Restarting, Dead, OOMKilled bool
		ExitCode                                     int
		StartedAt                                    time.Time
	}
}

func (c *dockerContainer) state() string {
	switch s := c.State; {
	case s.Dead:
		return "dead"
	case s.Paused:
		return "paused"
	case s.Restarting:
		return "restarting"
	case s.Running:
		return "running"
	case s.StartedAt.Year() <= 1:
		return "created"
	default:
		return fmt.Sprintf("exited (%d)", s.ExitCode)
	}
}

// dockerContainers reads the descriptions of all containers.
func dockerContainers(r *root, take func(c *dockerContainer, problem error)) error {
	ids, err := r.names("containers")
	if err != nil {
		return err
	}
	for _, id := range ids {
		c := &dockerContainer{}
		b, err := r.readFile(path.Join("containers", id, "config.v2.json"), maxConfig)
		if err == nil {
			err = json.Unmarshal(b, c)
		}
		if err != nil {
			err = fmt.Errorf("%w: container %s: %w", ErrDamaged, id, err)
		}
		c.ID = id
		take(c, err)
	}
	return nil
}

func (d *docker) containers() ([]*Container, error) {
	var list []*Container
	if d.inner != nil {
		var err error
		if list, err = d.inner.containers(); err != nil {
			return nil, err
		}
	}
	err := dockerContainers(d.root, func(c *dockerContainer, problem error) {
		if d.inner != nil && c.Driver == snapshotter {
			return
		}
		out := newDockerContainer(c, problem)
		if problem == nil {
			out.Config, out.Layers, out.Problem = d.container(c, &out.Warnings)
		}
		list = append(list, out)
	})
	return list, err
}

func newDockerContainer(c *dockerContainer, problem error) *Container {
	out := &Container{ID: c.ID, Created: c.Created, State: c.state(), Image: c.Config.Image, ImageID: c.Image, Problem: problem}
	if name := strings.TrimPrefix(c.Name, "/"); name != "" {
		out.Names = []string{name}
	}
	return out
}

// container finds the layers of a container: those of its image, the one that docker puts
// below every container, and its own.
func (d *docker) container(c *dockerContainer, warnings *[]string) (config []byte, layers []Layer, err error) {
	config, layers, err = d.image(digest.Digest(c.Image))
	if err != nil { // the image may have been removed by force: the layers are there while the container is
		*warnings = append(*warnings, fmt.Sprintf("image %s: %v", c.Image, err))
		layers = nil
	}
	at := d.at("layerdb", "mounts", c.ID)
	if config == nil || len(layers) == 0 {
		if layers, err = d.chain(path.Join(at, "parent")); err != nil {
			return config, nil, err
		}
	}
	for _, own := range []struct{ file, role string }{{"init-id", "init"}, {"mount-id", "container"}} {
		id, err := d.word(path.Join(at, own.file))
		if own.role == "init" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		l := Layer{ID: id, Role: own.role, Size: -1}
		if err == nil {
			err = d.place(&l)
		}
		if err != nil {
			return config, layers, fmt.Errorf("container %s: %w", c.ID, err)
		}
		layers = append(layers, l)
	}
	*warnings = append(*warnings, d.checkLower(layers)...)
	return config, layers, nil
}

// chain follows the parents of the layer that a file names, down to the base.
func (d *docker) chain(file string) (layers []Layer, err error) {
	id, err := d.word(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a container of an image without layers
	}
	for parent := digest.Digest(id); parent != "" && err == nil; {
		if len(layers) == maxChain {
			return nil, fmt.Errorf("%w: more than %d layers below %s", ErrDamaged, maxChain, file)
		}
		var l Layer
		if l, parent, err = d.layer(parent); err == nil {
			layers = append(layers, l)
		}
	}
	slices.Reverse(layers)
	return layers, err
}

// checkLower holds the layers against what the driver mounted: the names in "lower", which
// are those in the "link" of each layer below, the topmost first.
func (d *docker) checkLower(layers []Layer) []string {
	top := layers[len(layers)-1]
	b, err := d.root.readFile(path.Join(d.driver, top.ID, "lower"), maxLower)
	if err != nil {
		return nil // fuse-overlayfs's driver has none, nor has a container without an image
	}
	var want []string
	for _, l := range slices.Backward(layers[:len(layers)-1]) {
		link, err := d.word(path.Join(d.driver, l.ID, "link"))
		if err != nil {
			return []string{fmt.Sprintf("layer %s: %v", l.ID, err)}
		}
		want = append(want, "l/"+link)
	}
	if got := strings.Split(strings.TrimSpace(string(b)), ":"); !slices.Equal(got, want) {
		return []string{fmt.Sprintf("layer %s was mounted on %d layers that are not the %d of the layer database", top.ID, len(got), len(want))}
	}
	return nil
}

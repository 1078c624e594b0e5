package storage

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containersStorage is a graph root of containers/storage with its overlay driver
// (github.com/containers/storage: layers.go, images.go, containers.go, drivers/overlay).
type containersStorage struct {
	root *root
}

// openContainers recognises a graph root of containers/storage.
func openContainers(s *Store) (bool, error) {
	if s.root.has("overlay-layers") {
		s.Kind, s.engine = Containers, &containersStorage{s.root}
		s.Rootless = s.root.owner("overlay") != 0
		s.DotWh = s.root.has("overlay/.has-mount-program")
		return true, nil
	}
	for _, driver := range []string{"vfs", "btrfs", "zfs"} {
		if s.root.has(driver + "-layers") {
			return false, fmt.Errorf("%w: containers/storage's %s driver; overlay is read", ErrUnsupported, driver)
		}
	}
	return false, nil
}

// csLayer, csImage and csContainer are records of the three tables.
type csLayer struct {
	ID         string        `json:"id"`
	Parent     string        `json:"parent"`
	DiffDigest digest.Digest `json:"diff-digest"`
	DiffSize   *int64        `json:"diff-size"`
}

type csImage struct {
	ID      string        `json:"id"`
	Digest  digest.Digest `json:"digest"`
	Names   []string      `json:"names"`
	Layer   string        `json:"layer"`
	Created time.Time     `json:"created"`
}

type csContainer struct {
	ID       string    `json:"id"`
	Names    []string  `json:"names"`
	Image    string    `json:"image"`
	Layer    string    `json:"layer"`
	Metadata string    `json:"metadata"`
	Created  time.Time `json:"created"`
}

// table reads a table, and the one beside it with what is to vanish when the machine restarts.
func table[T any](r *root, dir string, files ...string) (list []T, err error) {
	for _, file := range files {
		b, err := r.readFile(path.Join(dir, file), maxTable)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var part []T
		if err := json.Unmarshal(b, &part); err != nil {
			return nil, fmt.Errorf("%w: %s/%s: %w", ErrDamaged, dir, file, err)
		}
		list = append(list, part...)
	}
	return list, nil
}

func (c *containersStorage) layers() (map[string]csLayer, error) {
	list, err := table[csLayer](c.root, "overlay-layers", "layers.json", "volatile-layers.json")
	byID := map[string]csLayer{}
	for _, l := range list {
		byID[l.ID] = l
	}
	return byID, err
}

func (c *containersStorage) images() ([]*Image, error) {
	layers, err := c.layers()
	if err != nil {
		return nil, err
	}
	records, err := table[csImage](c.root, "overlay-images", "images.json")
	if err != nil {
		return nil, err
	}
	var list []*Image
	for _, r := range records {
		im := &Image{ID: r.ID, Names: r.Names, Created: r.Created}
		im.Config, im.Manifest, im.Problem = c.documents(r)
		chain, err := c.chain(layers, r.Layer)
		im.Layers = chain
		if err == nil {
			err = checkDiffIDs(im.Config, chain)
		}
		im.Problem = errors.Join(im.Problem, err)
		list = append(list, im)
	}
	return list, nil
}

// documents reads the config of an image, whose digest is the image's ID, and the manifest.
func (c *containersStorage) documents(r csImage) (config, manifest []byte, err error) {
	if !plainName(r.ID) {
		return nil, nil, fmt.Errorf("%w: %q is no ID of an image", ErrDamaged, r.ID)
	}
	id := digest.Digest("sha256:" + r.ID)
	config, err = c.root.readFile(path.Join("overlay-images", r.ID, bigDataFile(id.String())), maxConfig)
	if err == nil && digest.FromBytes(config) != id {
		err = fmt.Errorf("%w: the config of image %s has the digest %s", ErrDamaged, r.ID, digest.FromBytes(config))
	}
	manifest, manifestErr := c.root.readFile(path.Join("overlay-images", r.ID, "manifest"), maxConfig)
	if manifestErr != nil || r.Digest != "" && digest.FromBytes(manifest) != r.Digest {
		manifest = nil // of an image with several manifests it is under another name
	}
	return config, manifest, err
}

// bigDataFile is the file of a datum: its name, in base64 where a file could not be called so
// (containers/storage: userns.go, makeBigDataBaseName).
func bigDataFile(key string) string {
	for _, c := range key {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' {
			return "=" + base64.StdEncoding.EncodeToString([]byte(key))
		}
	}
	return key
}

// checkDiffIDs holds the layers of an image against its config.
func checkDiffIDs(config []byte, layers []Layer) error {
	if config == nil {
		return nil
	}
	var c ocispec.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return fmt.Errorf("%w: config: %w", ErrDamaged, err)
	}
	if len(c.RootFS.DiffIDs) != len(layers) {
		return fmt.Errorf("%w: the image has %d layers, its config speaks of %d", ErrDamaged, len(layers), len(c.RootFS.DiffIDs))
	}
	for i, l := range layers {
		if l.DiffID != c.RootFS.DiffIDs[i] {
			return fmt.Errorf("%w: layer %s has the diff ID %q, the config says %q", ErrDamaged, l.ID, l.DiffID, c.RootFS.DiffIDs[i])
		}
	}
	return nil
}

// chain follows the parents of a layer down to the base.
func (c *containersStorage) chain(all map[string]csLayer, top string) (list []Layer, err error) {
	for id := top; id != "" && err == nil; {
		r, ok := all[id]
		switch {
		case !ok || !plainName(id):
			return nil, fmt.Errorf("%w: no layer %q", ErrDamaged, id)
		case len(list) == maxChain:
			return nil, fmt.Errorf("%w: more than %d layers below %s", ErrDamaged, maxChain, top)
		}
		l := Layer{ID: id, DiffID: r.DiffDigest, Size: -1, Dir: path.Join("overlay", id, "diff")}
		if r.DiffSize != nil {
			l.Size = *r.DiffSize
		}
		if split := path.Join("overlay-layers", id+".tar-split.gz"); c.root.has(split) {
			l.TarSplit = split
		}
		if !c.root.has(l.Dir) {
			err = fmt.Errorf("%w: %s is missing, or may not be reached", ErrDamaged, l.Dir)
		}
		list = append(list, l)
		id = r.Parent
	}
	slices.Reverse(list)
	return list, err
}

func (c *containersStorage) containers() ([]*Container, error) {
	layers, err := c.layers()
	if err != nil {
		return nil, err
	}
	images, err := table[csImage](c.root, "overlay-images", "images.json")
	if err != nil {
		return nil, err
	}
	records, err := table[csContainer](c.root, "overlay-containers", "containers.json", "volatile-containers.json")
	if err != nil {
		return nil, err
	}
	var list []*Container
	state := c.podmanStates()
	for _, r := range records {
		out := c.container(r, layers, images)
		out.State = state[r.ID]
		list = append(list, out)
	}
	return list, nil
}

// podmanStates are the states of podman's containers, by ID, where podman keeps them in
// libpod/bolt_state.db (podman: libpod/boltdb_state_internal.go); podman 5 has an SQLite
// database, which is not read. Nobody's state is a reason to fail.
func (c *containersStorage) podmanStates() map[string]string {
	states := map[string]string{}
	b, err := c.root.readFile("libpod/bolt_state.db", maxBolt)
	if err != nil {
		return states
	}
	db, err := newBolt(b)
	if err != nil {
		return states
	}
	list, _ := db.bucket("ctr")
	for _, it := range list {
		if !it.bucket {
			continue
		}
		fields, _ := db.open(it.value)
		raw, _ := find(fields, "state", false)
		var s struct {
			State    int `json:"state"`
			ExitCode int `json:"exitCode"`
		}
		if json.Unmarshal(raw, &s) == nil {
			states[string(it.key)] = podmanState(s.State, s.ExitCode)
		}
	}
	return states
}

// podmanState is the word for a state (podman: libpod/define/containerstate.go).
func podmanState(state, exitCode int) string {
	words := []string{"unknown", "created", "initialized", "running", "stopped", "paused", "exited", "removing", "stopping"}
	if state < 0 || state >= len(words) {
		return ""
	}
	if words[state] == "exited" || words[state] == "stopped" {
		return fmt.Sprintf("exited (%d)", exitCode)
	}
	return words[state]
}

func (c *containersStorage) container(r csContainer, layers map[string]csLayer, images []csImage) *Container {
	var meta struct {
		Name  string `json:"name"`
		Image string `json:"image-name"`
	}
	_ = json.Unmarshal([]byte(r.Metadata), &meta) // what podman writes there; others need not
	out := &Container{ID: r.ID, Names: r.Names, Created: r.Created, ImageID: r.Image, Image: meta.Image}
	for _, im := range images {
		if im.ID != r.Image {
			continue
		}
		if out.Image == "" && len(im.Names) > 0 {
			out.Image = im.Names[0]
		}
		var err error
		if out.Config, _, err = c.documents(im); err != nil {
			out.Warnings = append(out.Warnings, err.Error())
		}
	}
	out.Layers, out.Problem = c.chain(layers, r.Layer)
	if n := len(out.Layers); n > 0 {
		own := &out.Layers[n-1]
		own.Role, own.DiffID, own.TarSplit = "container", "", ""
		out.Warnings = append(out.Warnings, c.checkLower(out.Layers)...)
	}
	return out
}

// checkLower holds the layers against what the driver mounted: the names in "lower", the
// topmost first, which each layer has in its "link".
func (c *containersStorage) checkLower(layers []Layer) []string {
	top := layers[len(layers)-1]
	b, err := c.root.readFile(path.Join("overlay", top.ID, "lower"), maxLower)
	if err != nil {
		return nil // a container without an image has none
	}
	var want []string
	for _, l := range slices.Backward(layers[:len(layers)-1]) {
		link, err := c.root.readFile(path.Join("overlay", l.ID, "link"), maxID)
		if err != nil {
			return []string{fmt.Sprintf("layer %s: %v", l.ID, err)}
		}
		want = append(want, "l/"+strings.TrimSpace(string(link)))
	}
	if got := strings.Split(strings.TrimSpace(string(b)), ":"); !slices.Equal(got, want) {
		return []string{fmt.Sprintf("layer %s was mounted on %d layers that are not the %d of the layer table", top.ID, len(got), len(want))}
	}
	return nil
}

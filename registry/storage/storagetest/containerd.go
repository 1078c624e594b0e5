package storagetest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
)

// Containerd makes a containerd root with an image whose content is there, and a container of
// it. Inside is what stands before the directories io.containerd.…: "" of containerd's own
// roots, and where docker's is that of dockerd's, which then gets its description of the
// container, too.
func Containerd(t testing.TB, root, inside string, layers []Layer, container Layer) Made {
	t.Helper()
	base := filepath.Join(root, inside)
	list := packAll(t, layers)
	conf := config(t, list)
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: blob(t, base, ocispec.MediaTypeImageConfig, conf)}
	m.SchemaVersion = 2
	for _, l := range list {
		m.Layers = append(m.Layers, blob(t, base, ocispec.MediaTypeImageLayer, l.tar))
	}
	target := blob(t, base, ocispec.MediaTypeImageManifest, marshal(t, m))
	made := Made{Image: target.Digest, Container: name("container")}
	ns := map[bool]string{true: "default", false: "moby"}[inside == ""]

	meta := openBolt(t, filepath.Join(base, "io.containerd.metadata.v1.bolt/meta.db"))
	snaps := openBolt(t, filepath.Join(base, "io.containerd.snapshotter.v1.overlayfs/metadata.db"))
	meta.put("digest", target.Digest.String(), "v1", ns, "images", Name, "target")
	parent := ""
	for i, key := range append(chain(list), digest.Digest(made.Container)) {
		inner := fmt.Sprintf("%s/%d/%s", ns, i+1, key)
		meta.put("name", inner, "v1", ns, "snapshots", "overlayfs", key.String())
		snaps.put("id", string(binary.AppendUvarint(nil, uint64(i+1))), "v1", "snapshots", inner)
		if parent != "" {
			snaps.put("parent", parent, "v1", "snapshots", inner)
		}
		parent = inner
		dir := filepath.Join(base, "io.containerd.snapshotter.v1.overlayfs/snapshots", fmt.Sprint(i+1), "fs")
		made.Dirs = append(made.Dirs, dir)
		unpack(t, dir, append(append([]Layer{}, layers...), container)[i])
	}
	if inside == "" {
		for k, v := range map[string]string{"image": Name, "snapshotter": "overlayfs", "snapshotKey": made.Container} {
			meta.put(k, v, "v1", ns, "containers", made.Container)
		}
	} else {
		dockerContainer(t, root, made, "overlayfs")
	}
	for i := range 300 { // more than a page holds: a tree
		meta.put(fmt.Sprintf("label%03d", i), strings.Repeat("x", 50), "v1", ns, "content", "blob", target.Digest.String())
		meta.put("digest", target.Digest.String(), "v1", "other", "images", fmt.Sprintf("other%03d", i), "target")
	}
	check(t, meta.db.Close())
	check(t, snaps.db.Close())
	return made
}

// blob puts a blob into the content store.
func blob(t testing.TB, base, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	write(t, filepath.Join(base, "io.containerd.content.v1.content/blobs/sha256", d.Digest.Encoded()), string(b))
	return d
}

// A bolt is a database of containerd's.
type bolt struct {
	t  testing.TB
	db *bbolt.DB
}

func openBolt(t testing.TB, path string) bolt {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	db, err := bbolt.Open(path, 0o644, &bbolt.Options{NoSync: true})
	check(t, err)
	return bolt{t, db}
}

// put sets a key in the bucket at a path, which it makes.
func (b bolt) put(key, value string, path ...string) {
	b.t.Helper()
	check(b.t, b.db.Update(func(tx *bbolt.Tx) error {
		at, err := tx.CreateBucketIfNotExists([]byte(path[0]))
		for _, p := range path[1:] {
			if err != nil {
				return err
			}
			at, err = at.CreateBucketIfNotExists([]byte(p))
		}
		if err != nil {
			return err
		}
		return at.Put([]byte(key), []byte(value))
	}))
}

// Package storagetest makes small storage roots of docker, containers-storage and containerd
// for tests, in the form in which the engines leave them.
package storagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// A Layer is the files of a layer in their order: "NAME=CONTENT", "NAME/" for a directory,
// "-NAME" for what it deletes.
type Layer []string

// A Made is what a store was made with.
type Made struct {
	Image     digest.Digest // ID of the image
	Container string        // ID of the container
	Dirs      []string      // of the layers' files, the base first; the container's last
}

// Name and ContainerName are what the image and the container are called.
const (
	Name          = "example.com/app:1"
	ContainerName = "app1"
)

// When is the time of all files and of all that was created.
var When = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)

// A packed is a layer as a tar, with what stores keep of it.
type packed struct {
	tar, split []byte
	diffID     digest.Digest
}

// pack makes the tar and the tar-split of a layer.
func pack(t testing.TB, l Layer) packed {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range l {
		name, content, isFile := strings.Cut(line, "=")
		h := &tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir, ModTime: When, Uid: os.Getuid(), Gid: os.Getgid()}
		if gone, ok := strings.CutPrefix(name, "-"); ok {
			h.Name, h.Typeflag, h.Mode = filepath.Join(filepath.Dir(gone), ".wh."+filepath.Base(gone)), tar.TypeReg, 0o644
		} else if isFile {
			h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, int64(len(content))
		}
		check(t, w.WriteHeader(h))
		_, err := io.WriteString(w, content)
		check(t, err)
	}
	check(t, w.Close())
	var split bytes.Buffer
	z := gzip.NewWriter(&split)
	in, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(b.Bytes()), storage.NewJSONPacker(z), storage.NewDiscardFilePutter())
	check(t, err)
	_, err = io.Copy(io.Discard, in)
	check(t, err)
	check(t, <-done)
	check(t, z.Close())
	return packed{b.Bytes(), split.Bytes(), digest.FromBytes(b.Bytes())}
}

// unpack makes a layer's directory, with whiteouts as overlayfs has them.
func unpack(t testing.TB, dir string, l Layer) {
	t.Helper()
	check(t, os.MkdirAll(dir, 0o755))
	for _, line := range l {
		name, content, isFile := strings.Cut(line, "=")
		gone, deleted := strings.CutPrefix(name, "-")
		p := filepath.Join(dir, gone)
		check(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch {
		case deleted:
			if err := unix.Mknod(p, unix.S_IFCHR, 0); err == unix.EPERM {
				t.Skip("needs whiteouts: the kernel lets root alone make them")
			} else {
				check(t, err)
			}
		case isFile:
			check(t, os.WriteFile(p, []byte(content), 0o644))
			check(t, os.Chmod(p, 0o644))
			check(t, os.Chtimes(p, When, When))
		default:
			check(t, os.MkdirAll(p, 0o755))
		}
	}
	for _, line := range slices.Backward(l) {
		if strings.HasSuffix(line, "/") {
			check(t, os.Chtimes(filepath.Join(dir, line), When, When))
		}
	}
}

// config is the config of an image of these layers.
func config(t testing.TB, layers []packed) []byte {
	t.Helper()
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}, Created: &When}
	for i, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.diffID)
		c.History = append(c.History, ocispec.History{CreatedBy: fmt.Sprintf("step %d", i+1)})
	}
	return marshal(t, c)
}

func packAll(t testing.TB, layers []Layer) (list []packed) {
	for _, l := range layers {
		list = append(list, pack(t, l))
	}
	return list
}

// chain are the layers' chain IDs.
func chain(layers []packed) (ids []digest.Digest) {
	for i, l := range layers {
		id := l.diffID
		if i > 0 {
			id = digest.FromString(ids[i-1].String() + " " + id.String())
		}
		ids = append(ids, id)
	}
	return ids
}

// name is an ID like those of the engines.
func name(parts ...any) string { return digest.FromString(fmt.Sprint(parts...)).Encoded() }

// Docker makes a docker data root with an image, and a container of it.
func Docker(t testing.TB, root string, layers []Layer, container Layer) Made {
	t.Helper()
	list := packAll(t, layers)
	conf := config(t, list)
	made := Made{Image: digest.FromBytes(conf), Container: name("container")}
	db := filepath.Join(root, "image/overlay2")
	ids := chain(list)
	var links []string
	place := func(id string, l Layer) {
		dir := filepath.Join(root, "overlay2", id)
		made.Dirs = append(made.Dirs, filepath.Join(dir, "diff"))
		unpack(t, filepath.Join(dir, "diff"), l)
		link := strings.ToUpper(id[:26])
		write(t, filepath.Join(dir, "link"), link)
		if len(links) > 0 {
			write(t, filepath.Join(dir, "lower"), strings.Join(links, ":"))
		}
		links = append([]string{"l/" + link}, links...)
	}
	for i, l := range list {
		at := filepath.Join(db, "layerdb/sha256", ids[i].Encoded())
		cache := name("cache", i)
		write(t, filepath.Join(at, "cache-id"), cache)
		write(t, filepath.Join(at, "diff"), l.diffID.String())
		write(t, filepath.Join(at, "size"), "7")
		write(t, filepath.Join(at, "tar-split.json.gz"), string(l.split))
		if i > 0 {
			write(t, filepath.Join(at, "parent"), ids[i-1].String())
		}
		place(cache, layers[i])
	}
	mount := name("mount")
	at := filepath.Join(db, "layerdb/mounts", made.Container)
	write(t, filepath.Join(at, "mount-id"), mount)
	write(t, filepath.Join(at, "init-id"), mount+"-init")
	write(t, filepath.Join(at, "parent"), ids[len(ids)-1].String())
	place(name("init"), Layer{".dockerenv="})
	check(t, os.Rename(filepath.Join(root, "overlay2", name("init")), filepath.Join(root, "overlay2", mount+"-init")))
	made.Dirs[len(made.Dirs)-1] = filepath.Join(root, "overlay2", mount+"-init", "diff")
	place(mount, container)
	write(t, filepath.Join(db, "imagedb/content/sha256", made.Image.Encoded()), string(conf))
	write(t, filepath.Join(db, "repositories.json"), string(marshal(t, map[string]any{"Repositories": map[string]any{"example.com/app": map[string]string{Name: made.Image.String()}}})))
	dockerContainer(t, root, made, "overlay2")
	return made
}

func dockerContainer(t testing.TB, root string, made Made, driver string) {
	t.Helper()
	write(t, filepath.Join(root, "containers", made.Container, "config.v2.json"), string(marshal(t, map[string]any{
		"ID": made.Container, "Name": "/" + ContainerName, "Image": made.Image, "Created": When, "Driver": driver,
		"Config": map[string]any{"Image": Name}, "State": map[string]any{"ExitCode": 3, "StartedAt": When},
	})))
}

// Containers makes a graph root of containers-storage with an image, and a container of it.
func Containers(t testing.TB, root string, layers []Layer, container Layer) Made {
	t.Helper()
	list := packAll(t, layers)
	conf := config(t, list)
	made := Made{Image: digest.FromBytes(conf), Container: name("container")}
	var table []map[string]any
	var links []string
	parent := ""
	place := func(id string, l Layer, row map[string]any) {
		dir := filepath.Join(root, "overlay", id)
		made.Dirs = append(made.Dirs, filepath.Join(dir, "diff"))
		unpack(t, filepath.Join(dir, "diff"), l)
		link := strings.ToUpper(id[:26])
		write(t, filepath.Join(dir, "link"), link)
		if len(links) > 0 {
			write(t, filepath.Join(dir, "lower"), strings.Join(links, ":"))
		}
		links = append([]string{"l/" + link}, links...)
		row["id"], row["parent"] = id, parent
		table = append(table, row)
		parent = id
	}
	for i, l := range list {
		id := name("layer", i)
		place(id, layers[i], map[string]any{"diff-digest": l.diffID, "diff-size": 7})
		write(t, filepath.Join(root, "overlay-layers", id+".tar-split.gz"), string(l.split))
	}
	image := made.Image.Encoded()
	images := []map[string]any{{"id": image, "names": []string{Name}, "layer": parent, "created": When}}
	place(name("own"), container, map[string]any{})
	containers := []map[string]any{{"id": made.Container, "names": []string{ContainerName}, "image": image, "layer": parent, "created": When}}
	write(t, filepath.Join(root, "overlay-layers/layers.json"), string(marshal(t, table)))
	write(t, filepath.Join(root, "overlay-images/images.json"), string(marshal(t, images)))
	write(t, filepath.Join(root, "overlay-images", image, "="+base64.StdEncoding.EncodeToString([]byte(made.Image))), string(conf))
	write(t, filepath.Join(root, "overlay-containers/containers.json"), string(marshal(t, containers)))
	states := openBolt(t, filepath.Join(root, "libpod/bolt_state.db"))
	states.put("state", `{"state":6,"exitCode":3}`, "ctr", made.Container)
	check(t, states.db.Close())
	return made
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	return b
}

func write(t testing.TB, path, content string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(content), 0o644))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

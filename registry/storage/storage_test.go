package storage_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/storage"
	"github.com/layerfs/layerfs/registry/storage/storagetest"
)

// A maker makes a store of one kind.
type maker func(t testing.TB, root string, layers []storagetest.Layer, container storagetest.Layer) storagetest.Made

var makers = map[string]maker{
	"docker":     storagetest.Docker,
	"containers": storagetest.Containers,
	"containerd": func(t testing.TB, root string, l []storagetest.Layer, c storagetest.Layer) storagetest.Made {
		return storagetest.Containerd(t, root, "", l, c)
	},
	"docker with containerd": func(t testing.TB, root string, l []storagetest.Layer, c storagetest.Layer) storagetest.Made {
		return storagetest.Containerd(t, root, "containerd/daemon", l, c)
	},
}

var (
	someLayers = []storagetest.Layer{{"etc/", "etc/passwd=root", "gone=1"}, {"-gone", "two=2"}, {"etc/", "etc/passwd=other"}}
	someWrites = storagetest.Layer{"secret=s"}
)

func open(t *testing.T, root string) *storage.Store {
	t.Helper()
	s, err := storage.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestStores: every kind of store is recognised, and its image and container are found with
// their layers in the right order.
func TestStores(t *testing.T) {
	for kind, make := range makers {
		t.Run(kind, func(t *testing.T) {
			root := t.TempDir()
			made := make(t, root, someLayers, someWrites)
			s := open(t, root)
			if want, _, _ := strings.Cut(kind, " "); s.Kind != want {
				t.Errorf("kind %q, want %q", s.Kind, want)
			}
			for _, name := range []string{storagetest.Name, "example.com/app:1", strings.TrimPrefix(made.Image.String(), "sha256:")[:12], made.Image.String()} {
				im, _, err := s.Find(name)
				if err != nil || im == nil || im.Problem != nil || len(im.Warnings) > 0 {
					t.Fatalf("find %s: %+v, %v", name, im, err)
				}
				checkDirs(t, im.Layers, made.Dirs[:3], root)
				if len(im.Config) == 0 || im.Layers[1].DiffID == "" || !im.Created.Equal(storagetest.When) {
					t.Errorf("image %+v", im)
				}
			}
			_, c, err := s.Find(made.Container[:12])
			if err != nil || c == nil || c.Problem != nil || len(c.Warnings) > 0 {
				t.Fatalf("find the container: %+v, %v", c, err)
			}
			checkDirs(t, c.Layers, made.Dirs, root)
			if kind != "containerd" && c.State != "exited (3)" {
				t.Errorf("state %q", c.State)
			}
			if top := c.Layers[len(c.Layers)-1]; top.Role != "container" || top.DiffID != "" || c.Image == "" && kind != "containers" {
				t.Errorf("container %+v", c)
			}
		})
	}
}

// TestDockerBoth: a docker that was switched to the containerd image store has images of both.
func TestDockerBoth(t *testing.T) {
	root := t.TempDir()
	old := storagetest.Docker(t, root, someLayers, someWrites)
	copyContainer(t, root, old.Container, "ff"+old.Container[2:])
	made := storagetest.Containerd(t, root, "containerd/daemon", someLayers[:2], someWrites) // its container has the ID of the first one
	s := open(t, root)
	for _, id := range []string{old.Image.String(), made.Image.String()} {
		if im, _, err := s.Find(id); err != nil || im.Problem != nil {
			t.Errorf("%s: %+v, %v", id, im, err)
		}
	}
	list, err := s.Containers()
	if err != nil || len(list) != 2 {
		t.Fatalf("%d containers, %v", len(list), err)
	}
	for _, c := range list {
		if c.ID == made.Container {
			checkDirs(t, c.Layers, made.Dirs, root)
		}
	}
	if f, _, err := s.OpenBlob(made.Image); err != nil {
		t.Error(err)
	} else {
		_ = f.Close()
	}
}

func checkDirs(t *testing.T, layers []storage.Layer, want []string, root string) {
	t.Helper()
	var got []string
	for _, l := range layers {
		got = append(got, filepath.Join(root, l.Dir))
	}
	if !slices.Equal(got, want) {
		t.Errorf("layers\n%q\nwant\n%q", got, want)
	}
}

// TestDamage: a store that contradicts itself says so, and lists the rest.
func TestDamage(t *testing.T) {
	for _, test := range []struct {
		name, kind string
		damage     func(t *testing.T, root string, made storagetest.Made)
		problem    string // of image or container; "": a warning
		warning    string
	}{
		{"config changed", "docker", rewrite("image/overlay2/imagedb/content/sha256/*", "}", " }"), "has the digest", ""},
		{"diff ID changed", "docker", rewrite("image/overlay2/layerdb/sha256/*/diff", "sha256:", "sha256:0"), "diff ID", ""},
		{"path in cache-id", "docker", rewrite("image/overlay2/layerdb/sha256/*/cache-id", "", "../../"), "no name of a layer", ""},
		{"layer missing", "docker", remove, "is missing", ""},
		{"lower disagrees", "docker", rewrite("overlay2/*/lower", "l/", "l/X"), "", "mounted on"},
		{"config changed", "containers", rewrite("overlay-images/*/=*", "}", " }"), "has the digest", ""},
		{"diff digest changed", "containers", rewrite("overlay-layers/layers.json", "\"sha256:", "\"sha256:0"), "diff ID", ""},
		{"layer missing", "containers", remove, "is missing", ""},
		{"lower disagrees", "containers", rewrite("overlay/*/lower", "l/", "l/X"), "", "mounted on"},
		{"config changed", "containerd", rewrite("io.containerd.content.v1.content/blobs/sha256/*", "\"linux\"", "\"Linux\""), "another digest", ""},
		{"layer missing", "containerd", remove, "", "is missing"},
	} {
		t.Run(test.kind+" "+test.name, func(t *testing.T) {
			root := t.TempDir()
			made := makers[test.kind](t, root, someLayers, someWrites)
			test.damage(t, root, made)
			s := open(t, root)
			images, err := s.Images()
			if err != nil {
				t.Fatal(err)
			}
			containers, err := s.Containers()
			if err != nil {
				t.Fatal(err)
			}
			var problems []error
			var warnings []string
			for _, im := range images {
				problems, warnings = append(problems, im.Problem), append(warnings, im.Warnings...)
			}
			for _, c := range containers {
				problems, warnings = append(problems, c.Problem), append(warnings, c.Warnings...)
			}
			if err := errors.Join(problems...); test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)) {
				t.Errorf("problems %v, want %q", err, test.problem)
			}
			if all := strings.Join(warnings, "\n"); !strings.Contains(all, test.warning) {
				t.Errorf("warnings %q, want %q", all, test.warning)
			}
		})
	}
}

// rewrite replaces the first appearance of a string in every file that a pattern fits.
func rewrite(pattern, old, new string) func(*testing.T, string, storagetest.Made) {
	return func(t *testing.T, root string, _ storagetest.Made) {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(f, []byte(strings.Replace(string(b), old, new, 1)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func remove(t *testing.T, _ string, made storagetest.Made) {
	if err := os.RemoveAll(made.Dirs[1]); err != nil {
		t.Fatal(err)
	}
}

// TestOpenRefuses what is no store, or one that it cannot read.
func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		path string // a file in it; "" none
		want error
	}{
		{"", storage.ErrNotFound},
		{"image/btrfs/x", storage.ErrUnsupported},
		{"vfs-layers/layers.json", storage.ErrUnsupported},
		{"io.containerd.metadata.v1.bolt/meta.db", storage.ErrDamaged},
	} {
		root := t.TempDir()
		if test.path != "" {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, test.path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, test.path), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := storage.Open(root); !errors.Is(err, test.want) {
			t.Errorf("%q: %v, want %v", test.path, err, test.want)
		}
	}
	if _, err := storage.Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// TestFind: names are unambiguous, or refused.
func TestFind(t *testing.T) {
	root := t.TempDir()
	made := storagetest.Docker(t, root, someLayers, someWrites)
	copyContainer(t, root, made.Container, "ff"+made.Container[2:])
	s := open(t, root)
	for name, want := range map[string]error{
		"nothing": storage.ErrNotFound, made.Container: nil, storagetest.ContainerName: storage.ErrAmbiguous, made.Container[:2]: storage.ErrNotFound,
	} {
		if _, _, err := s.Find(name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

func copyContainer(t *testing.T, root, id, other string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "containers", id, "config.v2.json"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "containers", other)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "config.v2.json"), b, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestNoLinks: a symlink in a store leads nowhere.
func TestNoLinks(t *testing.T) {
	root := t.TempDir()
	made := storagetest.Docker(t, root, someLayers, someWrites)
	dir := made.Dirs[len(made.Dirs)-1]
	if err := errors.Join(os.RemoveAll(dir), os.Symlink(t.TempDir(), dir)); err != nil {
		t.Fatal(err)
	}
	s := open(t, root)
	_, c, err := s.Find(made.Container)
	if err != nil {
		t.Fatal(err)
	}
	if c.Problem == nil {
		_, c.Problem = s.OpenLayer(c.Layers[len(c.Layers)-1])
	}
	if c.Problem == nil {
		t.Error("the directory behind the link was opened")
	}
}

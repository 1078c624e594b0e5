package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"golang.org/x/sys/unix"
)

// folderLayers: a file in three layers, what is deleted for good and what comes again, a
// setuid program that goes, a directory that a file replaces, and names that look like versions.
var folderLayers = []string{
	"file etc/conf \"one\"\nfile etc/old \"secret\"\nfile bin/su \"#!\" 04755\nfile dir/a \"a\"\nfile dir/sub/b \"b\"\nfile again \"1\"\nfile n/1 \"x\"\nsymlink l /etc/conf",
	"file etc/conf \"two\"\nwhiteout etc/old\nwhiteout bin/su\nwhiteout again\nfile dir \"a file now\"",
	"file etc/conf \"three\"\nfile again \"3\"\nwhiteout n/1\nfile n \"f\"\nopaque bin",
}

func folderImage(t *testing.T) string {
	t.Helper()
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	s.PushImage("folder:latest", imageOfTexts(t, folderLayers...))
	return s.Host() + "/folder"
}

func namesOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func xattrOf(t *testing.T, path, name string) string {
	t.Helper()
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

// TestFolder: the hidden folder has every layer, what was deleted, and every version, and can be read as any other.
func TestFolder(t *testing.T) {
	needMount(t)
	ref := folderImage(t)
	for _, flags := range [][]string{{"--meta"}, {"--meta", "--rw"}} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) { checkFolder(t, newHost(t).mount(ref, flags...)) })
	}
}

func checkFolder(t *testing.T, dir string) {
	if names := namesOf(t, dir); slices.Contains(names, ".layerfs") {
		t.Errorf("a listing has the folder: %q", names)
	}
	meta := dir + "/.layerfs"
	if got, want := namesOf(t, meta), []string{"config.json", "deleted", "history.json", "layers", "manifest.json", "status.json", "versions"}; !slices.Equal(got, want) {
		t.Errorf("the folder has %q", got)
	}
	for path, want := range map[string]string{
		"layers/1/etc/conf": "one", "layers/2/etc/conf": "two", "layers/2/etc/.wh.old": "", "layers/3/bin/.wh..wh..opq": "", "layers/1/bin/su": "#!",
		"deleted/etc/old": "secret", "deleted/bin/su": "#!", "deleted/dir/sub/b": "b",
		"versions/etc/conf/1": "one", "versions/etc/conf/3": "three", "versions/dir/a/1": "a", "versions/dir/2": "a file now", "versions/n/3": "f", "versions/n/1/1": "x",
	} {
		if got := readFile(t, filepath.Join(meta, path)); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]string{
		"layers": "1 2 3", "layers/2": ".wh.again bin dir etc", "deleted": "bin dir etc n", "deleted/etc": "old", "versions/etc/conf": "1 2 3", "versions/again": "1 3",
	} {
		want := strings.Fields(want)
		if got := namesOf(t, filepath.Join(meta, path)); !slices.Equal(got, want) {
			t.Errorf("%s has %q, want %q", path, got, want)
		}
	}
	if st, err := os.Lstat(meta + "/deleted/bin/su"); err != nil || st.Mode() != 0o755|fs.ModeSetuid {
		t.Errorf("the deleted program is %v, %v", st, err)
	}
	if target, err := os.Readlink(meta + "/layers/1/l"); err != nil || target != "/etc/conf" {
		t.Errorf("link to %q, %v", target, err)
	}
	for _, path := range []string{"layers/4", "layers/01", "layers/0", "deleted/again", "nothing", "versions/etc/conf/4"} {
		if _, err := os.Lstat(filepath.Join(meta, path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	checkProvenance(t, dir)
	checkUnchangeable(t, dir)
}

func checkProvenance(t *testing.T, dir string) {
	for _, c := range []struct{ path, name, want string }{
		{"etc/conf", "layer", "3"}, {"etc/conf", "created_by", "step 3"}, {"dir", "layer", "2"},
		{"etc/conf", "none", unix.ENODATA.Error()}, {".layerfs/layers/1/etc/conf", "layer", "1"}, {".layerfs/versions/etc/conf/2", "created_by", "step 2"},
		{".layerfs/deleted/etc/old", "layer", "1"}, {".layerfs/layers/2/etc/.wh.old", "layer", "2"},
	} {
		if got := xattrOf(t, filepath.Join(dir, c.path), "user.layerfs."+c.name); got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.name, c.path, got, c.want)
		}
	}
	if got := xattrOf(t, dir+"/etc/conf", "user.layerfs.digest"); !strings.HasPrefix(got, "sha256:") {
		t.Errorf("digest %q", got)
	}
	if n, err := unix.Llistxattr(dir+"/etc/conf", nil); n != 0 || err != nil {
		t.Errorf("a list has %d bytes, %v", n, err)
	}
}

// checkUnchangeable: every call that changes something is refused, and the server lives on.
func checkUnchangeable(t *testing.T, dir string) {
	meta := dir + "/.layerfs"
	for what, err := range map[string]error{
		"mkdir":     os.Mkdir(meta+"/x", 0o755),
		"create":    os.WriteFile(meta+"/layers/1/x", nil, 0o644),
		"write":     os.WriteFile(meta+"/layers/1/etc/conf", nil, 0o644),
		"chmod":     os.Chmod(meta+"/layers/1/etc/conf", 0o600),
		"remove":    os.Remove(meta + "/deleted/etc/old"),
		"rmdir":     os.Remove(meta),
		"rename":    os.Rename(meta, dir+"/y"),
		"rename in": os.Rename(dir+"/etc/conf", meta+"/conf"),
		"over":      os.Rename(dir+"/etc", meta),
		"link":      os.Link(meta+"/layers/1/etc/conf", dir+"/z"),
		"symlink":   os.Symlink("x", meta+"/layers/x"),
		"setxattr":  unix.Setxattr(meta+"/layers/1/etc/conf", "user.x", nil, 0),
	} {
		if err == nil {
			t.Errorf("%s is allowed", what)
		} else if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := readFile(t, meta+"/layers/1/etc/conf"); got != "one" {
		t.Errorf("afterwards: %q", got)
	}
}

// procFD opens the very file that f has open, whatever its name leads to by now.
func procFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// TestFolderStatus: who opens a file of the folder reads what is true then, and what he has open stays.
func TestFolderStatus(t *testing.T) {
	needMount(t)
	dir := newHost(t).mount(sampleRegistry(t).Host()+"/sample", "--meta", "--rw")
	first, err := os.Open(dir + "/.layerfs/status.json")
	must(t, err)
	defer first.Close()
	readFile(t, dir+"/data/big")
	f, err := os.OpenFile(dir+"/held", os.O_CREATE|os.O_RDWR, 0o644)
	must(t, err)
	defer f.Close()
	if later := readFile(t, dir+"/.layerfs/status.json"); !strings.Contains(later, `"open": 1`) {
		t.Errorf("status with a file open: %s", later)
	}
	if got := readFile(t, procFD(first)); !strings.Contains(got, `"open": 0`) {
		t.Errorf("the status from before: %s", got)
	}
}

// TestFolderLives: the folder is there after the death of a server, and shows the image that a commit made.
func TestFolderLives(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := h.mount(s.Host()+"/sample", "--meta", "--rw")
	held, err := os.Open(dir + "/.layerfs/layers/1/etc/old")
	must(t, err)
	defer held.Close()
	defer func() {
		if t.Failed() {
			t.Log(h.serverLog())
		}
	}()
	killServers(t, h, 1)
	for _, path := range []string{procFD(held), dir + "/.layerfs/deleted/etc/old"} {
		if got := readFile(t, path); got != "old\n" {
			t.Errorf("%s: %q", path, got)
		}
	}
	must(t, os.WriteFile(dir+"/etc/new", []byte("new"), 0o644))
	if got := xattrOf(t, dir+"/etc/new", "user.layerfs.layer"); got != unix.ENODATA.Error() {
		t.Errorf("what is in no layer is of layer %q", got)
	}
	h.run("commit", "--continue", dir, s.Host()+"/sample:next")
	eventually(t, "the new layer", func() bool { return len(namesOf(t, dir+"/.layerfs/layers")) == 4 })
	if got := readFile(t, dir+"/.layerfs/layers/4/etc/new"); got != "new" {
		t.Errorf("the new layer has %q", got)
	}
	if got := xattrOf(t, dir+"/etc/new", "user.layerfs.layer"); got != "4" {
		t.Errorf("it is of layer %q", got)
	}
}

// TestFolderRefused: where the image has the name itself, or deleted programs could be run as somebody else.
func TestFolderRefused(t *testing.T) {
	needMount(t)
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	s.PushImage("own:latest", imageOfTexts(t, "file .layerfs/x \"1\""))
	h := newHost(t)
	if r := h.try("mount", "--meta", s.Host()+"/own", t.TempDir()); r.code == 0 || !strings.Contains(r.stderr, "/.layerfs") {
		t.Errorf("over a name of the image: %+v", r)
	}
	if r := h.try("mount", "--meta", "-o", "suid", s.Host()+"/own", t.TempDir()); r.code != 2 || !strings.Contains(r.stderr, "setuid") {
		t.Errorf("with suid: %+v", r)
	}
}

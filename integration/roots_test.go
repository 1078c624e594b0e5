package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/registry/storage/storagetest"
)

// Layers with all that stacking can get wrong: a deleted file, one that three layers
// changed, a directory made anew, and what the container did.
var (
	rootLayers = []storagetest.Layer{
		{"etc/", "etc/passwd=root", "etc/old=old", "var/", "var/a=a", "thrice=1"},
		{"etc/", "-etc/old", "thrice=2", "two/", "two/f=second"},
		{"etc/", "etc/passwd=other", "thrice=3", "-var/a"},
	}
	rootWrites = storagetest.Layer{"etc/", "-etc/passwd", "secret=of the container", "-two"}
)

// stores are the makers of storage roots, by the transport that reads them.
var stores = []struct {
	name, transport string
	make            func(t testing.TB, root string) storagetest.Made
}{
	{"docker", "docker-root", func(t testing.TB, r string) storagetest.Made {
		return storagetest.Docker(t, r, rootLayers, rootWrites)
	}},
	{"containers", "containers-storage", func(t testing.TB, r string) storagetest.Made {
		return storagetest.Containers(t, r, rootLayers, rootWrites)
	}},
	{"containerd", "containerd-root", func(t testing.TB, r string) storagetest.Made {
		return storagetest.Containerd(t, r, "", rootLayers, rootWrites)
	}},
	{"docker on containerd", "docker-root", func(t testing.TB, r string) storagetest.Made {
		return storagetest.Containerd(t, r, "containerd/daemon", rootLayers, rootWrites)
	}},
}

// marked gives a directory an attribute of overlayfs's, so that a process without
// CAP_SYS_ADMIN sees that such can be read here, and warns of nothing.
func marked(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Setxattr(dir, "user.overlay.origin", nil, 0); err != nil {
		t.Skip("needs extended attributes: ", err)
	}
}

// TestStorageRoots: images and containers of every kind of store are listed, read, compared
// and checked, and not a byte or a time of the store changes.
func TestStorageRoots(t *testing.T) {
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) {
			root := t.TempDir()
			made := s.make(t, root)
			top := made.Dirs[len(made.Dirs)-1]
			marked(t, top)
			before := everything(t, root)
			h := newHost(t)
			ref := s.transport + ":" + root + "#"
			for name, want := range map[string]string{
				"find " + ref + storagetest.Name + " /":                       "/ /etc /etc/passwd /thrice /two /two/f /var",
				"find " + ref + made.Container + " /":                         "/ /.dockerenv /etc /secret /thrice /var",
				"cat " + ref + made.Container + " /secret":                    "of the container",
				"cat " + ref + storagetest.Name + " /thrice":                  "3",
				"diff " + ref + storagetest.Name + " " + ref + made.Container: "A /.dockerenv D /etc/passwd A /secret D /two",
			} {
				if s.transport != "docker-root" || s.name != "docker" { // its engine adds a layer with a file
					want = strings.NewReplacer("A /.dockerenv ", "", "/.dockerenv ", "").Replace(want)
				}
				got := strings.Join(strings.Fields(h.run(strings.Fields(name)...)), " ")
				got = strings.NewReplacer("M / ", "", "M /etc ", "", "M /var ", "").Replace(got) // directories have the times of today
				if got != want {
					t.Errorf("%s\ngot  %s\nwant %s", name, got, want)
				}
			}
			if r := h.try("verify", ref+made.Container); r.code != 0 || strings.Count(r.stdout, "ok       layer") != 3 || !strings.Contains(r.stdout, "SKIPPED") {
				t.Errorf("verify: exit %d\n%s%s", r.code, r.stdout, r.stderr)
			}
			checkLists(t, h, root, made)
			if after := everything(t, root); after != before {
				t.Errorf("the store has changed:\n%s", firstDifference(before, after))
			}
		})
	}
}

// checkLists reads the lists, as JSON.
func checkLists(t *testing.T, h *host, root string, made storagetest.Made) {
	t.Helper()
	var rows []struct {
		ID, Ref, Created string
		Names            []string
		Layers           []struct{ Directory, Role string }
	}
	for _, list := range []struct {
		command, id string
		layers      int
	}{{"images", made.Image.String(), 3}, {"containers", made.Container, len(made.Dirs)}} {
		if err := json.Unmarshal([]byte(h.run(list.command, "--json", root)), &rows); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, r := range rows {
			if strings.HasSuffix(list.id, r.ID) && len(r.Layers) == list.layers {
				found = true
				h.run("ls", r.Ref, "/etc")
			}
		}
		if !found {
			t.Errorf("%s: no %s with %d layers in %+v", list.command, list.id, list.layers, rows)
		}
		if text := h.run(list.command, root); !strings.Contains(text, strings.TrimPrefix(list.id, "sha256:")[:12]) {
			t.Errorf("%s prints\n%s", list.command, text)
		}
	}
}

// everything is all that stat knows of a tree, and what is in its files; reading it leaves
// no access time.
func everything(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	var walk func(string)
	walk = func(p string) {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %d %o %d %d %v %v %v", p, st.Ino, st.Mode, st.Nlink, st.Size, st.Atim, st.Mtim, st.Ctim)
		if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFDIR || kind == unix.S_IFREG {
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), p)
			defer f.Close()
			if kind == unix.S_IFREG {
				buf := make([]byte, st.Size)
				n, _ := f.ReadAt(buf, 0)
				fmt.Fprintf(&b, " %q", buf[:n])
			}
			names, _ := f.Readdirnames(-1)
			b.WriteString("\n")
			for _, name := range names {
				walk(filepath.Join(p, name))
			}
			return
		}
		b.WriteString("\n")
	}
	walk(root)
	return b.String()
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range x {
		if i >= len(y) || x[i] != y[i] {
			return x[i] + "\n" + strings.Join(y[min(i, len(y)):min(i+1, len(y))], "")
		}
	}
	return ""
}

// TestStorageRootMount: a container is mounted with its own changes, read-only and with a
// new layer above; the store stays as it is.
func TestStorageRootMount(t *testing.T) {
	needFUSE(t)
	root := t.TempDir()
	made := storagetest.Docker(t, root, rootLayers, rootWrites)
	marked(t, made.Dirs[len(made.Dirs)-1])
	before := everything(t, root)
	h := newHost(t)
	ref := "docker-root:" + root + "#" + storagetest.ContainerName
	dir := h.mount(ref)
	if b, err := os.ReadFile(filepath.Join(dir, "secret")); string(b) != "of the container" {
		t.Errorf("secret: %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/passwd")); !os.IsNotExist(err) {
		t.Errorf("passwd, which the container deleted: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err == nil {
		t.Error("the mount is writable")
	}
	rw := h.mount(ref, "--ephemeral")
	if err := os.WriteFile(filepath.Join(rw, "thrice"), []byte("4"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(rw, "secret")); err != nil {
		t.Fatal(err)
	}
	if got := h.run("diff", rw); !strings.Contains(got, "D /secret\n") || !strings.Contains(got, "M /thrice\n") {
		t.Errorf("diff: %s", got)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "thrice")); string(b) != "3" {
		t.Errorf("below: %q", b)
	}
	h.run("umount", dir, rw)
	if after := everything(t, root); after != before {
		t.Errorf("the store has changed:\n%s", firstDifference(before, after))
	}
}

// TestVerifyStorageRoot: what was changed in a layer on disk is found, and named.
func TestVerifyStorageRoot(t *testing.T) {
	for _, s := range stores {
		for _, test := range []struct {
			name   string
			change func(base string) error
			want   string
		}{
			{"same size and time", func(base string) error {
				p := filepath.Join(base, "etc/passwd")
				return first(os.WriteFile(p, []byte("toor"), 0o644), os.Chtimes(p, storagetest.When, storagetest.When))
			}, "/etc/passwd: content"},
			{"mode", func(base string) error { return os.Chmod(filepath.Join(base, "thrice"), 0o644|os.ModeSetuid) }, "/thrice: mode 104644, in the tar 100644"},
			{"planted", func(base string) error { return os.WriteFile(filepath.Join(base, "planted"), nil, 0o644) }, "/planted: not in the tar"},
			{"removed", func(base string) error { return os.Remove(filepath.Join(base, "thrice")) }, "/thrice: "},
		} {
			t.Run(s.name+" "+test.name, func(t *testing.T) {
				root := t.TempDir()
				made := s.make(t, root)
				if err := test.change(made.Dirs[0]); err != nil {
					t.Fatal(err)
				}
				r := newHost(t).try("verify", s.transport+":"+root+"#"+storagetest.Name)
				if r.code != 6 || !strings.Contains(r.stdout, "MISMATCH layer 1  "+test.want) || strings.Count(r.stdout, "ok       layer") != 2 {
					t.Errorf("exit %d, want 6 and %q\n%s%s", r.code, test.want, r.stdout, r.stderr)
				}
			})
		}
	}
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestManyLayers: 130 layers, more than the kernel's option string holds, are in the right
// order: each overwrites the one before.
func TestManyLayers(t *testing.T) {
	var layers []storagetest.Layer
	for i := range 130 {
		layers = append(layers, storagetest.Layer{fmt.Sprintf("n=%d", i), fmt.Sprintf("only%d=x", i)})
	}
	for kind, make := range map[string]func(testing.TB, string, []storagetest.Layer, storagetest.Layer) storagetest.Made{"docker-root": storagetest.Docker, "containers-storage": storagetest.Containers} {
		root := t.TempDir()
		made := make(t, root, layers, storagetest.Layer{"n=container"})
		marked(t, made.Dirs[len(made.Dirs)-1])
		h := newHost(t)
		ref := kind + ":" + root + "#"
		if got := h.run("cat", ref+storagetest.Name, "/n") + h.run("cat", ref+storagetest.ContainerName, "/n"); got != "129container" {
			t.Errorf("%s: %q", kind, got)
		}
		rows := strings.Split(strings.TrimSpace(h.run("which", "--json", ref+made.Container, "/n")), "\n")
		for i, row := range rows[1:] {
			var r struct{ Layer int }
			if err := json.Unmarshal([]byte(row), &r); err != nil || r.Layer != 130-i {
				t.Fatalf("%s: version %d: %s", kind, i, row)
			}
		}
		if len(rows) != 131 || strings.Count(h.run("ls", ref+made.Container), "only") != 130 {
			t.Errorf("%s: %d versions", kind, len(rows))
		}
	}
}

// TestDirTransport: directories given one by one, the topmost first.
func TestDirTransport(t *testing.T) {
	top, base := t.TempDir(), t.TempDir()
	for name, content := range map[string]string{base + "/a": "base", base + "/b": "base", top + "/b": "top", top + "/.wh.a": ""} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	marked(t, top)
	h := newHost(t)
	if got := h.run("find", "dir:"+top+":"+base, "/"); got != "/\n/b\n" {
		t.Errorf("find: %q", got)
	}
	if got := h.run("cat", "dir:"+top+":"+base, "/b"); got != "top" {
		t.Errorf("cat: %q", got)
	}
	if r := h.try("ls", "dir:"+top+"/none"); r.code != 3 {
		t.Errorf("no directory: exit %d\n%s", r.code, r.stderr)
	}
}

// TestStorageRootMessages: what goes wrong is said in a line, with what to do.
func TestStorageRootMessages(t *testing.T) {
	root := t.TempDir()
	made := storagetest.Docker(t, root, rootLayers, rootWrites)
	h := newHost(t)
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"ls docker-root:" + root, 2, "layerfs containers " + root},
		{"ls docker-root:" + root + "#none", 3, `no image or container "none"`},
		{"ls containerd-root:" + root + "#" + made.Container, 2, "is a storage root of docker"},
		{"ls docker-root:" + root + "/none#x", 3, "no such file"},
		{"images " + root + "/image", 3, "not found"},
		{"copy docker-root:" + root + "#" + storagetest.Name + " oci:" + t.TempDir() + "/x", 1, "keeps layers unpacked"},
	} {
		r := h.try(strings.Fields(test.args)...)
		if r.code != test.code || !strings.Contains(r.stderr, test.want) || strings.Count(r.stderr, "layerfs: ") != 1 {
			t.Errorf("%s: exit %d, want %d and %q\n%s", test.args, r.code, test.code, test.want, r.stderr)
		}
	}
	if err := os.RemoveAll(made.Dirs[1]); err != nil {
		t.Fatal(err)
	}
	if r := h.try("ls", "docker-root:"+root+"#"+storagetest.Name); r.code != 6 || !strings.Contains(r.stderr, "is missing") {
		t.Errorf("a layer is missing: exit %d\n%s", r.code, r.stderr)
	}
	if r := h.try("images", root); r.code != 0 || !strings.Contains(r.stderr, "is missing") {
		t.Errorf("list: exit %d\n%s", r.code, r.stderr)
	}
}

// TestBlindMarks: a process that cannot read trusted.* says so.
func TestBlindMarks(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	storagetest.Docker(t, root, rootLayers, rootWrites)
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{bin, "--root", filepath.Join(dir, "state"), "ls", "docker-root:" + root + "#" + storagetest.ContainerName}
	if os.Geteuid() == 0 {
		if _, err := exec.LookPath("setpriv"); err != nil {
			t.Skip("needs setpriv")
		}
		openTo(t, dir, bin)
		if err := errors.Join(os.Mkdir(args[2], 0o700), os.Chown(args[2], 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		args[0] = filepath.Join(dir, "layerfs")
		args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"}, args...)
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "CAP_SYS_ADMIN") {
		t.Errorf("%v\n%s", err, out)
	}
}

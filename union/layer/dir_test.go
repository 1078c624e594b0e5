package layer_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/union/layer"
)

// makeDir makes an unpacked layer of lines: "dir NAME", "file NAME CONTENT", "link NAME TARGET",
// "hard NAME OTHER", "whiteout NAME", "xattr NAME KEY VALUE".
func makeDir(t *testing.T, lines ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, line := range lines {
		f := append(strings.Fields(line), "", "")
		p := filepath.Join(root, f[1])
		var err error
		switch f[0] {
		case "dir":
			err = os.MkdirAll(p, 0o755)
		case "file":
			err = os.WriteFile(p, []byte(f[2]), 0o644)
		case "link":
			err = os.Symlink(f[2], p)
		case "hard":
			err = os.Link(filepath.Join(root, f[2]), p)
		case "whiteout":
			err = unix.Mknod(p, unix.S_IFCHR, 0)
		case "xattr":
			err = unix.Lsetxattr(p, f[2], []byte(f[3]), 0)
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
			t.Skipf("needs a file system and rights for %q: %v", line, err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func openDirLayer(t *testing.T, root string, o layer.DirOptions) *layer.Layer {
	t.Helper()
	l, err := layer.OpenDir(t.Context(), openFile(t, root), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closing(t, l) })
	return l
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// shape lists a layer: one line for each name.
func shape(t *testing.T, l *layer.Layer) (lines []string) {
	t.Helper()
	var walk func(path string, dir layer.ID)
	walk = func(path string, dir layer.ID) {
		for name := range l.Whiteouts(dir) {
			lines = append(lines, path+name+" whiteout")
		}
		for name, id := range l.Children(dir) {
			e := l.Entry(id)
			line := path + name
			switch e.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				line += "/"
				if e.Opaque {
					line += " opaque"
				}
				if e.Redirect != "" {
					line += " redirect=" + e.Redirect
				}
			case unix.S_IFLNK:
				line += " -> " + e.Link
			case unix.S_IFREG:
				line += fmt.Sprintf(" %d %q", e.Nlink, content(t, l, id))
			}
			for _, x := range e.Xattrs {
				line += fmt.Sprintf(" %s=%s", x.Name, x.Value)
			}
			lines = append(lines, line)
			walk(path+name+"/", id)
		}
	}
	walk("", layer.Root)
	slices.Sort(lines)
	return lines
}

func content(t *testing.T, l *layer.Layer, id layer.ID) string {
	t.Helper()
	b := make([]byte, l.Entry(id).Size)
	if _, err := l.ReadAt(t.Context(), id, b, 0); err != nil && len(b) > 0 {
		t.Fatal(err)
	}
	return string(b)
}

func TestOpenDir(t *testing.T) {
	for _, test := range []struct {
		name string
		make []string
		o    layer.DirOptions
		want []string
	}{
		{"files", []string{"dir etc", "file etc/passwd root", "link etc/mtab /proc/mounts", "hard etc/same etc/passwd", "file empty"}, layer.DirOptions{},
			[]string{"empty 1 \"\"", "etc/", "etc/mtab -> /proc/mounts", "etc/passwd 2 \"root\"", "etc/same 2 \"root\""}},
		{"whiteouts", []string{"dir a", "whiteout a/gone", "whiteout gone"}, layer.DirOptions{}, []string{"a/", "a/gone whiteout", "gone whiteout"}},
		{"dot wh counts", []string{"dir a", "file a/.wh.x", "file .wh..wh..opq", "file a/.wh..wh..opq", "dir .wh..wh.plnk", "file .wh..wh.aufs"}, layer.DirOptions{DotWh: true},
			[]string{".wh..wh.plnk/", "a/ opaque", "a/x whiteout"}},
		{"dot wh is a name", []string{"file .wh.x hidden"}, layer.DirOptions{}, []string{".wh.x 1 \"hidden\""}},
		{"user marks", []string{"dir a", "xattr a user.overlay.opaque y", "dir b", "xattr b user.overlay.opaque x", "file b/w", "xattr b/w user.overlay.whiteout y"}, layer.DirOptions{},
			[]string{"a/ opaque", "b/", "b/w whiteout"}},
		{"fuse-overlayfs", []string{"dir a", "xattr a user.fuseoverlayfs.opaque y"}, layer.DirOptions{}, []string{"a/ opaque"}},
		{"marks of a container hide nothing", []string{"dir a", "xattr a user.overlay.opaque y"}, layer.DirOptions{TrustedOnly: true}, []string{"a/ user.overlay.opaque=y"}},
		{"trusted marks", []string{"dir a", "xattr a trusted.overlay.opaque y", "xattr a user.k v"}, layer.DirOptions{}, []string{"a/ opaque user.k=v"}},
		{"escaped", []string{"dir a", "xattr a user.overlay.overlay.opaque y"}, layer.DirOptions{}, []string{"a/ user.overlay.opaque=y"}},
		{"redirect", []string{"dir a", "xattr a user.overlay.redirect /old/a"}, layer.DirOptions{}, []string{"a/ redirect=/old/a"}},
		{"opaque by tar-split", []string{"dir a", "dir a/b"}, layer.DirOptions{Opaque: map[string]bool{"a/b": true}}, []string{"a/", "a/b/ opaque"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := openDirLayer(t, makeDir(t, test.make...), test.o)
			if got := shape(t, l); !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			if test.name == "dot wh counts" && !l.Entry(layer.Root).Opaque {
				t.Error("the root is not opaque")
			}
		})
	}
}

// TestOpenDirMetacopy: the content of a file with nothing but metadata is that of the layer
// below, where a redirect says it is; with no such file the layer is refused.
func TestOpenDirMetacopy(t *testing.T) {
	low := makeDir(t, "dir d", "file d/f content", "file d/g other")
	mid := makeDir(t, "dir d", "file d/f", "xattr d/f user.overlay.metacopy", "xattr d/f user.overlay.redirect g")
	top := makeDir(t, "dir e", "file e/h", "xattr e/h user.overlay.metacopy", "xattr e/h user.overlay.redirect /d/f")
	below := []*os.File{openFile(t, mid), openFile(t, low)}
	o := layer.DirOptions{Below: below}
	if got, want := shape(t, openDirLayer(t, top, o)), []string{"e/", `e/h 1 "other"`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	o.Below = below[:1]
	if _, err := layer.OpenDir(t.Context(), openFile(t, top), o); !errors.Is(err, layer.ErrFormat) {
		t.Errorf("without the content: %v", err)
	}
	for _, f := range below {
		closing(t, f)
	}
}

// TestOpenDirFollowsNothing: a symlink in place of a directory that was seen does not lead out.
func TestOpenDirFollowsNothing(t *testing.T) {
	root, outside := makeDir(t, "dir d", "file d/f inside"), makeDir(t, "file f secret")
	l := openDirLayer(t, root, layer.DirOptions{})
	d, _ := l.Lookup(layer.Root, "d")
	f, _ := l.Lookup(d, "f")
	if err := os.RemoveAll(filepath.Join(root, "d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "d")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := l.ReadAt(t.Context(), f, b, 0); !errors.Is(err, unix.ELOOP) {
		t.Errorf("read %q, %v; want ELOOP", b, err)
	}
}

// TestOpenDirChanged: a file that was changed after the layer was opened is an error, not
// a mixture; and another identity.
func TestOpenDirChanged(t *testing.T) {
	root := makeDir(t, "file f before")
	l := openDirLayer(t, root, layer.DirOptions{Digest: "sha256:" + digestOfA})
	if again := openDirLayer(t, root, layer.DirOptions{}); !l.Same(again) || l.Identity() != again.Identity() {
		t.Error("the same directory is not the same")
	}
	f, _ := l.Lookup(layer.Root, "f")
	if err := os.WriteFile(filepath.Join(root, "f"), []byte("after!"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ReadAt(t.Context(), f, make([]byte, 6), 0); !errors.Is(err, layer.ErrDigest) {
		t.Errorf("read of a changed file: %v", err)
	}
	if again := openDirLayer(t, root, layer.DirOptions{Digest: "sha256:" + digestOfA}); l.Same(again) {
		t.Error("a changed directory is the same")
	}
}

const digestOfA = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"

// TestOpenDirLeavesTimes: nothing of what is read gets another access time.
func TestOpenDirLeavesTimes(t *testing.T) {
	root := makeDir(t, "dir d", "file d/f content")
	paths := []string{root, filepath.Join(root, "d"), filepath.Join(root, "d/f")}
	old := []unix.Timespec{{Sec: 1000}, {Sec: 2000}} // relatime would move an access time before the change
	for _, p := range slices.Backward(paths) {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, old, 0); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := layer.OpenDir(t.Context(), os.NewFile(uintptr(fd), root), layer.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer closing(t, l)
	if got := strings.Join(shape(t, l), " "); got != `d/ d/f 1 "content"` {
		t.Error(got)
	}
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil || st.Atim != old[0] {
			t.Errorf("%s: access time %v, %v", p, st.Atim, err)
		}
	}
}

func TestOpenDirLimits(t *testing.T) {
	root := makeDir(t, "dir a/b/c", "file f x")
	if _, err := layer.OpenDir(t.Context(), openFile(t, root), layer.DirOptions{Limits: layer.Limits{Entries: 2}}); !errors.Is(err, layer.ErrLimit) {
		t.Errorf("entries: %v", err)
	}
	l := openDirLayer(t, root, layer.DirOptions{Limits: layer.Limits{Depth: 2}})
	if got := shape(t, l); len(l.Defects()) != 1 || !bytes.Contains([]byte(strings.Join(got, " ")), []byte("a/b/")) {
		t.Errorf("depth: %q, defects %v", got, l.Defects())
	}
}

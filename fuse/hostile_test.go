package fuse

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestForgedWhiteouts: nothing that would be a whiteout in a layer or in the
// upper directory can be made, by whatever call, and nothing is left of the try.
func TestForgedWhiteouts(t *testing.T) {
	needRoot(t)
	v := writable(t, "dir d\nfile d/f \"x\"")
	v.Flags = []string{"dev"}
	start(t, v)
	at := func(name string) string { return filepath.Join(v.Mountpoint, name) }
	for _, tt := range []struct {
		name string
		err  error
	}{
		{"mknod c 0 0", unix.Mknod(at("null"), unix.S_IFCHR|0o600, 0)},
		{"mkdir", os.Mkdir(at(".wh.x"), 0o755)},
		{"mkdir of the opaque mark", os.Mkdir(at("d/.wh..wh..opq"), 0o755)},
		{"create", os.WriteFile(at("d/.wh.f"), nil, 0o644)},
		{"symlink", os.Symlink("x", at("d/.wh.f"))},
		{"link", os.Link(at("d/f"), at("d/.wh.f"))},
		{"mknod", unix.Mknod(at("d/.wh.f"), unix.S_IFIFO|0o600, 0)},
		{"rename", os.Rename(at("d/f"), at("d/.wh.f"))},
	} {
		wantErrno(t, tt.name, tt.err, unix.EPERM)
	}
	err := unix.Renameat2(unix.AT_FDCWD, at("d/f"), unix.AT_FDCWD, at("d/g"), unix.RENAME_WHITEOUT)
	wantErrno(t, "RENAME_WHITEOUT", err, unix.EINVAL)
	for dir, want := range map[string]string{"": "d", "d": "f"} {
		names, err := os.ReadDir(at(dir))
		if err != nil || len(names) != 1 || names[0].Name() != want {
			t.Errorf("%s/ lists %v, %v", dir, names, err)
		}
	}
	left, err := os.ReadDir(v.Work)
	if err != nil || len(left) != 0 {
		t.Errorf("the work directory has %v, %v", left, err)
	}
}

// TestForgedMarks: overlayfs's xattrs set through the mount are ordinary ones,
// come back under their names, and hide and redirect nothing.
func TestForgedMarks(t *testing.T) {
	needRoot(t)
	v := writable(t, "dir d\nfile d/f \"x\"\ndir other\nfile other/g \"y\"")
	start(t, v)
	d := filepath.Join(v.Mountpoint, "d")
	for name, value := range map[string]string{"trusted.overlay.opaque": "y", "trusted.overlay.redirect": "/other", "user.overlay.opaque": "y", "trusted.overlay.layerfs.base": "x"} {
		if err := unix.Setxattr(d, name, []byte(value), 0); err != nil {
			t.Errorf("set %s: %v", name, err)
		}
		if got := xattrOf(d, name); string(got) != value {
			t.Errorf("%s is %q", name, got)
		}
	}
	if names, err := os.ReadDir(d); err != nil || len(names) != 1 || names[0].Name() != "f" {
		t.Errorf("the directory lists %v, %v", names, err)
	}
}

// TestLongestNames removes, makes again and renames lower names of 255 bytes.
func TestLongestNames(t *testing.T) {
	long, dir := strings.Repeat("n", 255), strings.Repeat("d", 255)
	v := writable(t, "file "+long+" \"x\"\ndir "+dir+"\nfile "+dir+"/"+long+" \"y\"")
	start(t, v)
	top, deep := filepath.Join(v.Mountpoint, long), filepath.Join(v.Mountpoint, dir, long)
	for _, name := range []string{top, deep} {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("still there: %v", err)
		}
		if err := os.WriteFile(name, []byte("new"), 0o644); err != nil {
			t.Error(err)
		}
	}
	if err := os.Rename(filepath.Dir(deep), filepath.Join(v.Mountpoint, strings.Repeat("e", 255))); err != nil {
		t.Error(err)
	}
	err := os.WriteFile(top+"n", nil, 0o644)
	wantErrno(t, "a name of 256 bytes", err, unix.ENAMETOOLONG)
}

// TestLinkIntoMount: the server touches a symlink that leads into its own mount without following it.
func TestLinkIntoMount(t *testing.T) {
	needRoot(t)
	v := writable(t, "file f \"x\"")
	start(t, v)
	for _, target := range []string{filepath.Join(v.Mountpoint, "f"), v.Mountpoint, filepath.Join(v.Mountpoint, "l")} {
		link := filepath.Join(v.Mountpoint, "l")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if err := unix.Lsetxattr(link, "trusted.k", []byte("v"), 0); err != nil {
			t.Errorf("setxattr: %v", err)
		}
		if got := xattrOf(link, "trusted.k"); string(got) != "v" {
			t.Errorf("the xattr is %q", got)
		}
		wantErrno(t, "a user xattr of a symlink", unix.Lsetxattr(link, "user.k", []byte("v"), 0), unix.EPERM)
		if err := errors.Join(os.Lchown(link, 1, 1), unix.Lremovexattr(link, "trusted.k"), os.Rename(link, link+"2"), os.Remove(link+"2")); err != nil {
			t.Error(err)
		}
	}
	if xattrOf(filepath.Join(v.Mountpoint, "f"), "trusted.k") != nil {
		t.Error("the link was followed")
	}
}

// TestWhiteoutBesideEntry: a whiteout hides a name of the layers below, never
// one of its own layer, whichever stands first.
func TestWhiteoutBesideEntry(t *testing.T) {
	for _, top := range []string{"whiteout d\nfile d/new \"n\"", "file d/new \"n\"\nwhiteout d", "opaque d\nfile d/new \"n\"", "file d/new \"n\"\nopaque d"} {
		v := writable(t, "dir d\nfile d/old \"o\"", top)
		start(t, v)
		names, err := os.ReadDir(filepath.Join(v.Mountpoint, "d"))
		if err != nil || len(names) != 1 || names[0].Name() != "new" {
			t.Errorf("%q: lists %v, %v", top, names, err)
		}
	}
}

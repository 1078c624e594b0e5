package union_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// A member is one entry of a tar, with its content.
type member struct {
	*tar.Header
	body []byte
}

func readMembers(t *testing.T, b []byte) []member {
	t.Helper()
	var list []member
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return list
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		maps.DeleteFunc(h.PAXRecords, func(key, _ string) bool { return !strings.HasPrefix(key, "SCHILY.") }) // what the fields say too
		list = append(list, member{&tar.Header{Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
			ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor, PAXRecords: h.PAXRecords, Format: tar.FormatPAX}, body})
	}
}

func writeMembers(t *testing.T, list []member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range list {
		must(t, w.WriteHeader(m.Header))
		_, err := w.Write(m.body)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// checkedUpper has every kind of change that the check tells apart.
func checkedUpper(t *testing.T) *writable {
	t.Helper()
	tree := mergeText(t, "file a/old \"old\"\nfile a/other \"other\"\nfile gone \"x\"\nfile moved/deep/f \"deep\"\nfile moved/g \"g\"\nsymlink was/link a\nfile was/x \"x\"\nfile kept/k \"k\"\nfile turned \"t\"")
	w := openWritable(t, tree, t.TempDir())
	t.Cleanup(func() { w.close(t) })
	in := func(p string, call func(dir union.ID, name string) error) {
		t.Helper()
		must(t, inParent(w.FS, p, call))
	}
	write := func(p, text string) {
		in(p, func(dir union.ID, name string) error {
			_, _, h, err := w.Create(ctx, me, dir, name, os.O_WRONLY, 0o640)
			must(t, err)
			defer h.Close()
			_, err = h.WriteAt(ctx, []byte(text), 0)
			return err
		})
	}
	mkdir := func(p string) {
		in(p, func(dir union.ID, name string) error {
			_, _, err := w.Mkdir(ctx, me, dir, name, 0o750)
			return err
		})
	}
	write("new", "new file")
	write("linked", "linked file")
	mkdir("dir")
	write("dir/f", "f")
	in("dir/l", func(dir union.ID, name string) error {
		id, err := at(w.FS, "linked")
		must(t, err)
		_, _, err = w.Link(ctx, id, dir, name)
		return err
	})
	in("sym", func(dir union.ID, name string) error {
		_, _, err := w.Symlink(ctx, me, dir, name, "dir/f")
		return err
	})
	in("fifo", func(dir union.ID, name string) error {
		_, _, err := w.Mknod(ctx, me, dir, name, unix.S_IFIFO|0o600, 0)
		return err
	})
	if os.Geteuid() == 0 {
		in("dev", func(dir union.ID, name string) error {
			_, _, err := w.Mknod(ctx, me, dir, name, unix.S_IFCHR|0o600, unix.Mkdev(1, 3))
			return err
		})
	}
	in("gone", func(dir union.ID, name string) error { return w.Unlink(ctx, dir, name) })
	in("a/old", func(dir union.ID, name string) error { return w.Unlink(ctx, dir, name) })
	in("turned", func(dir union.ID, name string) error { return w.Unlink(ctx, dir, name) })
	mkdir("turned")
	for _, p := range []string{"was/link", "was/x"} {
		in(p, func(dir union.ID, name string) error { return w.Unlink(ctx, dir, name) })
	}
	in("was", func(dir union.ID, name string) error { return w.Rmdir(ctx, dir, name) })
	mkdir("was")
	write("was/y", "y")
	must(t, w.Rename(ctx, union.Root, "moved", union.Root, "there", 0))
	must(t, onNode(w.FS, "new", func(id union.ID) error { return w.Setxattr(ctx, id, "user.k", []byte("v"), 0) }))
	return w
}

// mutations falsify a layer, one thing each; the error must name what.
var mutations = []struct {
	name, says string
	do         func(list []member) []member
}{
	{"nothing", "", func(l []member) []member { return l }},
	{"mode", "/new: type and mode is 0100641, not 0100640", edit("new", func(h *tar.Header) { h.Mode++ })},
	{"mode of a directory", "/dir: type and mode", edit("dir/", func(h *tar.Header) { h.Mode = 0o700 })},
	{"mode of a link", "/linked: type and mode", edit("linked", func(h *tar.Header) { h.Mode = 0 })},
	{"owner", "/new: owner", edit("new", func(h *tar.Header) { h.Uid++ })},
	{"large owner", "/new: owner", edit("new", func(h *tar.Header) { h.Uid += 1 << 31 })},
	{"owner beyond 32 bits", "/new: type '0', mode 640, owner 42949", edit("new", func(h *tar.Header) { h.Uid += 1 << 32 })},
	{"group", "/new: group", edit("new", func(h *tar.Header) { h.Gid++ })},
	{"size", "/new: size", func(l []member) []member {
		m := find(l, "new")
		m.body, m.Size = m.body[1:], m.Size-1
		return replace(l, m)
	}},
	{"nanosecond", "/new: time of change", edit("new", func(h *tar.Header) { h.ModTime = h.ModTime.Add(1) })},
	{"second", "/dir: time of change", edit("dir/", func(h *tar.Header) { h.ModTime = h.ModTime.Add(-time.Second) })},
	{"target", "/sym: target", edit("sym", func(h *tar.Header) { h.Linkname += "/" })},
	{"type", "/fifo: type and mode", edit("fifo", func(h *tar.Header) { h.Typeflag = tar.TypeReg })},
	{"device number", "/dev: device", edit("dev", func(h *tar.Header) { h.Devminor++ })},
	{"device to block", "/dev: type and mode", edit("dev", func(h *tar.Header) { h.Typeflag = tar.TypeBlock })},
	{"xattr value", "/new: list of extended attributes", edit("new", func(h *tar.Header) { h.PAXRecords["SCHILY.xattr.user.k"] = "w" })},
	{"xattr gone", "/new: list of extended attributes", edit("new", func(h *tar.Header) { delete(h.PAXRecords, "SCHILY.xattr.user.k") })},
	{"xattr of our own", "/new: list of extended attributes", edit("new", func(h *tar.Header) { h.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"] = "y" })},
	{"file gone", "/new: no entry", without("new")},
	{"file gone, of a renamed directory", "/there/deep/f: no entry", without("there/deep/f")},
	{"directory gone", "/there/deep: no entry", func(l []member) []member { return without("there/deep/f")(without("there/deep/")(l)) }},
	{"directory without what is in it", "/dir/f: no entry", without("dir/f")},
	{"parent gone", "/turned", func(l []member) []member { return without("turned/")(l) }},
	{"file too many", "/newer: not in the mount", func(l []member) []member {
		m := find(l, "new")
		h := *m.Header
		h.Name = "newer"
		return slices.Insert(l, slices.IndexFunc(l, named("new"))+1, member{&h, m.body})
	}},
	{"name twice", `"new" stands behind "new"`, func(l []member) []member {
		return slices.Insert(l, slices.IndexFunc(l, named("new")), find(l, "new"))
	}},
	{"order", "stands behind", func(l []member) []member {
		i, j := slices.IndexFunc(l, named("new")), slices.IndexFunc(l, named("sym"))
		l[i], l[j] = l[j], l[i]
		return l
	}},
	{"directory after its names", "none of its own before", func(l []member) []member {
		i := slices.IndexFunc(l, named("dir/"))
		l[i], l[i+1] = l[i+1], l[i]
		return l
	}},
	{"absolute name", "bad name", edit("new", func(h *tar.Header) { h.Name = "/new" })},
	{"name with ..", "bad name", edit("new", func(h *tar.Header) { h.Name = "a/../new" })},
	{"whiteout gone", "/gone: no whiteout", without(".wh.gone")},
	{"whiteout gone, in a directory", "/a/old: no whiteout", without("a/.wh.old")},
	{"whiteout of a renamed directory gone", "/moved: no whiteout", without(".wh.moved")},
	{"whiteout gone, in a directory made anew", "/was/x: no whiteout", without("was/.wh.x")},
	{"whiteout of what shows", "/a/other: a whiteout, but the mount shows it", func(l []member) []member {
		h := *find(l, "a/.wh.old").Header
		h.Name = "a/.wh.other"
		return slices.Insert(l, slices.IndexFunc(l, named("a/.wh.old"))+1, member{&h, nil})
	}},
	{"whiteout of nothing", "a whiteout of /a/nope", edit("a/.wh.old", func(h *tar.Header) { h.Name = "a/.wh.nope" })},
	{"whiteout below a replaced file", "which the base has not", func(l []member) []member {
		h := *find(l, "a/.wh.old").Header
		h.Name = "turned/.wh.x"
		return slices.Insert(l, slices.IndexFunc(l, named("turned/"))+1, member{&h, nil})
	}},
	{"whiteout with a mode", "no empty file", edit("a/.wh.old", func(h *tar.Header) { h.Mode = 0o644 })},
	{"whiteout with a time", "no empty file", edit("a/.wh.old", func(h *tar.Header) { h.ModTime = time.Unix(5, 0) })},
	{"whiteout after names", "not at its place", func(l []member) []member {
		i := slices.IndexFunc(l, named(".wh.gone"))
		m := l[i]
		return append(slices.Delete(l, i, i+1), m)
	}},
	{"link to another", `/linked: a link to "dir/f"`, edit("linked", func(h *tar.Header) { h.Linkname = "dir/f" })},
	{"link out of the layer", `/linked: a link to "kept/k"`, edit("linked", func(h *tar.Header) { h.Linkname = "kept/k" })},
	{"link that is none", `/sym: a link to`, edit("sym", func(h *tar.Header) { h.Typeflag = tar.TypeLink })},
	{"link as a file", `/linked: no link to "dir/l"`, edit("linked", func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeReg, "" })},
	{"file as a link", `/new: a link to "dir/l"`, func(l []member) []member {
		m := find(l, "new")
		h := *m.Header
		h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, "dir/l", 0, nil
		return replace(l, member{&h, nil})
	}},
	{"root gone", "/: no entry", without("./")},
	{"root changed", "/: group", edit("./", func(h *tar.Header) { h.Gid = 77 })},
}

func named(name string) func(member) bool {
	return func(m member) bool { return m.Name == name }
}

func find(l []member, name string) member { return l[slices.IndexFunc(l, named(name))] }

func replace(l []member, m member) []member {
	l[slices.IndexFunc(l, named(m.Name))] = m
	return l
}

func edit(name string, change func(h *tar.Header)) func([]member) []member {
	return func(l []member) []member {
		if i := slices.IndexFunc(l, named(name)); i >= 0 {
			change(l[i].Header)
		}
		return l
	}
}

func without(name string) func([]member) []member {
	return func(l []member) []member { return slices.DeleteFunc(l, named(name)) }
}

func TestCheckFindsFalsifiedLayers(t *testing.T) {
	w := checkedUpper(t)
	var tar bytes.Buffer
	result, err := writeTar(w.FS, &tar, union.TarOptions{})
	must(t, err)
	if len(result.Losses) > 0 {
		t.Fatalf("losses: %v", result.Losses)
	}
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			list := readMembers(t, tar.Bytes())
			if strings.HasPrefix(m.name, "device") && !slices.ContainsFunc(list, named("dev")) {
				t.Skip("needs root: a device")
			}
			losses, err := union.CheckTar(w.FS, bytes.NewReader(writeMembers(t, m.do(list))), union.TarOptions{})
			switch {
			case m.says == "":
				must(t, err)
			case !errors.Is(err, union.ErrLayerDiffers) || !strings.Contains(err.Error(), m.says):
				t.Errorf("got %v, want %q", err, m.says)
			}
			if len(losses) > 0 {
				t.Errorf("losses: %v", losses)
			}
		})
	}
	t.Run("cut", func(t *testing.T) {
		_, err := union.CheckTar(w.FS, bytes.NewReader(tar.Bytes()[:3000]), union.TarOptions{})
		if !errors.Is(err, union.ErrLayerDiffers) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another epoch", func(t *testing.T) {
		epoch := int64(1e9)
		_, err := union.CheckTar(w.FS, bytes.NewReader(tar.Bytes()), union.TarOptions{Epoch: &epoch})
		if !errors.Is(err, union.ErrLayerDiffers) || !strings.Contains(err.Error(), "time of change") {
			t.Errorf("got %v", err)
		}
	})
}

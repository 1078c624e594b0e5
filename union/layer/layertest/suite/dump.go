package suite

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// A dump is a line a name, and a line a whiteout, opaque directory and foreign
// link. Wanted and shown layers are brought into this form and compared.

// render is the line of an entry. group is the first of its names.
func render(name, group string, e layer.Entry, content string) string {
	if !e.Explicit {
		return fmt.Sprintf("%q implied mode=%o %d:%d nlink=%d", name, e.Mode, e.UID, e.GID, e.Nlink)
	}
	s := fmt.Sprintf("%q mode=%o %d:%d nlink=%d @%d.%09d size=%d rdev=%#x", name, e.Mode, e.UID, e.GID, e.Nlink, e.Sec, e.Nsec, e.Size, e.Rdev)
	if e.Link != "" {
		s += fmt.Sprintf(" -> %q", e.Link)
	}
	if group != name {
		s += fmt.Sprintf(" is %q", group)
	}
	xattrs := slices.Clone(e.Xattrs)
	slices.SortFunc(xattrs, func(a, b layer.Xattr) int { return strings.Compare(a.Name, b.Name) })
	for _, x := range xattrs {
		s += fmt.Sprintf(" %s=%q", x.Name, x.Value)
	}
	return s + content
}

// contentOf hashes what r has.
func contentOf(r io.Reader) (string, error) {
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	return fmt.Sprintf(" content=%d:%x", n, sum.Sum(nil)[:8]), err
}

// expected is the dump of c.want.
func (c *testCase) expected(t *testing.T) []string {
	t.Helper()
	var out []string
	var entries []layertest.Entry
	for _, line := range strings.Split(c.want, "\n") {
		parsed, err := layertest.Parse(strings.Replace(line, "implied", "dir", 1))
		if strings.Contains(line, "foreign") {
			parsed, err = layertest.Parse(strings.Replace(line, "foreign", "link", 1))
		}
		if err != nil {
			t.Fatalf("what the case wants: %v", err)
		}
		if len(parsed) == 0 {
			continue
		}
		kind, e := strings.Fields(line)[0], parsed[0]
		switch kind {
		case "implied":
			out = append(out, render(e.Name, e.Name, layer.Entry{Mode: unix.S_IFDIR | 0o755, Nlink: 1}, ""))
		case "foreign":
			out = append(out, fmt.Sprintf("%q foreign %q", e.Name, e.Link))
		case "whiteout", "opaque":
			out = append(out, fmt.Sprintf("%q", path.Clean(e.Name)))
		default:
			entries = append(entries, e)
		}
	}
	return append(out, expectedEntries(t, entries)...)
}

// expectedEntries renders entries whose links stand behind their targets.
func expectedEntries(t *testing.T, entries []layertest.Entry) []string {
	t.Helper()
	names := map[string][]string{} // of each inode, by the name of its entry
	byName := map[string]layertest.Entry{}
	for _, e := range entries {
		first := e.Name
		if e.Type == tar.TypeLink {
			first = e.Link
		} else {
			byName[e.Name] = e
		}
		names[first] = append(names[first], e.Name)
	}
	var out []string
	for first, all := range names {
		e := byName[first]
		content := ""
		if e.Type == tar.TypeReg {
			var err error
			if content, err = contentOf(e.Content()); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range all {
			out = append(out, render(name, slices.MinFunc(all, comparePaths), entryOf(e, len(all)), content))
		}
	}
	return out
}

// comparePaths is the order of a walk: by components.
func comparePaths(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

var typeBits = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK,
	tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
}

func entryOf(e layertest.Entry, nlink int) layer.Entry {
	out := layer.Entry{
		Mode: typeBits[e.Type] | uint32(e.Mode), UID: uint32(e.UID), GID: uint32(e.GID), Nlink: uint32(nlink),
		Size: e.Size, Sec: e.Sec, Nsec: uint32(e.Nsec), Explicit: true,
	}
	if e.Type == tar.TypeSymlink {
		out.Link, out.Size = e.Link, int64(len(e.Link))
	}
	if e.Type == tar.TypeChar || e.Type == tar.TypeBlock {
		out.Rdev = unix.Mkdev(uint32(e.Major), uint32(e.Minor))
	}
	for _, x := range e.Xattrs {
		out.Xattrs = append(out.Xattrs, layer.Xattr{Name: x.Name, Value: []byte(x.Value)})
	}
	return out
}

// dump walks a layer, and checks on the way what holds for all of them.
func dump(t *testing.T, l Layer) []string {
	t.Helper()
	d := &dumper{t: t, l: l, first: map[layer.ID]string{}, paths: map[layer.ID]string{}}
	if e := l.Entry(layer.Root); e.Explicit {
		d.lines = append(d.lines, render(".", ".", e, ""))
	}
	d.dir(layer.Root, "")
	for _, f := range l.ForeignLinks() {
		dir, ok := d.paths[f.Dir]
		if !ok {
			t.Errorf("foreign link %s is in %d, which is no directory", f.Name, f.Dir)
		}
		d.lines = append(d.lines, fmt.Sprintf("%q foreign %q", path.Join(dir, f.Name), f.Target))
	}
	if n := len(d.first) + 1; n > l.Len() {
		t.Errorf("Len is %d, but %d entries can be reached", l.Len(), n)
	}
	return d.lines
}

type dumper struct {
	t     *testing.T
	l     Layer
	first map[layer.ID]string // the first name of each entry
	paths map[layer.ID]string // of directories
	lines []string
}

func (d *dumper) dir(id layer.ID, at string) {
	if _, seen := d.paths[id]; seen {
		d.t.Fatalf("%q: a directory with two names, or within itself", at)
	}
	d.paths[id] = at
	if d.l.Entry(id).Opaque {
		d.lines = append(d.lines, fmt.Sprintf("%q", path.Join(at, ".wh..wh..opq")))
	}
	d.whiteouts(id, at)
	last := ""
	for name, child := range d.l.Children(id) {
		p := path.Join(at, name)
		if name <= last || strings.Contains(name, "/") || name == "." || name == ".." || strings.HasPrefix(name, ".wh.") {
			d.t.Errorf("%q: not a name, or not in its order, behind %q", p, last)
		}
		last = name
		if got, ok := d.l.Lookup(id, name); !ok || got != child {
			d.t.Errorf("%q: Lookup gives %d %v, Children %d", p, got, ok, child)
		}
		d.entry(child, p)
	}
	for _, no := range []string{"", ".", "..", "no such name", last + "\x00"} {
		if got, ok := d.l.Lookup(id, no); ok {
			d.t.Errorf("%q: Lookup of %q gives %d", at, no, got)
		}
	}
}

func (d *dumper) whiteouts(id layer.ID, at string) {
	last := ""
	for name := range d.l.Whiteouts(id) {
		if name <= last {
			d.t.Errorf("%q: whiteout %q behind %q", at, name, last)
		}
		last = name
		if _, ok := d.l.Lookup(id, name); ok {
			d.t.Errorf("%q: %q is an entry and a whiteout", at, name)
		}
		d.lines = append(d.lines, fmt.Sprintf("%q", path.Join(at, ".wh."+name)))
	}
}

func (d *dumper) entry(id layer.ID, p string) {
	e := d.l.Entry(id)
	if _, ok := d.first[id]; !ok {
		d.first[id] = p
	}
	content := ""
	if e.Mode&unix.S_IFMT == unix.S_IFREG {
		var err error
		if content, err = contentOf(io.NewSectionReader(reader{d.l, id}, 0, e.Size)); err != nil {
			d.t.Errorf("%q: read: %v", p, err)
		}
	}
	d.lines = append(d.lines, render(p, d.first[id], e, content))
	if e.Mode&unix.S_IFMT == unix.S_IFDIR {
		d.dir(id, p)
	}
}

type reader struct {
	l  Layer
	id layer.ID
}

func (r reader) ReadAt(p []byte, off int64) (int, error) {
	return r.l.ReadAt(context.Background(), r.id, p, off)
}

package suite

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/union/layer"
)

// A model is the plainest layer that can pass: all of it in memory, read by
// archive/tar. The suite is held against it, and against it with mistakes.
type model struct {
	nodes    []*node
	foreign  []layer.ForeignLink
	defects  []layer.Defect
	mistakes map[string]bool
}

type node struct {
	id        layer.ID
	e         layer.Entry
	data      []byte
	kids      map[string]*node
	whiteouts map[string]bool
	pending   string // a hardlink whose target has not been there
}

func newDir() *node {
	return &node{e: layer.Entry{Mode: unix.S_IFDIR | 0o755}, kids: map[string]*node{}, whiteouts: map[string]bool{}}
}

func openModel(mistakes ...string) Open {
	return func(t *testing.T, blob []byte, desc ocispec.Descriptor, diffID digest.Digest) Layer {
		t.Helper()
		if digest.FromBytes(blob) != desc.Digest || int64(len(blob)) != desc.Size {
			t.Fatal("the descriptor is not of this blob")
		}
		raw := decompress(t, blob, desc.MediaType)
		if digest.FromBytes(raw) != diffID {
			t.Fatal("the diff ID is not of this tar")
		}
		m := &model{mistakes: map[string]bool{}}
		for _, name := range mistakes {
			m.mistakes[name] = true
		}
		root := newDir()
		m.read(t, root, tar.NewReader(bytes.NewReader(raw)))
		m.finish(root)
		return m
	}
}

func decompress(t *testing.T, blob []byte, mediaType string) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(blob)
	var err error
	switch mediaType {
	case ocispec.MediaTypeImageLayerGzip:
		r, err = gzip.NewReader(r)
	case ocispec.MediaTypeImageLayerZstd:
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (m *model) read(t *testing.T, root *node, r *tar.Reader) {
	t.Helper()
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		m.add(root, h, data)
	}
}

func clean(name string) string { return path.Clean("/" + name)[1:] }

func (m *model) add(root *node, h *tar.Header, data []byte) {
	name := clean(h.Name)
	dir, base := path.Split(name)
	if strings.Contains("/"+dir, "/.wh..wh.") || dir == "" && strings.Contains(base, "prefetch.landmark") || name == "stargz.index.json" {
		return
	}
	if name == "" {
		root.e = entryFrom(h)
		return
	}
	parent := root
	for part := range strings.FieldsFuncSeq(dir, func(r rune) bool { return r == '/' }) {
		if k := parent.kids[part]; k == nil || k.kids == nil {
			parent.kids[part] = newDir()
		}
		parent = parent.kids[part]
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		m.whiteout(parent, hidden, name)
		return
	}
	n := &node{e: entryFrom(h), data: data}
	switch old := parent.kids[base]; h.Typeflag {
	case tar.TypeDir:
		n.kids, n.whiteouts = map[string]*node{}, map[string]bool{}
		if old != nil && old.kids != nil {
			n.kids, n.whiteouts, n.e.Opaque = old.kids, old.whiteouts, old.e.Opaque
		}
	case tar.TypeLink:
		if n = find(root, h.Linkname); n == nil || n.kids != nil {
			n = &node{pending: clean(h.Linkname)}
		}
	}
	parent.kids[base] = n
}

func (m *model) whiteout(parent *node, hidden, name string) {
	switch {
	case hidden == ".wh..opq":
		parent.e.Opaque = !m.mistakes["opaque is ignored"]
	case strings.HasPrefix(hidden, ".wh."): // aufs's own
	case hidden == "":
		m.defects = append(m.defects, layer.Defect{Path: name, Reason: "a whiteout of nothing"})
	case m.mistakes["whiteouts hide their own layer"]:
		delete(parent.kids, hidden)
		parent.whiteouts[hidden] = true
	default:
		parent.whiteouts[hidden] = true
	}
}

func entryFrom(h *tar.Header) layer.Entry {
	e := layer.Entry{
		Mode: typeBits[h.Typeflag] | uint32(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid), Size: h.Size,
		Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()), Explicit: true,
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		e.Link, e.Size = h.Linkname, int64(len(h.Linkname))
	case tar.TypeGNUSparse:
		e.Mode |= unix.S_IFREG
	case tar.TypeChar, tar.TypeBlock:
		e.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			e.Xattrs = append(e.Xattrs, layer.Xattr{Name: name, Value: []byte(v)})
		}
	}
	return e
}

func find(root *node, name string) *node {
	n := root
	for part := range strings.SplitSeq(clean(name), "/") {
		if n == nil || n.kids == nil {
			return nil
		}
		n = n.kids[part]
	}
	return n
}

// finish resolves what was left open, gives IDs and counts links.
func (m *model) finish(root *node) {
	m.links(root, root, "")
	m.number(root)
}

func (m *model) links(root, dir *node, at string) {
	for _, name := range slices.Sorted(maps.Keys(dir.kids)) {
		k := dir.kids[name]
		switch target := find(root, k.pending); {
		case k.kids != nil:
			m.links(root, k, path.Join(at, name))
		case k.pending == "":
		case target == nil:
			delete(dir.kids, name)
			m.foreign = append(m.foreign, layer.ForeignLink{Name: path.Join(at, name), Target: k.pending})
		case target.kids != nil:
			delete(dir.kids, name)
			m.defects = append(m.defects, layer.Defect{Path: path.Join(at, name), Reason: "a hardlink to a directory"})
		default:
			dir.kids[name] = target
		}
	}
	for name := range dir.whiteouts {
		if k := dir.kids[name]; k != nil {
			delete(dir.whiteouts, name)
			k.e.Opaque = k.kids != nil
		}
	}
}

func (m *model) number(n *node) {
	if n.e.Nlink++; n.e.Nlink > 1 {
		return
	}
	n.id = layer.ID(len(m.nodes))
	m.nodes = append(m.nodes, n)
	for _, name := range slices.Sorted(maps.Keys(n.kids)) {
		m.number(n.kids[name])
	}
}

func (m *model) Len() int                      { return len(m.nodes) }
func (m *model) Entry(id layer.ID) layer.Entry { return m.nodes[id].e }
func (m *model) Defects() []layer.Defect       { return m.defects }
func (m *model) Close() error                  { return nil }

func (m *model) Lookup(dir layer.ID, name string) (layer.ID, bool) {
	n := m.nodes[dir].kids[name]
	if n == nil {
		return 0, false
	}
	return n.id, true
}

func (m *model) Children(dir layer.ID) iter.Seq2[string, layer.ID] {
	return func(yield func(string, layer.ID) bool) {
		names := slices.Sorted(maps.Keys(m.nodes[dir].kids))
		if m.mistakes["children in no order"] {
			slices.Reverse(names)
		}
		for _, name := range names {
			if !yield(name, m.nodes[dir].kids[name].id) {
				return
			}
		}
	}
}

func (m *model) Whiteouts(dir layer.ID) iter.Seq[string] {
	return slices.Values(slices.Sorted(maps.Keys(m.nodes[dir].whiteouts)))
}

func (m *model) ForeignLinks() []layer.ForeignLink {
	var out []layer.ForeignLink
	for _, f := range m.foreign {
		dir, base := path.Split(f.Name)
		out = append(out, layer.ForeignLink{Dir: find(m.nodes[0], dir+".").idOr(m.nodes[0]), Name: base, Target: f.Target})
	}
	return out
}

// idOr: find does not know the root.
func (n *node) idOr(root *node) layer.ID {
	if n == nil {
		return root.id
	}
	return n.id
}

func (m *model) ReadAt(_ context.Context, id layer.ID, p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(m.nodes[id].data).ReadAt(p, off)
	if m.mistakes["short reads are silent"] {
		err = nil
	}
	if m.mistakes["a byte is wrong"] && off == 0 && n > 100_000 {
		p[99_999]++
	}
	return n, err
}

// NextData looks for zeros, 4 KiB at a time.
func (m *model) NextData(id layer.ID, off int64) (start, end int64) {
	const unit = 4096
	data := m.nodes[id].data
	size := int64(len(data))
	isHole := func(at int64) bool {
		return len(bytes.Trim(data[at:min(at/unit*unit+unit, size)], "\x00")) == 0
	}
	for start = off; start < size && isHole(start) && !m.mistakes["no holes"]; {
		start = start/unit*unit + unit
	}
	for end = start; end < size && (!isHole(end) || m.mistakes["no holes"]); {
		end = end/unit*unit + unit
	}
	if m.mistakes["holes have data"] {
		return size, size
	}
	return min(start, size), min(end, size)
}

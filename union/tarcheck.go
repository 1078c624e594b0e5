package union

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLayerDiffers says that a layer just written is not what the mount shows: a
// defect of this program. The layer must not be used.
var ErrLayerDiffers = errors.New("the layer written differs from the mount (this is a bug)")

// A tarCheck reads a layer back while it is written: an independent reader
// (archive/tar) gives the headers, and the tree that they make of the base is
// held against the one that the mount shows, which comes from the calls that
// processes make (list, find), not from the walk that the layer was made of.
//
// It holds in memory the directories that lead to where the reader is, with
// their names, and one path for each node that has several.
type tarCheck struct {
	fs      *FS
	o       TarOptions
	since   Time            // a difference where something changed at this time or later is no defect
	leftOut map[string]bool // paths whose extended attributes are known not to be there
	feed    *feed
	done    chan struct{}

	// of the reading goroutine, until done is closed
	dirs    []*checkDir // from the root to the directory of the last entry
	links   map[nodeKey]string
	rooted  bool // the root has an entry
	changed []Loss
	err     error
}

// A nodeKey tells nodes apart: by inode number in the upper directory, or by ID in the tree.
type nodeKey struct {
	upper bool
	num   uint64
}

// A checkDir is a directory of the layer, while what is in it goes by.
type checkDir struct {
	path   string
	id     ID   // as the mount shows it
	lost   bool // the mount shows it no more: it changed since
	lower  ID   // the directory that the base has at the path; 0: none
	named  []string
	hidden []string // by whiteouts
}

func (f *FS) startCheck(o TarOptions, since Time, leftOut map[string]bool) *tarCheck {
	c := &tarCheck{fs: f, o: o, since: since, leftOut: leftOut, feed: newFeed(), done: make(chan struct{}), links: map[nodeKey]string{}}
	root := &checkDir{id: Root, lower: Root}
	if o.Squash {
		root.lower = 0
	}
	c.dirs = []*checkDir{root}
	go func() {
		defer close(c.done)
		defer c.feed.leave()
		c.err = c.read(c.feed)
	}()
	return c
}

// finish ends the stream and returns what it came to.
func (c *tarCheck) finish() ([]Loss, error) {
	c.feed.end()
	<-c.done
	return c.changed, c.err
}

func (c *tarCheck) read(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLayerDiffers, err)
		}
		if err := c.entry(h); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	return c.ended()
}

// ended compares what only the end of the archive tells.
func (c *tarCheck) ended() error {
	for len(c.dirs) > 0 {
		if err := c.leaveDir(); err != nil {
			return err
		}
	}
	if c.rooted {
		return nil
	}
	root, err := c.fs.showRoot()
	if err != nil {
		return err
	}
	was := lowerShown(c.fs.tree(), Root)
	was.xattrs, root.xattrs = c.o.keptXattrs(was.xattrs), c.o.keptXattrs(root.xattrs)
	if field, got, want := compareShown(was, root); field != "" {
		return c.differs(root.Ctime, "", "no entry, but its %s is %v, not %v", field, want, got)
	}
	return nil
}

// differs reports a difference at a path: a loss where something there changed
// meanwhile, else a defect. ctime is of what the mount shows there, or zero.
func (c *tarCheck) differs(ctime Time, path, format string, args ...any) error {
	if !ctime.before(c.since) || c.dirsChanged() {
		c.changed = append(c.changed, Loss{path, lossChanged})
		return nil
	}
	return fmt.Errorf("%w: /%s: %s", ErrLayerDiffers, path, fmt.Sprintf(format, args...))
}

// dirsChanged tells whether a directory that leads to the reader changed meanwhile: names came or went.
func (c *tarCheck) dirsChanged() bool {
	return slices.ContainsFunc(c.dirs, func(d *checkDir) bool {
		if d.lost {
			return true
		}
		a, err := c.fs.Getattr(context.Background(), d.id, nil)
		return err != nil || !a.Ctime.before(c.since)
	})
}

func (c *tarCheck) entry(h *tar.Header) error {
	if h.Name == "./" && !c.rooted && len(c.dirs[0].named) == 0 && len(c.dirs[0].hidden) == 0 {
		c.rooted = true
		root, err := c.fs.showRoot()
		if err != nil {
			return err
		}
		return c.compare("", h, root)
	}
	p, ok := strings.CutSuffix(h.Name, "/")
	if ok != (h.Typeflag == tar.TypeDir) || !localPath(p) {
		return fmt.Errorf("%w: bad name %q of an entry of type %q", ErrLayerDiffers, h.Name, h.Typeflag)
	}
	d, err := c.enterDir(path.Dir(p))
	if err != nil {
		return err
	}
	name := path.Base(p)
	if hidden, ok := strings.CutPrefix(name, whiteoutPrefix); ok {
		return c.whiteout(d, h, hidden)
	}
	if n := len(d.named); n > 0 && d.named[n-1] >= name {
		return fmt.Errorf("%w: %q stands behind %q", ErrLayerDiffers, p, d.named[n-1])
	}
	d.named = append(d.named, name)
	return c.named(d, name, p, h)
}

// localPath tells whether a path has neither an empty element nor . or .. in it.
func localPath(p string) bool {
	for s := range strings.SplitSeq(p, "/") {
		if s == "" || s == "." || s == ".." {
			return false
		}
	}
	return true
}

// enterDir goes to the directory of an entry, which must have come before.
func (c *tarCheck) enterDir(p string) (*checkDir, error) {
	if p == "." {
		p = ""
	}
	for {
		d := c.dirs[len(c.dirs)-1]
		if d.path == p {
			return d, nil
		}
		if len(c.dirs) == 1 {
			return nil, fmt.Errorf("%w: /%s has entries, but none of its own before them", ErrLayerDiffers, p)
		}
		if err := c.leaveDir(); err != nil {
			return nil, err
		}
	}
}

func (c *tarCheck) named(d *checkDir, name, p string, h *tar.Header) error {
	s, err := c.fs.show(d.id, name, d.lost)
	if err != nil && err != unix.ENOENT && err != unix.ESTALE {
		return fmt.Errorf("look at /%s: %w", p, err)
	}
	gone := err != nil
	if gone {
		err = c.differs(Time{}, p, "not in the mount")
	} else {
		err = c.compare(p, h, s)
	}
	if h.Typeflag == tar.TypeDir {
		c.dirs = append(c.dirs, &checkDir{path: p, id: s.id, lost: gone || !s.IsDir(), lower: c.fs.lowerDir(d.lower, name)})
	}
	return err
}

func (c *tarCheck) whiteout(d *checkDir, h *tar.Header, name string) error {
	p := join(d.path, name)
	if h.Typeflag != tar.TypeReg || h.Size != 0 || h.Mode != 0 || h.Uid != 0 || h.Gid != 0 || h.Linkname != "" || h.ModTime.Unix() != 0 {
		return fmt.Errorf("%w: the whiteout of /%s is no empty file without attributes", ErrLayerDiffers, p)
	}
	if n := len(d.hidden); len(d.named) > 0 || n > 0 && d.hidden[n-1] >= name {
		return fmt.Errorf("%w: the whiteout of /%s is not at its place", ErrLayerDiffers, p)
	}
	d.hidden = append(d.hidden, name)
	if c.fs.lowerAt(d.lower, name) == 0 {
		return fmt.Errorf("%w: a whiteout of /%s, which the base has not", ErrLayerDiffers, p)
	}
	return nil
}

// leaveDir compares the names of a directory when its last entry has gone by.
func (c *tarCheck) leaveDir() error {
	d := c.dirs[len(c.dirs)-1]
	err := c.compareNames(d)
	c.dirs = c.dirs[:len(c.dirs)-1]
	return err
}

func (c *tarCheck) compareNames(d *checkDir) error {
	if d.lost {
		return nil
	}
	list, err := c.fs.listing(d.id)
	if err != nil {
		return fmt.Errorf("list /%s: %w", d.path, err)
	}
	for _, e := range list {
		if err := c.shownName(d, e); err != nil {
			return err
		}
	}
	if d.lower == 0 {
		return nil
	}
	for name := range c.fs.tree().Children(d.lower) {
		if err := c.lowerName(d, list, name); err != nil {
			return err
		}
	}
	return nil
}

// shownName: what the mount shows has an entry, or is as it was.
func (c *tarCheck) shownName(d *checkDir, e Dirent) error {
	p := join(d.path, e.Name)
	if contains(d.hidden, e.Name) {
		return c.differs(Time{}, p, "a whiteout, but the mount shows it")
	}
	if contains(d.named, e.Name) || e.Mode == unix.S_IFSOCK {
		return nil
	}
	if e.ID != 0 && e.ID == c.fs.lowerAt(d.lower, e.Name) && c.fs.asBelow(e.ID) {
		return nil
	}
	s, err := c.fs.show(d.id, e.Name, false)
	if err != nil {
		s.Ctime = Time{}
	}
	return c.differs(s.Ctime, p, "no entry")
}

// asBelow tells whether a node is as the tree has it.
func (f *FS) asBelow(id ID) bool {
	n := f.upperOf(id)
	if n == nil {
		return true
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	var st unix.Stat_t
	return n.sent != Time{} && f.statNode(n, &st) == nil && n.sent == statTime(st.Ctim)
}

// lowerName: what the base has shows, or there is a whiteout.
func (c *tarCheck) lowerName(d *checkDir, list []Dirent, name string) error {
	_, shows := slices.BinarySearchFunc(list, name, func(e Dirent, name string) int { return strings.Compare(e.Name, name) })
	if shows || reserved(name) || contains(d.hidden, name) || contains(d.named, name) {
		return nil
	}
	return c.differs(Time{}, join(d.path, name), "no whiteout, but the mount does not show it")
}

func contains(sorted []string, s string) bool {
	_, ok := slices.BinarySearch(sorted, s)
	return ok
}

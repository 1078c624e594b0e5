package union

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Contain has Readlink answer for a mount whose links must not lead out of it: a target that
// is absolute, or climbs above the root, comes as the relative one that leads, from where the
// link is, to what a process with the image as its root would reach (path_resolution(7)). Other targets stay as they are,
// and what is stored, and committed, is always as it was written. It is called before the FS is used.
//
// A link with several names whose targets would differ is EACCES: the kernel does not say by
// which name it came. Who moves a directory between a process's readlink and its next
// step can still lead that process astray; an image alone cannot.
func (f *FS) Contain() { f.contain = true }

// Contained tells whether Contain was called.
func (f *FS) Contained() bool { return f.contain }

// A step is a name on the way from the root, and what it leads to.
type step struct {
	id   ID
	name string
}

// contained is the target of a symlink as Contain promises it. FS.ns is held.
func (f *FS) contained(id ID, raw string) (string, error) {
	dirs, err := f.homes(id)
	if err != nil {
		return "", err
	}
	var target string
	for i, dir := range dirs {
		one, err := f.containedIn(dir, raw)
		if err != nil {
			return "", err
		}
		if i > 0 && one != target {
			return "", unix.EACCES
		}
		target = one
	}
	return target, nil
}

// homes lists the directories in which a symlink has its names. FS.ns is held.
func (f *FS) homes(id ID) (dirs []ID, err error) {
	n := f.upperOf(id)
	if n == nil {
		for _, name := range f.tree().Names(id) {
			dirs = append(dirs, name.Dir)
		}
		return dirs, nil
	}
	var st unix.Stat_t
	if err := f.statNode(n, &st); err != nil {
		return nil, err
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	for _, p := range n.places {
		dirs = append(dirs, p.dir.id)
	}
	if len(dirs) == 0 {
		return nil, unix.ENOENT
	}
	if uint64(st.Nlink) > uint64(len(dirs)) {
		return nil, unix.EACCES // it has names that nobody has looked up
	}
	return dirs, nil
}

func (f *FS) containedIn(dir ID, raw string) (string, error) {
	names, absolute := splitTarget(raw), strings.HasPrefix(raw, "/")
	home, err := f.wayTo(dir)
	if err != nil {
		return "", err
	}
	climbs, last := 0, -1
	for i, name := range names {
		if name == ".." {
			if last = i; climbs == i {
				climbs++
			}
		}
	}
	if !absolute && last == climbs-1 && climbs <= len(home) {
		return raw, nil
	}
	w := &walker{f: f, at: home, links: maxSymlinks}
	if absolute {
		w.at = nil
	}
	if err := w.follow(names[:last+1]); err != nil {
		return "", err
	}
	target := joinTarget(len(home), w.at, names[last+1:], w.lost)
	if strings.HasSuffix(raw, "/") {
		target += "/"
	}
	if len(target) >= unix.PathMax {
		return "", unix.ENAMETOOLONG
	}
	return target, nil
}

// splitTarget is the names in a path that go anywhere.
func splitTarget(path string) (names []string) {
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// joinTarget leads depth directories up, then along at, then on. Behind a name that is lost
// stands a "." so that nothing is created there through the link.
func joinTarget(depth int, at []step, rest []string, lost bool) string {
	var names []string
	for range depth {
		names = append(names, "..")
	}
	for _, s := range at {
		names = append(names, s.name)
	}
	if lost || len(names)+len(rest) == 0 {
		names = append(names, ".")
	}
	return strings.Join(append(names, rest...), "/")
}

// wayTo is the way from the root to a directory as it is shown. FS.ns is held.
func (f *FS) wayTo(dir ID) (way []step, err error) {
	for dir != Root {
		s, above, ok := f.placeOf(dir)
		if !ok {
			return nil, unix.ENOENT
		}
		way, dir = append([]step{s}, way...), above
	}
	return way, nil
}

// placeOf is the name of a directory, and the directory it is in; ok is false where it was removed.
func (f *FS) placeOf(dir ID) (s step, above ID, ok bool) {
	n := f.node(dir)
	if n == nil {
		if !f.tree().Has(dir) {
			return s, 0, false
		}
		at := f.tree().Names(dir)[0]
		return step{dir, at.Name}, at.Dir, true
	}
	f.tab.Lock()
	defer f.tab.Unlock()
	if n.gone || len(n.places) == 0 {
		return s, 0, false
	}
	return step{dir, n.places[0].name}, n.places[0].dir.id, true
}

// A walker goes along paths as a process with the image as its root would.
type walker struct {
	f     *FS
	at    []step
	links int  // symlinks it may still follow
	lost  bool // the last step of at leads nowhere
}

// follow goes on by some names. FS.ns is held.
func (w *walker) follow(names []string) error {
	for _, name := range names {
		if w.lost {
			return nil
		}
		if name == ".." {
			w.at = w.at[:max(len(w.at)-1, 0)]
			continue
		}
		if err := w.step(name); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) step(name string) error {
	dir := Root
	if len(w.at) > 0 {
		dir = w.at[len(w.at)-1].id
	}
	h, err := w.f.find(dir, name, false)
	if err == nil && w.f.typeOf(h) == unix.S_IFLNK {
		return w.link(h.id)
	}
	w.at = append(w.at[:len(w.at):len(w.at)], step{h.id, name})
	w.lost = err != nil || w.f.typeOf(h) != unix.S_IFDIR
	return nil
}

func (w *walker) link(id ID) error {
	if w.links--; w.links < 0 {
		return unix.ELOOP
	}
	raw, err := w.f.rawLink(id)
	if err != nil {
		return err
	}
	if strings.HasPrefix(raw, "/") {
		w.at = nil
	}
	return w.follow(splitTarget(raw))
}

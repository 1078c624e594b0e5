package audit

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/layerfs/layerfs/union"
)

// owners is what the package databases of an image say of its files.
type owners struct {
	claims map[string]claim  // by path in the tree, whatever symlinks the package's own path goes through
	dirs   map[string]string // what a directory's path leads to
}

// A claim is what a package says of one path.
type claim struct {
	pkg      string
	as       string // the path as the package has it
	conffile bool
	optional bool // it is not missing when it is not there
	sum      sum
}

// A sum is a checksum in the algorithm of a database; no sum has no hex.
type sum struct{ algorithm, hex string }

func newOwners() owners { return owners{claims: map[string]claim{}, dirs: map[string]string{}} }

func (o *owners) has(p string) bool {
	_, ok := o.claims[p]
	return ok
}

// claim notes that a package has a path. One that is noted already keeps its checksum,
// unless the new claim has one.
func (a *auditor) claim(p string, c claim) {
	p = strings.Trim(path.Clean("/"+p), "/")
	if p == "" {
		return
	}
	c.as = p
	real := a.real(p)
	if old, ok := a.owners.claims[real]; ok && c.sum.hex == "" {
		c.sum, c.conffile, c.optional = old.sum, old.conffile || c.conffile, old.optional && c.optional
	}
	a.owners.claims[real] = c
}

// real is where a path is in the tree: packages have /bin/sh where /bin is a link to usr/bin.
func (a *auditor) real(p string) string {
	dir, name := path.Split(p)
	if dir = strings.TrimSuffix(dir, "/"); dir == "" {
		return name
	}
	at, ok := a.owners.dirs[dir]
	if !ok {
		at = dir
		if id, err := a.im.Tree.ResolveFollow(dir); err == nil {
			at = strings.TrimPrefix(a.im.Tree.Path(id), "/")
		}
		a.owners.dirs[dir] = at
	}
	return join(at, name)
}

// databases reads what package databases there are.
func (a *auditor) databases(ctx context.Context) error {
	a.owners = newOwners()
	for _, read := range []func(context.Context) error{a.dpkg, a.apk, a.rpm} {
		if err := read(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (a *auditor) names(dir union.ID) (names []string) {
	for name := range a.im.Tree.Children(dir) {
		names = append(names, name)
	}
	return names
}

// maxDatabase is the longest file of a package database that is read: Debian's status of
// 5,000 packages has 8 MB.
const maxDatabase = 256 << 20

// text reads a file of a package database; one that is not there is empty.
func (a *auditor) text(ctx context.Context, p string) ([]byte, error) {
	id, err := a.im.Tree.ResolveFollow(p)
	if err != nil || a.im.Tree.Attr(id).Type() != modeFile {
		return nil, nil
	}
	size := a.im.Tree.Size(id)
	if size > maxDatabase {
		return nil, fmt.Errorf("read /%s: %d bytes are no package database", p, size)
	}
	b := make([]byte, size)
	n, err := a.im.Tree.ReadAt(ctx, id, b, 0)
	a.result.Read += int64(n)
	return b[:n], err
}

// stanzas calls f for each paragraph of a text, separated by empty lines.
func stanzas(text []byte, f func(lines []string)) {
	for part := range bytes.SplitSeq(text, []byte("\n\n")) {
		if part = bytes.Trim(part, "\n"); len(part) > 0 {
			f(strings.Split(string(part), "\n"))
		}
	}
}

// managed are folders whose content a package manager keeps without owning it.
var managed = []string{"var/lib/dpkg/", "lib/apk/db/", "usr/lib/apk/db/", "var/lib/rpm/", "usr/lib/sysimage/rpm/"}

// unowned finds what no package has, a directory without a single owned file as one.
func (a *auditor) unowned() {
	if len(a.result.Databases) > 0 {
		a.strangers("", union.Root)
	}
}

// strangers reports what no package has below a directory.
func (a *auditor) strangers(dir string, id union.ID) {
	for name, child := range a.im.Tree.Children(id) {
		p := join(dir, name)
		isDir := a.im.Tree.IsDir(child)
		switch {
		case kept(p):
		case a.owners.has(p) || isDir && a.anyOwned(p, child):
			if isDir {
				a.strangers(p, child)
			}
		case !isDir:
			a.add(Unowned, p, child, "in no package")
		default:
			n, bytes := a.count(child)
			a.add(Unowned, p, child, fmt.Sprintf("in no package, as all that is in it: %d files, %d bytes", n, bytes))
			a.list[len(a.list)-1].Files = n
		}
	}
}

func kept(p string) bool {
	for _, dir := range managed {
		if strings.HasPrefix(p+"/", dir) {
			return true
		}
	}
	return false
}

func (a *auditor) anyOwned(dir string, id union.ID) bool {
	for name, child := range a.im.Tree.Children(id) {
		p := join(dir, name)
		if a.owners.has(p) || kept(p) || a.im.Tree.IsDir(child) && a.anyOwned(p, child) {
			return true
		}
	}
	return false
}

func (a *auditor) count(id union.ID) (files int, bytes int64) {
	for _, child := range a.im.Tree.Children(id) {
		if a.im.Tree.IsDir(child) {
			n, b := a.count(child)
			files, bytes = files+n, bytes+b
			continue
		}
		files++
		bytes += a.im.Tree.Size(child)
	}
	return files, bytes
}

// missing finds what a package has and the image has not.
func (a *auditor) missing() {
	for p, c := range a.owners.claims {
		if _, err := a.im.Tree.Resolve(p); err == nil || c.optional {
			continue
		}
		l, how := a.lastSeen(p)
		a.list = append(a.list, Finding{Rule: Missing, Path: c.as, Layer: l, Detail: "of package " + c.pkg + how})
	}
}

// lastSeen is the layer that took a path away, or -1 when no layer had it.
func (a *auditor) lastSeen(p string) (layer int, how string) {
	for i, v := range union.Versions(a.im.Layers, p) {
		if v.Whiteout && i == 0 {
			return v.Layer, fmt.Sprintf("; layer %d deletes it", v.Layer+1)
		}
		if !v.Whiteout {
			return v.Layer, fmt.Sprintf("; layer %d had it", v.Layer+1)
		}
	}
	return -1, "; no layer has it"
}

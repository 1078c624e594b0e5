package layer

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// marks are the extended attributes of an entry of an unpacked layer: those that overlayfs
// keeps for itself, and the others (fs/overlayfs/overlayfs.h, enum ovl_xattr).
type marks struct {
	own                        bool // there are some of overlayfs
	opaque, whiteout, metacopy bool
	redirect                   string
	plain                      []Xattr
}

// Namespaces of overlayfs's own attributes, and of fuse-overlayfs's (its main.c, XATTR_PREFIX).
const (
	trustedOverlay = "trusted.overlay."
	userOverlay    = "user.overlay."
	fuseOverlay    = "user.fuseoverlayfs."
)

// namespaces are the prefixes that count.
func (o DirOptions) namespaces() []string {
	if o.TrustedOnly {
		return []string{trustedOverlay}
	}
	return []string{trustedOverlay, userOverlay, fuseOverlay}
}

// readMarks reads the attributes of the file that path names, which is not followed. A file
// system without attributes has none.
func readMarks(path string, namespaces []string) (m marks, err error) {
	names, err := listXattrs(path)
	if err == unix.ENOTSUP {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	for _, name := range names {
		value, err := getXattr(path, name)
		if err == unix.ENODATA || err == unix.EACCES { // removed meanwhile; user.* of what may not be read (xattr(7))
			continue
		}
		if err != nil {
			return m, fmt.Errorf("%s: %w", name, err)
		}
		m.take(Xattr{name, value}, namespaces)
	}
	return m, nil
}

// take sorts an attribute in.
func (m *marks) take(x Xattr, namespaces []string) {
	for _, prefix := range namespaces {
		own, ok := strings.CutPrefix(x.Name, prefix)
		if !ok {
			continue
		}
		if escaped, ok := strings.CutPrefix(own, "overlay."); ok { // OVL_XATTR_ESCAPE_PREFIX: of a container's own overlayfs
			m.plain = append(m.plain, Xattr{prefix + escaped, x.Value})
			return
		}
		m.overlay(own, x.Value)
		return
	}
	m.plain = append(m.plain, x)
}

// overlay takes up what overlayfs says. "opaque" is "x" where a directory only has whiteouts
// that are attributes; origin, impure, nlink and the like say nothing about what is shown.
func (m *marks) overlay(name string, value []byte) {
	m.own = true
	switch name {
	case "opaque":
		m.opaque = m.opaque || string(value) == "y"
	case "whiteout":
		m.whiteout = true
	case "metacopy":
		m.metacopy = true
	case "redirect":
		m.redirect = string(value)
	}
}

func listXattrs(path string) ([]string, error) {
	buf := make([]byte, 1024)
	for {
		n, err := unix.Llistxattr(path, buf)
		if err == unix.ERANGE && len(buf) < maxXattrs {
			buf = make([]byte, maxXattrs) // XATTR_LIST_MAX
			continue
		}
		if err != nil {
			return nil, err
		}
		var names []string
		for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
			if len(name) > 0 {
				names = append(names, string(name))
			}
		}
		slices.Sort(names)
		return names, nil
	}
}

func getXattr(path, name string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Lgetxattr(path, name, buf)
		if err == unix.ERANGE && len(buf) < maxXattrs {
			buf = make([]byte, maxXattrs) // XATTR_SIZE_MAX
			continue
		}
		if err != nil {
			return nil, err
		}
		return slices.Clip(buf[:n]), nil
	}
}

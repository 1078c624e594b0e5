package union

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrOtherIDs says that an upper directory was made with another IDMap.
var ErrOtherIDs = errors.New("the upper directory was made with other user and group maps")

// overflowID shows for an ID that has no place in a map (/proc/sys/kernel/overflowuid).
const overflowID = 65534

// An IDRange maps N IDs of the image, from C on, to those of the host from H on.
type IDRange struct{ C, H, N uint32 }

// ParseIDRange reads C:H:N.
func ParseIDRange(s string) (IDRange, error) {
	f := strings.Split(s, ":")
	if len(f) != 3 {
		return IDRange{}, fmt.Errorf("id map %q: want C:H:N", s)
	}
	var n [3]uint32
	for i, s := range f {
		v, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return IDRange{}, fmt.Errorf("id map %q: want three numbers C:H:N", strings.Join(f, ":"))
		}
		n[i] = uint32(v)
	}
	r := IDRange{n[0], n[1], n[2]}
	if end := uint64(max(r.C, r.H)) + uint64(r.N); r.N == 0 || end > 1<<32-1 {
		return IDRange{}, fmt.Errorf("id map %q: want 1 or more IDs, all below 2^32-1", s)
	}
	return r, nil
}

func (r IDRange) String() string { return fmt.Sprintf("%d:%d:%d", r.C, r.H, r.N) }

// IDs maps one kind of IDs. An empty one leaves them as they are.
type IDs []IDRange

// Check refuses ranges that overlap on either side: an ID would have two names.
func (m IDs) Check() error {
	overlap := func(a, an, b, bn uint32) bool { return a < b+bn && b < a+an }
	for i, r := range m {
		for _, s := range m[:i] {
			if overlap(r.C, r.N, s.C, s.N) || overlap(r.H, r.N, s.H, s.N) {
				return fmt.Errorf("id maps %v and %v overlap", s, r)
			}
		}
	}
	return nil
}

// host is the host's ID of one in the image.
func (m IDs) host(id uint32) (uint32, bool) {
	for _, r := range m {
		if id >= r.C && id-r.C < r.N {
			return r.H + id - r.C, true
		}
	}
	return unmapped(id, m)
}

// image is the way back.
func (m IDs) image(id uint32) (uint32, bool) {
	for _, r := range m {
		if id >= r.H && id-r.H < r.N {
			return r.C + id - r.H, true
		}
	}
	return unmapped(id, m)
}

func unmapped(id uint32, m IDs) (uint32, bool) {
	if len(m) == 0 {
		return id, true
	}
	return overflowID, false
}

// An IDMap says which IDs of the host the IDs of an image are in a mount, and in
// its upper directory. A commit has the image's again. ACLs are not translated.
type IDMap struct{ UIDs, GIDs IDs }

// None tells whether all IDs stay as they are.
func (m IDMap) None() bool { return len(m.UIDs) == 0 && len(m.GIDs) == 0 }

// String is what parseIDMap reads: ranges of users, "/", ranges of groups.
func (m IDMap) String() string {
	text := func(ids IDs) string {
		var list []string
		for _, r := range ids {
			list = append(list, r.String())
		}
		return strings.Join(list, ",")
	}
	return text(m.UIDs) + "/" + text(m.GIDs)
}

func parseIDMap(s string) (m IDMap, err error) {
	users, groups, _ := strings.Cut(s, "/")
	if m.UIDs, err = parseIDs(users); err != nil {
		return m, err
	}
	m.GIDs, err = parseIDs(groups)
	return m, err
}

func parseIDs(s string) (ids IDs, err error) {
	for r := range strings.SplitSeq(s, ",") {
		if r == "" {
			continue
		}
		v, err := ParseIDRange(r)
		if err != nil {
			return nil, err
		}
		ids = append(ids, v)
	}
	return ids, ids.Check()
}

// OnHost is what a mount shows of a lower node.
func (m IDMap) OnHost(a Attr) Attr {
	a.UID, _ = m.UIDs.host(a.UID)
	a.GID, _ = m.GIDs.host(a.GID)
	return a
}

// inImage is what a layer says of an upper node.
func (m IDMap) inImage(a Attr) Attr {
	a.UID, _ = m.UIDs.image(a.UID)
	a.GID, _ = m.GIDs.image(a.GID)
	return a
}

// chownable refuses owners on the host that no layer could have; as chown(2)
// does in a user namespace without them: EINVAL.
func (m IDMap) chownable(uid, gid *uint32) error {
	if uid != nil {
		if _, ok := m.UIDs.image(*uid); !ok {
			return unix.EINVAL
		}
	}
	if gid != nil {
		if _, ok := m.GIDs.image(*gid); !ok {
			return unix.EINVAL
		}
	}
	return nil
}

// owner is to whom the copy of a lower node belongs on the host; EPERM where that is nobody.
func (m IDMap) owner(a Attr) (uid, gid int, err error) {
	u, ok := m.UIDs.host(a.UID)
	g, ok2 := m.GIDs.host(a.GID)
	if !ok || !ok2 {
		return 0, 0, unix.EPERM
	}
	return int(u), int(g), nil
}

// MapIDs sets the map of a read-only FS; a writable one has that of its upper
// directory. It is called before the FS is used.
func (f *FS) MapIDs(m IDMap) { f.ids = m }

// chooseIDs takes the map that the upper directory was made with, or notes that of a new one.
func (u *Upper) chooseIDs() error {
	v, err := fgetxattr(u.root, u.prefix+xattrIDs)
	if err == nil {
		if u.ids, err = parseIDMap(string(v)); err != nil {
			return err
		}
	}
	switch {
	case u.o.IDs.None(), u.ids.String() == u.o.IDs.String():
		return nil
	case !u.fresh:
		return fmt.Errorf("%w: %s", ErrOtherIDs, u.ids)
	}
	u.ids = u.o.IDs
	return unix.Fsetxattr(u.root, u.prefix+xattrIDs, []byte(u.ids.String()), 0)
}

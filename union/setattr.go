package union

import (
	"context"

	"golang.org/x/sys/unix"
)

// Setattr changes attributes of a node, copying it up first; h is an open file of it, or nil.
func (f *FS) Setattr(ctx context.Context, id ID, h *File, s SetAttr) (Attr, error) {
	if err := f.ids.chownable(s.UID, s.GID); err != nil {
		return Attr{}, err
	}
	size := int64(wholeFile)
	if s.Size != nil {
		size = *s.Size
	}
	f.life.RLock()
	defer f.life.RUnlock()
	n, err := f.copyUp(ctx, id, size)
	if err != nil {
		return Attr{}, err
	}
	open := h.writable() // before ns: an open file's lock comes first
	f.ns.RLock()
	defer f.ns.RUnlock()
	f.writes.RLock()
	err = f.setattr(n, open, s)
	f.writes.RUnlock()
	if err != nil {
		return Attr{}, err
	}
	return f.getattr(id)
}

func (f *FS) setattr(n *node, open int, s SetAttr) error {
	if s.Size != nil {
		if err := f.truncate(n, open, *s.Size); err != nil {
			return err
		}
	}
	return f.withPath(n, func(fd int) error {
		if err := chown(fd, s.UID, s.GID); err != nil {
			return err
		}
		if s.Mode != nil {
			if err := unix.Chmod(procPath(fd, ""), *s.Mode&^unix.S_IFMT); err != nil {
				return err
			}
		}
		return setattrTimes(fd, s)
	})
}

// chown comes before chmod, because it clears setuid bits.
func chown(fd int, uid, gid *uint32) error {
	if uid == nil && gid == nil {
		return nil
	}
	u, g := -1, -1
	if uid != nil {
		u = int(*uid)
	}
	if gid != nil {
		g = int(*gid)
	}
	return unix.Fchownat(fd, "", u, g, unix.AT_EMPTY_PATH)
}

func setattrTimes(fd int, s SetAttr) error {
	choose := func(t *Time, now bool) unix.Timespec {
		switch {
		case now:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		case t != nil:
			return timespec(*t)
		}
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	if s.Atime == nil && s.Mtime == nil && !s.AtimeNow && !s.MtimeNow {
		return nil
	}
	return setTimes(fd, choose(s.Atime, s.AtimeNow), choose(s.Mtime, s.MtimeNow))
}

// truncate uses the descriptor open, if there is one.
func (f *FS) truncate(n *node, open int, size int64) error {
	if n.typ != unix.S_IFREG {
		return unix.EINVAL
	}
	if open >= 0 {
		f.beforeTruncate(open, size)
		return retry(func() error { return unix.Ftruncate(open, size) })
	}
	return f.withPath(n, func(fd int) error {
		w, err := unix.Open(procPath(fd, ""), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(w)
		f.beforeTruncate(w, size)
		return retry(func() error { return unix.Ftruncate(w, size) })
	})
}

package union

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"
)

// escape translates the name a process uses to the name in the upper
// directory. Names that are overlayfs's own get a second "overlay." after the
// prefix, as the kernel does it since 6.7 (overlayfs.rst, "Nesting overlayfs mounts").
func (f *FS) escape(name string) string {
	if rest, ok := strings.CutPrefix(name, f.up.prefix); ok {
		return f.up.prefix + xattrEscape + rest
	}
	return name
}

// unescape is the way back; ok is false for overlayfs's own marks.
func (f *FS) unescape(name string) (_ string, ok bool) {
	rest, own := strings.CutPrefix(name, f.up.prefix)
	if !own {
		return name, true
	}
	rest, ok = strings.CutPrefix(rest, xattrEscape)
	return f.up.prefix + rest, ok
}

// Getxattr reads an extended attribute; ENODATA when there is none.
func (f *FS) Getxattr(_ context.Context, id ID, name string) (value []byte, err error) {
	if f.up != nil {
		f.ns.RLock()
		defer f.ns.RUnlock()
	}
	if n := f.upperOf(id); n != nil {
		err = f.withPath(n, func(fd int) error {
			value, err = lgetxattrAt(fd, "", f.escape(name))
			return err
		})
		return value, err
	}
	if !f.tree().Has(id) {
		return nil, unix.ESTALE
	}
	for _, x := range f.tree().Xattrs(id) {
		if x.Name == name {
			return x.Value, nil
		}
	}
	return nil, unix.ENODATA
}

// Listxattr lists the names of the extended attributes; overlayfs's own marks are not among them.
func (f *FS) Listxattr(_ context.Context, id ID) (names []string, err error) {
	if f.up != nil {
		f.ns.RLock()
		defer f.ns.RUnlock()
	}
	if n := f.upperOf(id); n != nil {
		err = f.withPath(n, func(fd int) error {
			names, err = f.listUpperXattrs(fd)
			return err
		})
		return names, err
	}
	if !f.tree().Has(id) {
		return nil, unix.ESTALE
	}
	for _, x := range f.tree().Xattrs(id) {
		names = append(names, x.Name)
	}
	return names, nil
}

func (f *FS) listUpperXattrs(fd int) ([]string, error) {
	all, err := listxattr(fd)
	var names []string
	for _, name := range all {
		if name, ok := f.unescape(name); ok {
			names = append(names, name)
		}
	}
	return names, err
}

// Setxattr sets an extended attribute; flags are XATTR_CREATE and XATTR_REPLACE.
func (f *FS) Setxattr(ctx context.Context, id ID, name string, value []byte, flags int) error {
	return f.changeXattr(ctx, id, func(fd int) error {
		return unix.Setxattr(procPath(fd, ""), f.escape(name), value, flags)
	})
}

// Removexattr removes an extended attribute; ENODATA when there is none.
func (f *FS) Removexattr(ctx context.Context, id ID, name string) error {
	if _, err := f.Getxattr(ctx, id, name); err != nil {
		return err // no copy-up for nothing
	}
	return f.changeXattr(ctx, id, func(fd int) error {
		return unix.Removexattr(procPath(fd, ""), f.escape(name))
	})
}

func (f *FS) changeXattr(ctx context.Context, id ID, change func(fd int) error) error {
	f.life.RLock()
	defer f.life.RUnlock()
	n, err := f.copyUp(ctx, id, wholeFile)
	if err != nil {
		return err
	}
	f.ns.RLock()
	defer f.ns.RUnlock()
	f.writes.RLock()
	defer f.writes.RUnlock()
	return f.withPath(n, change)
}

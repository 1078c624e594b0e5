package union

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrForeign says that overlayfs left something in an upper directory that shows only together with its own index or lower directories.
var ErrForeign = errors.New("the upper directory was written by overlayfs with options that we cannot read")

// Marks that the kernel's overlayfs sets and we do not (fs/overlayfs/overlayfs.h).
const (
	xattrImpure   = "impure"   // of directories: something in it was copied up
	xattrMetacopy = "metacopy" // of files: the data is still below (metacopy=on)
	xattrNlink    = "nlink"    // of files: copied up by index=on, other names still show from below
	kernelWork    = "work"     // overlayfs's own directories in the work directory
	kernelIndex   = "index"
)

// lookOver looks at all directories of an upper that has been in use: whether
// some were renamed, and for what the kernel's overlayfs may have left since.
// foreign has the files of every directory looked at, not only of those that the kernel marked.
func (u *Upper) lookOver(dir int, path string, foreign bool) error {
	if _, err := lgetxattrAt(dir, "", u.prefix+xattrRedirect); err == nil {
		u.redirects = true
	}
	if _, err := lgetxattrAt(dir, "", u.prefix+xattrImpure); err != nil && !foreign {
		return u.lookBelow(dir, path, foreign, nil)
	}
	return u.lookBelow(dir, path, foreign, u.readable)
}

// usesPrefix tells whether a directory or one below it has one of overlayfs's marks in a namespace.
func (u *Upper) usesPrefix(dir int, prefix string) bool {
	names, _ := listxattr(dir)
	if slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, prefix) }) {
		return true
	}
	entries, _ := readEntries(dir)
	return slices.ContainsFunc(entries, func(e entry) bool {
		if e.typ != unix.S_IFDIR {
			return false
		}
		fd, err := openAt(dir, e.name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		return u.usesPrefix(fd, prefix)
	})
}

// lookBelow looks over the directories in dir, and has file look at the regular files.
func (u *Upper) lookBelow(dir int, path string, foreign bool, file func(dir int, name, path string) error) error {
	entries, err := readEntries(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var err error
		switch {
		case e.typ == unix.S_IFDIR:
			err = u.lookInto(dir, e.name, path, foreign)
		case e.typ == unix.S_IFREG && file != nil:
			err = file(dir, e.name, join(path, e.name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (u *Upper) lookInto(dir int, name, path string, foreign bool) error {
	fd, err := openAt(dir, name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.lookOver(fd, join(path, name), foreign)
}

// readable refuses a file of which overlayfs has a part elsewhere.
func (u *Upper) readable(dir int, name, path string) error {
	switch {
	case u.hasMark(dir, name, xattrMetacopy):
		return fmt.Errorf("%w: metacopy=on: /%s has its data in a lower directory; mount it once with overlayfs and metacopy=off, and write to the file", ErrForeign, path)
	case u.hasMark(dir, name, xattrNlink):
		return fmt.Errorf("%w: index=on: /%s is one name of a hard-linked lower file, the others are only in overlayfs's index", ErrForeign, path)
	}
	return nil
}

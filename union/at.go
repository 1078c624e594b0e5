package union

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// System calls by directory descriptor and name, so that neither long paths nor symlinks can lead astray.

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// procPath names an entry for the system calls that know no descriptors: the
// kernel follows the link in /proc to the open directory itself.
func procPath(fd int, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(fd)
	if name != "" {
		p += "/" + name
	}
	return p
}

// retry repeats a call that a signal interrupted. Go's own preemption signals do that.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

func openAt(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// dup opens the same directory again, with an offset of its own.
func reopenDir(fd int) (int, error) {
	return unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// readNames lists a directory, without "." and "..".
func readNames(dir int) ([]string, error) {
	fd, err := reopenDir(dir)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "upper")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	return names, errno(err)
}

// errno takes the PathError of package os away.
func errno(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// removeAll removes a name and all below it.
func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	names, err := readNames(fd)
	for _, n := range names {
		err = errors.Join(err, removeAll(fd, n))
	}
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// getxattr reads a value of any size.
func getxattr(get func(buf []byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := get(buf)
		if err == nil {
			return buf[:n], nil
		}
		if err != unix.ERANGE {
			return nil, err
		}
		if n, err = get(nil); err != nil {
			return nil, err
		}
		buf = make([]byte, n+64)
	}
}

func fgetxattr(fd int, name string) ([]byte, error) {
	return getxattr(func(b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

// lgetxattrAt reads an xattr of an entry, or with name "" of the descriptor's own node, O_PATH ones included.
func lgetxattrAt(dir int, name, attr string) ([]byte, error) {
	if name == "" {
		return getxattr(func(b []byte) (int, error) { return unix.Getxattr(procPath(dir, ""), attr, b) })
	}
	return getxattr(func(b []byte) (int, error) { return unix.Lgetxattr(procPath(dir, name), attr, b) })
}

// listxattr lists the names of the xattrs of an O_PATH descriptor's node.
func listxattr(fd int) ([]string, error) {
	return splitNames(getxattr(func(b []byte) (int, error) { return unix.Listxattr(procPath(fd, ""), b) }))
}

// listxattrAt lists those of an entry, which may be a symlink.
func listxattrAt(dir int, name string) ([]string, error) {
	return splitNames(getxattr(func(b []byte) (int, error) { return unix.Llistxattr(procPath(dir, name), b) }))
}

func splitNames(b []byte, err error) ([]string, error) {
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00"), nil
}

func timespec(t Time) unix.Timespec { return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)} }

// setTimes sets the times of an O_PATH descriptor's node, of a symlink too.
func setTimes(fd int, atime, mtime unix.Timespec) error {
	ts := []unix.Timespec{atime, mtime}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd, ""), ts, 0)
}

// readlinkAt reads a symlink of any length; name "" means the O_PATH descriptor's own node.
func readlinkAt(dir int, name string) (string, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(dir, name, b)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// parseEntries reads struct linux_dirent64 (include/linux/dirent.h), without "." and "..".
func parseEntries(buf []byte, list []entry) []entry {
	for len(buf) >= 19 {
		ino := binary.NativeEndian.Uint64(buf)
		reclen, typ := binary.NativeEndian.Uint16(buf[16:]), buf[18]
		name, _, _ := bytes.Cut(buf[19:reclen], []byte{0})
		if s := string(name); s != "." && s != ".." {
			list = append(list, entry{s, ino, uint32(typ) << 12})
		}
		buf = buf[reclen:]
	}
	return list
}

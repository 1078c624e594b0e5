package fuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// FSType is the type of our mounts in the kernel's tables.
const FSType = "fuse." + subtype

const subtype = "layerfs"

// A MountInfo is one line of /proc/self/mountinfo.
type MountInfo struct {
	ID, Parent   int
	Major, Minor uint32 // of st_dev; the minor names the FUSE connection in /sys/fs/fuse/connections
	Root         string // the directory of the file system that is mounted: "/" but for bind mounts
	Point        string
	Options      []string // of the mount: "rw", "nosuid", …
	FSType       string
	Source       string   // of ours: the image
	Super        []string // options of the file system: "ro", "user_id=0", …
}

// Dev is the device number as /sys/class/bdi writes it.
func (m MountInfo) Dev() string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// Mounted finds the mount at a directory: the topmost when there are several.
// It reads the kernel's table and never asks the mount itself, so that a dead
// or hanging server does no harm; symlinks before the last name are followed.
func Mounted(dir string) (MountInfo, bool, error) {
	path, err := mountPath(dir)
	if err != nil {
		return MountInfo{}, false, fmt.Errorf("look for a mount at %s: %w", dir, err)
	}
	all, err := mounts()
	if err != nil {
		return MountInfo{}, false, err
	}
	m, ok := topmost(all, path)
	return m, ok, nil
}

func mounts() ([]MountInfo, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(string(b))
}

// mountPath is the path the kernel's table has for a directory. The last name
// is not looked at unless it is no mountpoint: looking would ask the mount.
func mountPath(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	all, err := mounts()
	if err != nil {
		return "", err
	}
	for range maxLinks {
		if _, ok := topmost(all, abs); ok {
			return abs, nil
		}
		if abs, err = resolveParent(abs); err != nil {
			return "", err
		}
		if _, ok := topmost(all, abs); ok {
			return abs, nil
		}
		target, err := os.Readlink(abs)
		if err != nil {
			return abs, nil // no symlink, or nothing: that is for others to say
		}
		if abs = target; !filepath.IsAbs(target) {
			abs = filepath.Join(filepath.Dir(abs), target)
		}
	}
	return "", syscall.ELOOP
}

// maxLinks is how many symlinks the kernel follows (MAXSYMLINKS in include/linux/namei.h).
const maxLinks = 40

// resolveParent resolves the symlinks before the last name. A parent that is missing stays as it is.
func resolveParent(abs string) (string, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return abs, nil
	}
	return filepath.Join(parent, filepath.Base(abs)), err
}

// topmost finds the mount at a path on which no other one lies.
func topmost(all []MountInfo, path string) (top MountInfo, ok bool) {
	covered := map[int]bool{}
	for _, m := range all {
		if m.Point == path {
			covered[m.Parent] = true
		}
	}
	for _, m := range all {
		if m.Point == path && !covered[m.ID] {
			top, ok = m, true
		}
	}
	return top, ok
}

// parseMountinfo reads the format of proc_pid_mountinfo(5).
func parseMountinfo(text string) ([]MountInfo, error) {
	var all []MountInfo
	for line := range strings.Lines(text) {
		m, err := parseMount(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// parseMount reads one line: ID parent major:minor root point options
// [tags…] - type source super-options.
func parseMount(line string) (m MountInfo, err error) {
	bad := fmt.Errorf("parse mountinfo: malformed line %q", line)
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Split(before, " "), strings.Split(after, " ")
	if !ok || len(f) < 6 || len(g) < 3 {
		return m, bad
	}
	var errs [4]error
	m.ID, errs[0] = strconv.Atoi(f[0])
	m.Parent, errs[1] = strconv.Atoi(f[1])
	major, minor, _ := strings.Cut(f[2], ":")
	m.Major, errs[2] = parseUint32(major)
	m.Minor, errs[3] = parseUint32(minor)
	if errors.Join(errs[:]...) != nil {
		return m, bad
	}
	m.Root, m.Point = unescape(f[3]), unescape(f[4])
	m.Options, m.Super = strings.Split(f[5], ","), strings.Split(g[2], ",")
	m.FSType, m.Source = unescape(g[0]), unescape(g[1])
	return m, nil
}

func parseUint32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

// unescape undoes what the kernel does to spaces, tabs, newlines, backslashes
// and hashes: a backslash and three octal digits (mangle in fs/proc_namespace.c).
func unescape(s string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 || i+4 > len(s) {
			return b.String() + s
		}
		n, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			b.WriteString(s[:i+1])
			s = s[i+1:]
			continue
		}
		b.WriteString(s[:i])
		b.WriteByte(byte(n))
		s = s[i+4:]
	}
}

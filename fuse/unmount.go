package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Unmount removes the mount at a directory, also that of a server that has
// died. It is nil where nothing is mounted, and an error where something else
// than ours is. With lazy the mount goes from the tree at once and ends when
// the last file in it is closed; without, an open file is EBUSY.
//
// A process that may not unmount is helped by fusermount3, which lets users
// remove their own FUSE mounts.
func Unmount(dir string, lazy bool) error {
	m, ok, err := Mounted(dir)
	if err != nil || !ok {
		return err
	}
	if m.FSType != FSType {
		return fmt.Errorf("unmount %s: %w (%s)", dir, errNotOurs, m.FSType)
	}
	if err := unmount(m.Point, lazy); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

var errNotOurs = errors.New("the mount there is another's")

func unmount(point string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(point, flags)
	switch err {
	case unix.EPERM:
		return fusermountUnmount(point, lazy)
	case unix.EINVAL: // somebody was faster
		return nil
	}
	return err
}

func fusermountUnmount(point string, lazy bool) error {
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	bin, err := fusermount()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd := exec.Command(bin, append(args, "--", point)...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil {
		return fusermountError(out.String(), err)
	}
	return nil
}

// fusermount finds the program that mounts and unmounts for users.
func fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount", "/bin/fusermount3", "/bin/fusermount"} {
		if bin, err := exec.LookPath(name); err == nil {
			return bin, nil
		}
	}
	return "", errNoFusermount
}

var errNoFusermount = errors.New("not the superuser, and there is no fusermount3 (package fuse3)")

// fusermountError makes one error of what the program said and how it ended,
// with the errno its words mean, so that callers can tell a busy mount.
func fusermountError(said string, err error) error {
	said = strings.TrimSpace(said)
	for _, errno := range []syscall.Errno{syscall.EBUSY, syscall.EPERM, syscall.EACCES, syscall.ENOENT} {
		if strings.Contains(strings.ToLower(said), errno.Error()) {
			return fmt.Errorf("%s: %w", said, errno)
		}
	}
	if said == "" {
		return fmt.Errorf("fusermount3: %w", err)
	}
	return errors.New(said)
}

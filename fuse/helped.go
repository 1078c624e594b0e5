package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// mountHelped has fusermount3 mount, a setuid program. It opens /dev/fuse and
// hands the descriptor over on the socket that _FUSE_COMMFD names
// (util/fusermount.c of libfuse).
func (r *order) mountHelped() (int, error) {
	bin, err := fusermount()
	if err != nil {
		return -1, err
	}
	if r.allowOther && os.Geteuid() != 0 && !userAllowOther("/etc/fuse.conf") {
		return -1, errAllowOther
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	defer func() { _ = unix.Close(pair[0]) }()
	theirs := os.NewFile(uintptr(pair[1]), "fusermount")
	var said bytes.Buffer
	cmd := exec.Command(bin, "-o", strings.Join(r.fusermountOptions(), ","), "--", r.point)
	cmd.Env = []string{"LC_ALL=C", "_FUSE_COMMFD=3"}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = &said
	err = cmd.Run()
	_ = theirs.Close()
	if err != nil {
		return -1, fusermountError(said.String(), err)
	}
	return receiveFD(pair[0])
}

// fusermountOptions are the options as fusermount3 takes them. It sets nosuid and nodev by itself.
func (r *order) fusermountOptions() []string {
	o := append([]string{"fsname=" + escapeOption(r.source), "subtype=" + subtype}, r.fsOptions()...)
	return append(o, r.words...)
}

// escapeOption protects what separates options.
func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}

// userAllowOther tells whether users may let others into their mounts (fuse.conf in mount.fuse3(8)).
func userAllowOther(conf string) bool {
	b, err := os.ReadFile(conf)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}

// receiveFD takes one descriptor from a socket (SCM_RIGHTS in unix(7)).
func receiveFD(socket int) (int, error) {
	b, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("receive the descriptor from fusermount3: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, fmt.Errorf("receive the descriptor from fusermount3: %w", err)
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("fusermount3 sent no descriptor")
}

package fuse

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const aclDefault = "system.posix_acl_default"

// An aclEntry is struct posix_acl_xattr_entry (linux/posix_acl_xattr.h).
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

const (
	aclUserObj, aclUser, aclGroupObj, aclMask, aclOther = 0x01, 0x02, 0x04, 0x10, 0x20
	aclNobody                                           = 0xffffffff
)

func aclValue(entries ...aclEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2) // POSIX_ACL_XATTR_VERSION
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// forUser gives one user rights, and everybody else none.
func forUser(uid uint32) []byte {
	return aclValue(aclEntry{aclUserObj, 7, aclNobody}, aclEntry{aclUser, 7, uid}, aclEntry{aclGroupObj, 5, aclNobody},
		aclEntry{aclMask, 7, aclNobody}, aclEntry{aclOther, 0, aclNobody})
}

// TestACLs does the same in the mount and in a plain directory: rights that an
// ACL gives and takes, inheritance whatever the umask, and the setgid bit.
func TestACLs(t *testing.T) {
	needRoot(t)
	plain := t.TempDir()
	if unix.Setxattr(plain, aclDefault, forUser(1000), 0) != nil || unix.Removexattr(plain, aclDefault) != nil {
		t.Skip("needs ACLs in the temporary directory")
	}
	v := writable(t, "dir d 0755\nfile d/old \"x\" 0640")
	start(t, v)
	if err := os.MkdirAll(filepath.Join(plain, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(plain, "d/old"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	openWay(t, v.Mountpoint)
	openWay(t, plain)
	if got, want := aclCalls(t, v.Mountpoint), aclCalls(t, plain); got != want {
		t.Errorf("in the mount\n%s\nin a plain directory\n%s", got, want)
	}
}

// openWay lets other users reach a directory of t.TempDir.
func openWay(t *testing.T, dir string) {
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// aclCalls returns what the calls said and left.
func aclCalls(t *testing.T, root string) string {
	var log strings.Builder
	at := func(name string) string { return filepath.Join(root, "d", name) }
	do := func(what string, err error) { fmt.Fprintf(&log, "%s: %v\n", what, errnoText(err)) }
	asUser(t, 1000, func() { do("write before", os.WriteFile(at("old"), []byte("y"), 0)) })
	do("give", unix.Setxattr(at("old"), aclAccess, forUser(1000), 0))
	asUser(t, 1000, func() { do("write after", os.WriteFile(at("old"), []byte("y"), 0)) })
	asUser(t, 1001, func() { _, err := os.ReadFile(at("old")); do("read as another", err) })
	do("default", unix.Setxattr(at(""), aclDefault, forUser(1000), 0))
	do("give the directory", unix.Setxattr(at(""), aclAccess, forUser(1000), 0))
	old := unix.Umask(0o077)
	do("mkdir", os.Mkdir(at("sub"), 0o777))
	do("mkfile", os.WriteFile(at("sub/f"), nil, 0o666))
	do("mkfifo", unix.Mkfifo(at("sub/p"), 0o664))
	asUser(t, 1000, func() {
		do("mkfile as user", os.WriteFile(at("sub/mine"), nil, 0o644))
		do("mkdir as user", os.Mkdir(at("sub/dir"), 0o755))
	})
	unix.Umask(old)
	do("setgid", os.WriteFile(at("sgid"), nil, 0o644))
	do("chown", os.Chown(at("sgid"), 1000, 0))
	do("chmod", unix.Chmod(at("sgid"), 0o2775))
	asUser(t, 1000, func() { do("ACL of a stranger's group", unix.Setxattr(at("sgid"), aclAccess, forUser(1002), 0)) })
	do("chmod with a mask", unix.Chmod(at("old"), 0o640))
	for _, name := range []string{"", "old", "sub", "sub/f", "sub/p", "sub/mine", "sub/dir", "sgid"} {
		st := stat(t, at(name))
		fmt.Fprintf(&log, "%s %o %d:%d %x %x\n", name, st.Mode, st.Uid, st.Gid, xattrOf(at(name), aclAccess), xattrOf(at(name), aclDefault))
	}
	return log.String()
}

func errnoText(err error) string {
	switch {
	case err == nil:
		return "ok"
	case os.IsPermission(err):
		return "no"
	}
	return err.Error()
}

func xattrOf(path, name string) []byte {
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return nil
	}
	return b[:n]
}

package audit

import (
	"encoding/binary"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// node looks at the metadata of a node and of all below it.
func (a *auditor) node(p string, id union.ID) {
	a.rights(p, id)
	a.name(p, id)
	if !a.im.Tree.IsDir(id) {
		a.place(p, id)
		return
	}
	for name, child := range a.im.Tree.Children(id) {
		a.node(join(p, name), child)
	}
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func (a *auditor) rights(p string, id union.ID) {
	at := a.im.Tree.Attr(id)
	owner := fmt.Sprintf("owner %d, group %d, mode %04o", at.UID, at.GID, at.Mode&0o7777)
	file := at.Type() == unix.S_IFREG
	if file && at.Mode&unix.S_ISUID != 0 {
		a.add(Setuid, p, id, owner)
	}
	if file && at.Mode&unix.S_ISGID != 0 && at.Mode&unix.S_IXGRP != 0 { // without x: mandatory locking, once
		a.add(Setgid, p, id, owner)
	}
	switch at.Type() {
	case unix.S_IFCHR, unix.S_IFBLK:
		a.add(Device, p, id, fmt.Sprintf("%d, %d; %s", unix.Major(at.Rdev), unix.Minor(at.Rdev), owner))
	case unix.S_IFLNK, unix.S_IFSOCK:
	case unix.S_IFDIR:
		if at.Mode&unix.S_IWOTH != 0 && at.Mode&unix.S_ISVTX == 0 { // sticky: as /tmp
			a.add(WorldWritable, p, id, owner)
		}
	default:
		if at.Mode&unix.S_IWOTH != 0 {
			a.add(WorldWritable, p, id, owner)
		}
	}
	for _, x := range a.im.Tree.Xattrs(id) {
		if x.Name == "security.capability" {
			a.add(Capability, p, id, capabilities(x.Value))
		}
	}
}

// capabilities prints a security.capability as getcap does: linux/capability.h, struct vfs_cap_data.
func capabilities(v []byte) string {
	if len(v) < 12 {
		return fmt.Sprintf("malformed: %x", v)
	}
	word := func(i int) uint64 {
		if len(v) < 4*i+4 {
			return 0
		}
		return uint64(binary.LittleEndian.Uint32(v[4*i:]))
	}
	flags := "="
	if word(0)&1 != 0 { // VFS_CAP_FLAGS_EFFECTIVE
		flags += "e"
	}
	permitted, inheritable := word(1)|word(3)<<32, word(2)|word(4)<<32
	var out []string
	if both := permitted & inheritable; both != 0 {
		out = append(out, capNames(both)+flags+"ip")
	}
	if only := permitted &^ inheritable; only != 0 {
		out = append(out, capNames(only)+flags+"p")
	}
	if only := inheritable &^ permitted; only != 0 {
		out = append(out, capNames(only)+flags+"i")
	}
	if len(v) >= 24 && word(5) != 0 {
		out = append(out, fmt.Sprintf("[rootid=%d]", word(5)))
	}
	return strings.Join(out, " ")
}

func capNames(set uint64) string {
	var names []string
	for i := range 64 {
		if set&(1<<i) == 0 {
			continue
		}
		if i < len(capabilityNames) {
			names = append(names, "cap_"+capabilityNames[i])
		} else {
			names = append(names, fmt.Sprintf("%d", i))
		}
	}
	return strings.Join(names, ",")
}

// capabilityNames are those of linux/capability.h, by number.
var capabilityNames = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap
	linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot
	sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write
	audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore`)

// systemDirs are where a name that begins with a dot hides more than it orders: homes,
// /etc/skel and applications' own folders have such names by custom.
var systemDirs = strings.Fields("bin sbin lib lib64 usr/bin usr/sbin usr/lib usr/lib64 usr/libexec usr/local/bin usr/local/sbin usr/local/lib dev boot tmp var/tmp run var/run")

func (a *auditor) name(p string, id union.ID) {
	if p == "" {
		return
	}
	name := path.Base(p)
	switch {
	case strings.Trim(name, ". ") == "":
		a.add(OddName, p, id, "nothing but dots and blanks")
	case strings.TrimSpace(name) != name:
		a.add(OddName, p, id, "blanks at its begin or end")
	case !utf8.ValidString(name):
		a.add(OddName, p, id, "not UTF-8")
	case strings.ContainsFunc(name, unprintable):
		a.add(OddName, p, id, "characters that do not print, or turn the text around")
	case name[0] == '.' && hides(path.Dir(p)) && !a.owners.has(p):
		a.add(OddName, p, id, "hidden, in a folder of the system")
	}
}

func unprintable(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }

func hides(dir string) bool {
	for _, d := range systemDirs {
		if dir == d {
			return true
		}
	}
	return false
}

// scratch is where programs keep what does not last.
var scratch = strings.Fields("tmp var/tmp dev dev/shm run var/run run/lock var/lock proc sys var/cache var/log var/spool")

func (a *auditor) place(p string, id union.ID) {
	at := a.im.Tree.Attr(id)
	if at.Type() != unix.S_IFREG || at.Mode&0o111 == 0 || a.owners.has(p) {
		return
	}
	for _, d := range scratch {
		if strings.HasPrefix(p, d+"/") {
			a.add(OddPlace, p, id, "executable below /"+d)
			return
		}
	}
}

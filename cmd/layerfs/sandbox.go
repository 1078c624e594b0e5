package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A server parses foreign bytes as long as it lives, and needs little of what the superuser may once
// its mount is there. What it gives up:
//
//   - capabilities (capabilities(7)): a read-only mount keeps CAP_SYS_ADMIN, with which it unmounts, and
//     CAP_DAC_READ_SEARCH, since layers may be other users' files; a writable one also those that give
//     files their owner, mode, device number and attributes;
//   - no_new_privs: no program that it starts, a credential helper, gains anything;
//   - system calls that it has no use for, see deniedCalls.
//
// The holder keeps all of it: it starts servers, and these have mounts to take over.
// landlock(7) is not used, because a process under it cannot unmount, which the server does at
// a signal. Nor is any of this done for other users: their servers unmount by way of fusermount3, which
// is setuid, and have no capabilities.

// What mounts --json says of a sandbox.
const (
	sandboxCaps    = "capabilities"
	sandboxNoPrivs = "no_new_privs"
	sandboxSeccomp = "seccomp"
)

// enterSandbox gives up what the server of a mount does not need, on all threads. It returns
// what is in force; an error says what could not be had.
func enterSandbox(keep []int) (in []string, err error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	var errs []error
	for _, s := range []struct {
		name  string
		enter func() error
	}{
		{sandboxNoPrivs, noNewPrivs},
		{sandboxSeccomp, denyCalls},
		{sandboxCaps, func() error { return keepCaps(keep) }},
	} {
		if err := s.enter(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			continue
		}
		in = append(in, s.name)
	}
	return in, errors.Join(errs...)
}

// sandbox is enterSandbox for this mount. A mount without it is better than none.
//
// It must come before the first request is answered: a system call on all threads stops the program until each
// thread has done it, and a thread that puts data into the page cache (FUSE_NOTIFY_STORE) may wait, where no signal
// reaches it, for a page that another READ of this very server has locked.
func (s *server) sandbox() {
	if s.e.noSandbox {
		s.e.log.Warn("the server keeps all its privileges", "reason", "--no-sandbox")
		return
	}
	in, err := enterSandbox(s.caps())
	s.inSandbox.Store(&in)
	if err != nil {
		s.e.log.Warn("the server keeps privileges that it does not need", "err", err)
	}
}

// caps are the capabilities that this mount's server needs.
func (s *server) caps() []int {
	caps := []int{unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH}
	if s.plan.rw {
		return append(caps, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD, unix.CAP_SETFCAP, unix.CAP_SYS_RESOURCE)
	}
	if s.e.othersRoot() {
		caps = append(caps, unix.CAP_DAC_OVERRIDE) // it writes there
	}
	return caps
}

// othersRoot tells whether the state and the cache are another user's.
func (e *env) othersRoot() bool {
	for _, dir := range []string{e.root, filepath.Join(e.root, "cache"), filepath.Join(e.root, "mounts")} {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil || st.Uid != uint32(os.Geteuid()) {
			return true
		}
	}
	return false
}

// noNewPrivs is inherited by all that is executed (PR_SET_NO_NEW_PRIVS(2const)).
func noNewPrivs() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	return asError(errno)
}

// keepCaps drops all capabilities but those that are in keep and that the process has.
func keepCaps(keep []int) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	var mask [2]uint32
	for _, c := range keep {
		mask[c/32] |= 1 << (c % 32)
	}
	for i := range data {
		data[i].Permitted &= mask[i]
		data[i].Effective, data[i].Inheritable = data[i].Permitted, 0
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])), 0)
	runtime.KeepAlive(&head)
	runtime.KeepAlive(&data)
	return asError(errno)
}

// asError is nil for 0. A program that was linked with C cannot do a system call on all threads: that is ENOTSUP.
func asError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

package main

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deniedCalls are EPERM in a server: ways into other processes and into the kernel, and out of its
// namespaces. umount2(2) and execve(2), which credential helpers need, are not among them.
var deniedCalls = []uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE,
	unix.SYS_MOUNT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSMOUNT, unix.SYS_FSCONFIG, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_SETNS, unix.SYS_UNSHARE,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_BPF,
	unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_QUOTACTL,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	unix.SYS_OPEN_BY_HANDLE_AT,
}

// auditArchs are the architectures whose programs denyCalls knows (linux/audit.h).
var auditArchs = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	seccompNumber = 0
	seccompArch   = 4
)

// x32 is the bit in the numbers of amd64's other ABI, which nobody here calls (__X32_SYSCALL_BIT in asm/unistd.h).
const x32 = 0x40000000

// denyCalls has deniedCalls fail with EPERM from now on, in all threads. It wants no_new_privs or CAP_SYS_ADMIN.
func denyCalls() error {
	arch, known := auditArchs[runtime.GOARCH]
	if !known {
		return errors.ErrUnsupported
	}
	filter := denyFilter(arch, deniedCalls)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	other, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno == 0 && other != 0 {
		return errors.New("a thread has a filter of its own")
	}
	return asError(errno)
}

// denyFilter is the program: another architecture's call, or one of calls, is EPERM; the rest is allowed.
// Jumps are counted from the next instruction.
func denyFilter(arch uint32, calls []uint32) []unix.SockFilter {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
	)
	n := len(calls)
	filter := []unix.SockFilter{
		{Code: load, K: seccompArch},
		{Code: equal, K: arch, Jf: uint8(n + 3)},
		{Code: load, K: seccompNumber},
		{Code: least, K: x32, Jt: uint8(n + 1)},
	}
	for i, c := range calls {
		filter = append(filter, unix.SockFilter{Code: equal, K: c, Jt: uint8(n - i)})
	}
	return append(filter,
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
}

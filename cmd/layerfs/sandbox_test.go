package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// sandboxVar makes TestSandboxedProcess the process in the sandbox: it names a file of another user.
const sandboxVar = "LAYERFS_TEST_SANDBOX"

// TestSandboxedProcess runs this test once more in a process that gives up what a read-only mount's server gives up, and tries.
func TestSandboxedProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if file := os.Getenv(sandboxVar); file != "" {
		trySandbox(t, file)
		return
	}
	file := filepath.Join(t.TempDir(), "foreign")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chown(file, 12345, 12345)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSandboxedProcess$", "-test.v")
	cmd.Env = append(os.Environ(), sandboxVar+"="+file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func trySandbox(t *testing.T, file string) {
	in, err := enterSandbox([]int{unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH})
	withC := errors.Is(err, syscall.ENOTSUP) // see asError
	if err != nil && !withC {
		t.Fatalf("in force: %v; %v", in, err)
	}
	for name, try := range map[string]func() error{
		"ptrace":   func() error { return unix.PtraceAttach(os.Getppid()) },
		"mount":    func() error { return unix.Mount("none", filepath.Dir(file), "tmpfs", 0, "") },
		"unshare":  func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		"chroot":   func() error { return unix.Chroot("/") },
		"bpf":      func() error { _, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0); return asError(e) },
		"io_uring": func() error { _, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0); return asError(e) },
	} {
		for range 2 * runtime.NumCPU() { // on other threads, perhaps
			done := make(chan error)
			go func() {
				runtime.LockOSThread()
				done <- try()
			}()
			if err := <-done; !errors.Is(err, unix.EPERM) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := os.ReadFile(file); err != nil {
		t.Errorf("read another user's file: %v", err) // layers may be
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())), 0); !withC && !errors.Is(err, unix.EACCES) {
		t.Errorf("write another user's file: %v", err)
	}
	if err := exec.Command("/bin/sh", "-c", "grep -q 'NoNewPrivs:.1' /proc/self/status").Run(); err != nil && !withC {
		t.Errorf("a program that it starts: %v", err)
	}
}

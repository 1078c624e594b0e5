package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// threadsOf is the status files of all threads of a process.
func threadsOf(t *testing.T, pid int) (all []string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil { // a thread may have ended
			all = append(all, string(b))
		}
	}
	return all
}

// capsOf is a mask of capabilities as /proc has it, without those that nobody here has.
func capsOf(t *testing.T, caps ...int) string {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var own [2]unix.CapUserData
	if err := unix.Capget(&head, &own[0]); err != nil {
		t.Fatal(err)
	}
	var mask uint64
	for _, c := range caps {
		mask |= 1 << c
	}
	return fmt.Sprintf("%016x", mask&(uint64(own[1].Permitted)<<32|uint64(own[0].Permitted)))
}

// TestSandbox looks at what the kernel says of a server's threads.
func TestSandbox(t *testing.T) {
	needFUSE(t)
	needRoot(t)
	u, f := newHost(t), forge(t)
	f.text("file f \"1\"\nchar null 1:3", "gzip")
	image := f.ref()
	ro := capsOf(t, unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH)
	rw := capsOf(t, unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_MKNOD, unix.CAP_SETFCAP, unix.CAP_SYS_RESOURCE)
	for _, tt := range []struct {
		flags   []string
		caps    string // at most; "": whatever
		seccomp string
	}{
		{nil, ro, "2"},
		{[]string{"--rw"}, rw, "2"},
		{[]string{"--no-sandbox"}, "", "0"},
	} {
		dir := u.mount(image, tt.flags...)
		row := mountsOf(t, u)[0]
		for _, status := range threadsOf(t, int(row["pid"].(float64))) {
			if !slices.Contains(strings.Split(status, "\n"), "Seccomp:\t"+tt.seccomp) {
				t.Errorf("%q: a thread is without its filter, or has one: %s", tt.flags, status)
			}
			for _, line := range []string{"NoNewPrivs:\t1", "CapEff:\t" + tt.caps, "CapPrm:\t" + tt.caps} {
				if tt.caps != "" && !strings.Contains(status, line+"\n") {
					t.Errorf("%q: want %s: %s", tt.flags, line, status)
				}
			}
		}
		if in := fmt.Sprint(row["sandbox"]); (in == "[no_new_privs seccomp capabilities]") != (tt.caps != "") {
			t.Errorf("%q: mounts says %s", tt.flags, in)
		}
		u.run("umount", dir)
	}
}

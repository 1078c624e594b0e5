package integration

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// changing are the system calls that change a file or its name. Of open, those for writing do.
var changing = "open,openat,openat2,creat,truncate,mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat," +
	"chmod,fchmodat,?fchmodat2,chown,lchown,fchownat,utime,utimes,futimesat,utimensat,setxattr,lsetxattr,?setxattrat,removexattr,lremovexattr,?removexattrat,mount"

// TestHostileImagesTouch: while hostile images are mounted and read, no process of layerfs changes anything but its own
// directory, the mountpoint, and what the kernel keeps of a process and of the mount.
func TestHostileImagesTouch(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace: ", err)
	}
	for _, list := range [][]hostile{hostileNames(), hostileTars(), hostileTOCs(), hostileManifests()} {
		for _, h := range list {
			if !h.busy {
				t.Run(h.name, func(t *testing.T) { h.runTraced(t) })
			}
		}
	}
}

func (h *hostile) runTraced(t *testing.T) {
	u := newHost(t)
	f := forge(t)
	h.make(f)
	dir := t.TempDir()
	trace := filepath.Join(t.TempDir(), "trace")
	r := u.traced(trace, append(append([]string{"mount"}, h.flags...), f.ref(), dir)...)
	if r.code != h.code {
		t.Fatalf("exit %d, want %d: %s", r.code, h.code, r.stderr)
	}
	if r.code == 0 {
		walkMount(t, dir)
		pid, holder := u.only().PID, u.only().Holder
		u.try("umount", dir) // says so when a traced server takes long to end
		gone(t, pid, holder)
	}
	calls := 0
	for _, c := range changes(t, trace) {
		calls++
		if !mayChange(c.path, u.root, dir) {
			t.Errorf("%s: %s", c.path, c.line)
		}
	}
	if r.code == 0 && calls < 5 {
		t.Errorf("%d calls were seen: the trace is not of the server", calls)
	}
}

// traced is try under strace, which follows the servers that a command leaves.
func (h *host) traced(trace string, args ...string) result {
	h.t.Helper()
	path, err := program()
	must(h.t, err)
	out, err := os.Create(trace + ".out") // no pipe: a server's tracer keeps it open
	must(h.t, err)
	defer out.Close()
	// -D: the tracer is nobody's parent, so that the command returns when it ends and its servers do not.
	argv := append([]string{"-D", "-f", "-y", "-qq", "-o", trace, "-e", "trace=" + changing, "-e", "signal=none", path, "--root", h.root}, args...)
	cmd := exec.Command("strace", argv...)
	cmd.Env = append(os.Environ(), h.env...)
	cmd.Stderr = out
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		h.t.Fatal(err)
	}
	b, err := os.ReadFile(out.Name())
	must(h.t, err)
	return result{stderr: string(b), code: cmd.ProcessState.ExitCode()}
}

// A changedPath is a system call that changed what path names.
type changedPath struct{ path, line string }

var (
	callOf   = regexp.MustCompile(`^\d+ +(\w+)\(`)
	openedAs = regexp.MustCompile(`= \d+<(.*)>$`)
	// names are the arguments that name files: a descriptor with its path, and a string behind it or alone.
	namesIn = regexp.MustCompile(`(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"`)
)

// changes reads what strace wrote. Calls that failed changed nothing.
func changes(t *testing.T, trace string) (list []changedPath) {
	t.Helper()
	f, err := os.Open(trace)
	must(t, err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		call := callOf.FindStringSubmatch(line)
		if call == nil || strings.Contains(line, "= -1 ") || strings.HasSuffix(line, "<unfinished ...>") {
			continue
		}
		if strings.HasPrefix(call[1], "open") {
			if m := openedAs.FindStringSubmatch(line); m != nil && (strings.Contains(line, "O_WRONLY") || strings.Contains(line, "O_RDWR") || strings.Contains(line, "O_CREAT") || strings.Contains(line, "O_TRUNC")) {
				list = append(list, changedPath{m[1], line})
			}
			continue
		}
		for _, m := range namesIn.FindAllStringSubmatch(line, -1) {
			path := m[2]
			if !filepath.IsAbs(path) && m[1] != "" {
				path = filepath.Join(m[1], path)
			}
			if filepath.IsAbs(path) {
				list = append(list, changedPath{filepath.Clean(path), line})
			}
		}
	}
	must(t, lines.Err())
	return list
}

// mayChange tells whether a path may change. The attributes of other arguments, such as the source of a mount, are no paths.
func mayChange(path, root, dir string) bool {
	path, _, _ = strings.Cut(path, " (deleted)")
	for _, at := range []string{root, dir, "/proc/self", "/proc/thread-self", "/dev/null", "/dev/fuse", "/sys/class/bdi", "/sys/devices/virtual/bdi"} {
		if path == at || strings.HasPrefix(path, at+"/") {
			return true
		}
	}
	return path == "/dev/null<char 1:3>" || strings.HasPrefix(path, "/dev/fuse<") || strings.HasPrefix(path, "/dev/null<")
}

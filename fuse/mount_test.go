package fuse

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

func emptyFS(t *testing.T) *union.FS {
	t.Helper()
	tree, err := union.Merge(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return union.New(tree, nil)
}

// TestMountRefused checks the reasons that are known before anything is mounted.
func TestMountRefused(t *testing.T) {
	dir := t.TempDir()
	file, full := filepath.Join(dir, "file"), dir
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		point  string
		flags  []string
		want   error
		reason error
	}{
		{filepath.Join(dir, "missing"), nil, ErrMountpoint, unix.ENOENT},
		{filepath.Join(file, "below"), nil, ErrMountpoint, unix.ENOTDIR},
		{file, nil, ErrMountpoint, unix.ENOTDIR},
		{full, nil, ErrMountpoint, errNotEmpty},
		{t.TempDir(), []string{"nonsense"}, ErrFlag, ErrFlag},
	} {
		_, err := Mount(Options{FS: emptyFS(t), Mountpoint: tt.point, Flags: tt.flags})
		if !errors.Is(err, tt.want) || !errors.Is(err, tt.reason) {
			t.Errorf("%s %v: got %v, want %v (%v)", tt.point, tt.flags, err, tt.want, tt.reason)
		}
	}
}

func TestOrderFlags(t *testing.T) {
	for _, tt := range []struct {
		words string
		want  uintptr
	}{
		{"", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RDONLY},
		{"suid,dev,rw", unix.MS_RDONLY}, // the tree cannot change, whatever was asked for
		{"suid,nosuid,dev", unix.MS_NOSUID | unix.MS_RDONLY},
		{"defaults,noatime,relatime", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_RELATIME | unix.MS_RDONLY},
		{"noexec,nosymfollow", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOSYMFOLLOW | unix.MS_RDONLY},
	} {
		var words []string
		if tt.words != "" {
			words = strings.Split(tt.words, ",")
		}
		r, err := newOrder(Options{FS: emptyFS(t), Mountpoint: t.TempDir(), Flags: words})
		if err != nil || r.flags != tt.want {
			t.Errorf("%q: got %#x, %v, want %#x", tt.words, r.flags, err, tt.want)
		}
		if !slices.Contains(r.words, "ro") || slices.Contains(r.words, "rw") {
			t.Errorf("%q: fusermount3 would get %q", tt.words, r.words)
		}
	}
}

func TestMountOptions(t *testing.T) {
	v := readOnly(t)
	v.Flags = []string{"noexec", "noatime", "nosymfollow"}
	if os.Geteuid() != 0 {
		v.Flags = v.Flags[:2] // fusermount3 does not know the third
	}
	start(t, v)
	m, ok, err := Mounted(v.Mountpoint)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if m.FSType != FSType || m.Source != "test, image" {
		t.Errorf("mounted as %q from %q", m.FSType, m.Source)
	}
	for _, want := range append([]string{"ro", "nosuid", "nodev"}, v.Flags...) {
		if !slices.Contains(m.Options, want) {
			t.Errorf("option %s is not among %q", want, m.Options)
		}
	}
	if !slices.Contains(m.Super, "default_permissions") {
		t.Errorf("file system options: %q", m.Super)
	}
	if b, err := os.ReadFile("/sys/class/bdi/" + m.Dev() + "/read_ahead_kb"); os.Geteuid() == 0 && err == nil && string(b) != "1024\n" {
		t.Errorf("read-ahead %q", b)
	}
	wantErrno(t, "write on a read-only mount", os.WriteFile(filepath.Join(v.Mountpoint, "x"), nil, 0o644), unix.EROFS)
}

func TestMountTwice(t *testing.T) {
	v := readOnly(t)
	start(t, v)
	_, err := Mount(Options{FS: emptyFS(t), Mountpoint: v.Mountpoint})
	if !errors.Is(err, ErrMountpoint) || !errors.Is(err, errAlready) || !strings.Contains(err.Error(), "test, image") {
		t.Errorf("got %v", err)
	}
}

func TestMountNonEmpty(t *testing.T) {
	v := readOnly(t)
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "hidden"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	v.Flags = []string{"nonempty"}
	start(t, v)
	names, err := os.ReadDir(v.Mountpoint)
	if err != nil || len(names) != 0 {
		t.Errorf("got %v, %v", names, err)
	}
}

func TestUnmount(t *testing.T) {
	if err := Unmount(t.TempDir(), false); err != nil {
		t.Errorf("nothing mounted: %v", err)
	}
	if err := Unmount("/proc", false); !errors.Is(err, errNotOurs) {
		t.Errorf("another's mount: %v", err)
	}
	v := readOnly(t)
	start(t, v)
	busy, err := os.Open(v.Mountpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	wantErrno(t, "a mount in use", Unmount(v.Mountpoint, false), unix.EBUSY)
	if err := Unmount(v.Mountpoint, true); err != nil {
		t.Errorf("lazy: %v", err)
	}
	if _, err := busy.Readdirnames(-1); err != nil {
		t.Errorf("an open directory after a lazy unmount: %v", err)
	}
	if err := Unmount(v.Mountpoint, false); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestUnmountDead removes what a killed server leaves behind.
func TestUnmountDead(t *testing.T) {
	needFUSE(t)
	v := readOnly(t)
	c, first := run(t, v)
	if first != "ready" {
		t.Fatal(first)
	}
	c.kill()
	if _, err := os.Stat(v.Mountpoint); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("a dead mount answers with %v", err)
	}
	if _, ok, err := Mounted(v.Mountpoint); !ok || err != nil {
		t.Errorf("a dead mount: %v, %v", ok, err)
	}
	if _, err := Mount(Options{FS: emptyFS(t), Mountpoint: v.Mountpoint}); !errors.Is(err, errAlready) {
		t.Errorf("a mount over a dead one: %v", err)
	}
	if err := Unmount(v.Mountpoint, false); err != nil {
		t.Error(err)
	}
	if _, ok, err := Mounted(v.Mountpoint); ok || err != nil {
		t.Errorf("after the unmount: %v, %v", ok, err)
	}
}

func TestUserAllowOther(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                 false,
		"#user_allow_other\n":              false,
		"mount_max = 3\nuser_allow_other":  true,
		"  user_allow_other # for all\n":   true,
		"user_allow_other_not\n":           false,
		"mount_max = 1 # user_allow_other": false,
	} {
		conf := filepath.Join(t.TempDir(), "fuse.conf")
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := userAllowOther(conf); got != want {
			t.Errorf("%q: got %v", text, got)
		}
	}
	if userAllowOther(filepath.Join(t.TempDir(), "missing")) {
		t.Error("no file allows nothing")
	}
}

func TestFusermountError(t *testing.T) {
	cause := errors.New("exit status 1")
	for said, want := range map[string]error{
		"": cause,
		"fusermount3: failed to unmount /x: Device or resource busy\n":             unix.EBUSY,
		"fusermount3: user has no write access to mountpoint /x":                   nil,
		"fusermount3: mount failed: Operation not permitted":                       unix.EPERM,
		"fusermount3: failed to access mountpoint /x: No such file or directory\n": unix.ENOENT,
		"fusermount3: failed to open /dev/fuse: Permission denied":                 unix.EACCES,
	} {
		err := fusermountError(said, cause)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", said, err, want)
		}
	}
}

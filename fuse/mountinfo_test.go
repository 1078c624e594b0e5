package fuse

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const mountinfoText = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 22 0:50 / /mnt/a\040b rw,nosuid,nodev - fuse.layerfs oci:dir\134x:tag ro,user_id=0
31 22 0:51 / /mnt/x rw shared:2 master:3 - tmpfs tmpfs rw
33 31 0:53 / /mnt/x rw - fuse.layerfs top rw
32 22 0:52 /sub /mnt/tab\011nl\012hash\043 ro - ext4 /dev/sdb ro
`

func TestParseMountinfo(t *testing.T) {
	all, err := parseMountinfo(mountinfoText)
	if err != nil {
		t.Fatal(err)
	}
	want := MountInfo{ID: 30, Parent: 22, Major: 0, Minor: 50, Root: "/", Point: "/mnt/a b",
		Options: []string{"rw", "nosuid", "nodev"}, FSType: FSType, Source: `oci:dir\x:tag`, Super: []string{"ro", "user_id=0"}}
	if len(all) != 5 || !reflect.DeepEqual(all[1], want) {
		t.Errorf("got %+v, want %+v", all, want)
	}
	if got := all[4].Point; got != "/mnt/tab\tnl\nhash#" {
		t.Errorf("point %q", got)
	}
	if got := all[1].Dev(); got != "0:50" {
		t.Errorf("device %q", got)
	}
}

func TestParseMountinfoRefuses(t *testing.T) {
	for _, line := range []string{
		"", "x", "1 2 3:4 / / rw", "1 2 3:4 / rw - a b c", "1 2 3:4 / / rw - a b",
		"x 2 3:4 / / rw - a b c", "1 x 3:4 / / rw - a b c", "1 2 3 / / rw - a b c", "1 2 3:-4 / / rw - a b c",
	} {
		if m, err := parseMount(line); err == nil {
			t.Errorf("%q: got %+v, want an error", line, m)
		}
	}
}

func TestTopmost(t *testing.T) {
	all, err := parseMountinfo(mountinfoText)
	if err != nil {
		t.Fatal(err)
	}
	reversed := append([]MountInfo{all[3], all[2]}, all[0])
	for _, table := range [][]MountInfo{all, reversed} {
		if m, ok := topmost(table, "/mnt/x"); !ok || m.Source != "top" {
			t.Errorf("got %+v", m)
		}
	}
	if m, ok := topmost(all, "/mnt"); ok {
		t.Errorf("got %+v for a directory that is no mountpoint", m)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"":           "",
		`a\040b`:     "a b",
		`\134040`:    `\040`,
		`\`:          `\`,
		`\04`:        `\04`,
		`\999x\040`:  `\999x `,
		`\777`:       `\777`,
		`end\011`:    "end\t",
		"\xff\\134x": "\xff\\x",
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add(mountinfoText)
	f.Add("1 2 3:4 / /\\040 rw - a b c")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseMountinfo(text)
		if err != nil {
			return
		}
		if lines := strings.Count(text, "\n") + 1; len(all) > lines {
			t.Errorf("%d mounts of %d lines", len(all), lines)
		}
		for _, m := range all {
			if got, ok := topmost(all, m.Point); ok && got.Point != m.Point {
				t.Errorf("topmost(%q) is at %q", m.Point, got.Point)
			}
		}
	})
}

func TestMounted(t *testing.T) {
	if _, ok, err := Mounted(t.TempDir()); ok || err != nil {
		t.Errorf("an ordinary directory: %v, %v", ok, err)
	}
	if _, ok, err := Mounted(filepath.Join(t.TempDir(), "missing", "more")); ok || err != nil {
		t.Errorf("nothing: %v, %v", ok, err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc", link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/proc", "/proc/../proc/", link} {
		if m, ok, err := Mounted(dir); !ok || err != nil || m.FSType != "proc" || m.Point != "/proc" {
			t.Errorf("%s: %+v, %v, %v", dir, m, ok, err)
		}
	}
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := Mounted(loop); ok || err == nil {
		t.Errorf("a loop of symlinks: %v, %v", ok, err)
	}
}

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// userScript works in a mount without privileges and commits it; $1 is the program, $2 an image, $3 and on the flags.
const userScript = `set -e
program=$1 image=$2; shift 2
dir=$(mktemp -d); trap '"$program" --root $dir/root -q umount $dir/mnt || :; rm -rf $dir' EXIT
layerfs() { "$program" --root $dir/root -q "$@"; }
mkdir $dir/mnt
layerfs mount "$@" $image $dir/mnt >/dev/null
cd $dir/mnt
echo more >> etc/motd
rm -r data
mkdir new; echo x > new/file; ln new/file new/link; ln -s /etc new/sym
mv etc etc2
cd /
layerfs commit $dir/mnt oci:$dir/out:new >/dev/null
stat -c 'mount %u:%g' $dir/mnt/new/file
cat $dir/mnt/etc2/motd
find $dir/mnt -type c
layerfs umount $dir/mnt
layerfs cat oci:$dir/out:new etc2/motd
layerfs ls -l oci:$dir/out:new /new
`

// TestUnprivileged mounts through fusermount3, and by itself in a user namespace.
func TestUnprivileged(t *testing.T) {
	needMount(t)
	s := sampleRegistry(t)
	h := newHost(t)
	dir := t.TempDir()
	h.run("copy", s.Host()+"/sample", "oci:"+dir+"/image:latest")
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	openTo(t, dir, bin)
	args := []string{filepath.Join(dir, "layerfs"), "oci:" + dir + "/image:latest", "--rw"}
	for _, tt := range []struct {
		name  string
		in    []string
		flags []string
		owner string
	}{
		{"fusermount3", nil, []string{"--uid-map", "0:1000:1", "--gid-map", "0:1000:1"}, "1000:1000"},
		{"user namespace", []string{"unshare", "-Urm"}, nil, "0:0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := asPlainUser(t, append(append(tt.in, "sh", "-c", userScript, "sh"), append(args, tt.flags...)...))
			if !strings.Contains(out, "mount "+tt.owner+"\n") || strings.Count(out, "more\n") != 2 {
				t.Errorf("the script said:\n%s", out)
			}
		})
	}
}

// openTo lets everybody read the image and run the program from dir.
func openTo(t *testing.T, dir, bin string) {
	t.Helper()
	for _, cmd := range [][]string{{"cp", bin, dir + "/layerfs"}, {"chmod", "-R", "a+rX", filepath.Dir(dir)}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", cmd, err, out)
		}
	}
}

// asPlainUser runs a command as user 1000 in a mount namespace of its own, in
// which everybody may open /dev/fuse, as distributions have it.
func asPlainUser(t *testing.T, cmd []string) string {
	t.Helper()
	needRoot(t)
	const prepare = `mount -t tmpfs -o dev,mode=0755 none /mnt && mknod -m 666 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse || exit 77
exec setpriv --reuid 1000 --regid 1000 --clear-groups "$@"`
	for _, tool := range []string{"unshare", "setpriv", "fusermount3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	c := exec.Command("unshare", append([]string{"-m", "sh", "-c", prepare, "sh"}, cmd...)...)
	c.Dir, c.Env = "/", append(os.Environ(), "TMPDIR=/tmp", "HOME=/tmp")
	out, err := c.CombinedOutput()
	if c.ProcessState.ExitCode() == 77 || strings.Contains(string(out), "unshare failed") {
		t.Skipf("needs namespaces: %s", out)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
)

var demoCommand = command{
	name: "demo", args: "", short: "Run the whole loop on a sample image, with a registry in the process",
	long: `
Starts a registry on a port of the loopback, puts an image into it, and runs
the commands a user would type, printing each. Needs /dev/fuse and nothing else.
Leaves nothing behind.`,
	setup: func(*pflag.FlagSet) runFunc {
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("demo", args, 0, 0); err != nil {
				return err
			}
			return e.demo(ctx)
		}
	},
}

// The layers of the sample image. The second one is eStargz: mounted by its
// table of contents, its big file fetched only by who reads it.
const (
	demoBase = `
dir  etc
file etc/motd "Welcome to the sample image.\n"
file etc/obsolete.conf "old = true\n"
dir  usr
dir  usr/share
file usr/share/readme "Layer 1 has this file, and layer 3 another version of it.\n"
symlink usr/share/motd ../../etc/motd
dir  tmp 01777
`
	demoData = `
dir    srv
file   srv/config.json "{\"name\": \"sample\"}\n"
random srv/model.bin 24MiB
random srv/table.bin 200KiB
link   srv/config.link srv/config.json
`
	demoTop = `
whiteout etc/obsolete.conf
file usr/share/readme "This version is from layer 3.\n"
file etc/capable "" user.origin="layer 3"
`
)

// demoImage puts the sample image into a registry.
func demoImage(ctx context.Context, s *registrytest.Server) error {
	var im registrytest.Image
	for i, text := range []string{demoBase, demoData, demoTop} {
		format := "gzip"
		if i == 1 {
			format = "estargz"
		}
		blob, desc, diffID, err := demoLayer(ctx, text, format)
		if err != nil {
			return err
		}
		im.Layers = append(im.Layers, registrytest.Layer{Blob: blob, Desc: desc, DiffID: diffID})
		im.Config.History = append(im.Config.History, ocispec.History{CreatedBy: []string{"COPY base /", "COPY data /srv (eStargz)", "RUN rm /etc/obsolete.conf && update-readme"}[i]})
	}
	im.Config.Config.Cmd = []string{"/bin/sh"}
	s.PushImage("demo/sample:latest", im)
	return nil
}

func demoLayer(ctx context.Context, text, algorithm string) ([]byte, ocispec.Descriptor, digest.Digest, error) {
	var blob bytes.Buffer
	enc, err := layer.Encode(ctx, &blob, bytes.NewReader(layertest.Tar(text)), layer.Compression{Algorithm: algorithm})
	return blob.Bytes(), enc.Descriptor, enc.DiffID, err
}

// A demonstration runs commands and prints them as a user would type them.
type demonstration struct {
	e    *env
	dir  string
	host string
	vars *strings.Replacer // what is long or made up, by the names that are printed
}

func (e *env) demo(ctx context.Context) (err error) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("demo: /dev/fuse is missing; load the kernel module with \"modprobe fuse\", or give the container the device")
	}
	dir, err := os.MkdirTemp("", "layerfs-demo-")
	if err != nil {
		return err
	}
	s := registrytest.New(registrytest.Options{})
	defer s.Close()
	if err := demoImage(ctx, s); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	d := &demonstration{e: e, dir: dir, host: s.Host()}
	d.vars = strings.NewReplacer("$IMAGE", d.host+"/demo/sample", "$NEW", d.host+"/demo/changed:v1", "$DIR", dir)
	defer func() { err = errors.Join(err, d.cleanUp()) }()
	return d.play(ctx)
}

// The script: a comment, a command of ours, or one of the shell.
const demoScript = `
# An image in a registry: three layers, the second one eStargz.
layerfs history $IMAGE
# Mount it. Of the big files nothing is fetched until somebody reads them.
mkdir $DIR/ro
layerfs mount $IMAGE $DIR/ro
ls -l $DIR/ro/srv $DIR/ro/etc
cat $DIR/ro/srv/config.json $DIR/ro/usr/share/motd
layerfs mounts
# Which layer does a file come from, and what did the others have?
layerfs which $IMAGE usr/share/readme etc/obsolete.conf
# Without a mount.
layerfs ls -l $IMAGE /usr/share
layerfs cat $IMAGE /usr/share/readme
# A writable mount: changes go to a layer of its own.
mkdir $DIR/rw
layerfs mount --rw $IMAGE $DIR/rw
echo 'Changed by the demo.' >$DIR/rw/etc/motd
mkdir $DIR/rw/srv/new && echo 42 >$DIR/rw/srv/new/answer
rm $DIR/rw/srv/config.link
layerfs diff $DIR/rw
# Commit it as a new image and push it. The base's layers stay where they are.
layerfs commit -m 'made by the demo' --change 'CMD ["/srv/new/answer"]' $DIR/rw $NEW
# Mount the result.
mkdir $DIR/new
layerfs mount $NEW $DIR/new
cat $DIR/new/etc/motd $DIR/new/srv/new/answer
layerfs history $NEW
layerfs umount $DIR/ro $DIR/rw $DIR/new
layerfs mounts
`

func (d *demonstration) play(ctx context.Context) error {
	for line := range strings.Lines(strings.TrimSpace(demoScript)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			fmt.Fprintf(d.e.stdout, "\n%s\n", line)
			continue
		}
		if err := d.run(ctx, line); err != nil {
			return fmt.Errorf("demo: %s: %w", line, err)
		}
	}
	fmt.Fprintf(d.e.stdout, "\n# Done. \"layerfs help\" lists what else there is.\n")
	return nil
}

// run prints a command with its variables filled in and runs it by the shell.
func (d *demonstration) run(ctx context.Context, line string) error {
	line = d.vars.Replace(line)
	fmt.Fprintf(d.e.stdout, "$ %s\n", line)
	if err := d.flush(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `layerfs() { "$LAYERFS_DEMO" "$@"; }; `+line)
	cmd.Env = append(os.Environ(), "LAYERFS_DEMO=/proc/"+fmt.Sprint(os.Getpid())+"/exe", "LAYERFS_ROOT="+filepath.Join(d.dir, "root"), "LC_ALL=C")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	_, copyErr := io.Copy(d.e.stdout, &out)
	return errors.Join(err, copyErr, d.flush())
}

func (d *demonstration) flush() error {
	if f, ok := d.e.stdout.(interface{ Flush() error }); ok {
		return f.Flush()
	}
	return nil
}

// cleanUp unmounts what a failure or an interrupt left, and removes the files.
func (d *demonstration) cleanUp() error {
	e := *d.e
	e.root = filepath.Join(d.dir, "root")
	states, _, err := e.states()
	for _, s := range states {
		err = errors.Join(err, e.umount(context.Background(), s.Mountpoint, false))
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(d.dir)
}

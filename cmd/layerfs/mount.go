package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/layerfs/layerfs/fuse"
	"github.com/layerfs/layerfs/union"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

var mountCommand = command{
	name: "mount", args: "IMAGE DIR", short: "Show an image as a directory",
	long: `
The command returns when the mount answers, and prints DIR. A server of its own
stays in the background until "layerfs umount DIR".

IMAGE is NAME[:TAG] or NAME@DIGEST in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG]
or docker-archive:FILE[:REF]; or an image or container on a disk that no engine uses:
docker-root:DIR#ID, containers-storage:DIR#ID, containerd-root:DIR#ID ("layerfs images DIR"
and "layerfs containers DIR" list them), or unpacked layers, the topmost first:
dir:PATH[:PATH…]. Nothing is written there.

What an image reads in the first minute after its first read is kept in the cache as
its profile, and fetched beside the start of the next mount (--prefetch auto);
"layerfs inspect --profile IMAGE" prints it. Whoever reads everything (tar, a
virus scanner) does not change it.

With --rw the mount is writable. What is written is kept under --root, one
container layer for each mountpoint, and used again at the next mount there;
"layerfs commit DIR DEST" makes it a layer of a new image.`,
	setup: setupMount,
}

// mountFlags are the flags of mount.
type mountFlags struct {
	foreground, rw, ephemeral, force bool
	meta                             bool
	forensic, evidenceFiles          bool
	upper, work, layers, prefetch    string
	index, evidence, symlinks        string
	maxFetch                         string
	options                          []string
	ids                              idFlags
	wait                             time.Duration
}

// defaultWait is how long a read waits for a registry that has stopped to answer.
const defaultWait = time.Minute

func setupMount(flags *pflag.FlagSet) runFunc {
	var m mountFlags
	flags.BoolVarP(&m.foreground, "foreground", "f", false, "stay; SIGINT and SIGTERM unmount")
	flags.BoolVar(&m.rw, "rw", false, "writable, with the container layer of this mountpoint")
	flags.StringVar(&m.upper, "upper", "", "writable, with this upper directory")
	flags.StringVar(&m.work, "work", "", "work directory of --upper, on the same file system (default UPPER.work)")
	flags.BoolVar(&m.ephemeral, "ephemeral", false, "writable; what is written is thrown away at unmount")
	flags.BoolVar(&m.force, "force-upper", false, "accept an upper directory that was made on another image")
	flags.StringVar(&m.prefetch, "prefetch", prefetchAuto, "what to fetch before it is read, in the background: none; auto: what earlier mounts of the image read when it started; all: everything")
	flags.StringVar(&m.index, "index", indexAuto, indexUsage)
	flags.StringVar(&m.layers, "layers", "", "show only layer N, or M-N, counted from 1 at the base")
	flags.StringVar(&m.symlinks, "symlinks", symlinksRaw, symlinksUsage)
	flags.BoolVar(&m.meta, "meta", false, "add the hidden folder /.layerfs: manifest.json config.json history.json status.json layers/N/… deleted/PATH versions/PATH/N; and the extended attributes user.layerfs.layer, .digest and .created_by of every file, which no list has")
	flags.DurationVar(&m.wait, "wait-registry", defaultWait, "how long a read waits for a registry that does not answer before it fails with EIO; 0: some seconds")
	flags.StringVar(&m.maxFetch, "max-fetch", "", "refuse to fetch more of the layers than this in the life of the mount, background included: reads of what is not in the cache fail with EIO then")
	flags.BoolVar(&m.forensic, "forensic", false, "for an examination: read-only, nosuid, nodev, noexec, nosymfollow, --index tar, --prefetch none; wants --evidence")
	flags.StringVar(&m.evidence, "evidence", "", "append a line of JSON to this file for every request, check, mount and unmount; see \"layerfs evidence\"")
	flags.BoolVar(&m.evidenceFiles, "evidence-files", false, "with --evidence on a read-only mount: a line for every file that is opened, and who opens it")
	flags.StringArrayVarP(&m.options, "options", "o", nil, "mount options: ro rw dev suid noexec noatime allow_other …")
	m.ids.add(flags)
	return func(ctx context.Context, e *env, args []string) error {
		if err := wantArgs("mount [flags] IMAGE DIR", args, 2, 2); err != nil {
			return err
		}
		if m.forensic {
			if err := m.examine(); err != nil {
				return err
			}
		}
		if m.wait < 0 {
			return usageError("--wait-registry: want a duration, 0 or more")
		}
		e.waitRegistry, e.stale = m.wait, !m.forensic
		p, err := e.planMount(args[0], args[1], m)
		if err != nil {
			return err
		}
		return e.mount(ctx, p)
	}
}

// A mountPlan is a mount command understood: what to mount where, and how.
type mountPlan struct {
	image, dir    string
	asked         string    // of a mount taken over: the image as the user gave it
	started       time.Time // likewise: when it was mounted
	rw            bool
	upper, work   string
	ephemeral     bool
	force         bool
	ids           union.IDMap
	span          span
	flags         []string // mount options for the kernel
	allowOther    bool
	foreground    bool
	prefetch      string // none, auto, all
	index         string // auto, toc, soci, tar
	forensic      bool
	evidence      string // the log, "": none
	evidenceFiles bool   // in it
	meta          bool
	contain       bool  // --symlinks contain
	maxFetch      int64 // 0: no limit
}

// examine turns on all that --forensic means.
func (m *mountFlags) examine() error {
	switch {
	case m.evidence == "":
		return usageError("--forensic wants --evidence FILE, where every request and check is written down")
	case m.rw || m.upper != "" || m.ephemeral:
		return usageError("--forensic is read-only")
	case m.index != indexAuto && m.index != indexTar:
		return usageError("--forensic reads the tar itself: it does not go with --index " + m.index)
	case m.symlinks == symlinksContain:
		return usageError("--forensic shows links as they are: it does not go with --symlinks contain")
	case m.prefetch == prefetchAll:
		return usageError("--forensic fetches what is read and no more; \"layerfs pull\" fetches all")
	}
	for _, list := range m.options {
		for _, o := range []string{"rw", "dev", "suid", "exec"} {
			if slices.Contains(strings.Split(list, ","), o) {
				return usageError("--forensic does not go with -o " + o)
			}
		}
	}
	m.index, m.prefetch = indexTar, prefetchNone
	m.options = append(m.options, "ro,nosuid,nodev,noexec,nosymfollow")
	return nil
}

func (e *env) planMount(image, dir string, m mountFlags) (*mountPlan, error) {
	p := &mountPlan{image: image, foreground: m.foreground, ephemeral: m.ephemeral, force: m.force, prefetch: m.prefetch, index: m.index, forensic: m.forensic, evidence: m.evidence, evidenceFiles: m.evidenceFiles, meta: m.meta}
	p.rw = m.rw || m.upper != "" || m.ephemeral
	if m.prefetch != prefetchNone && m.prefetch != prefetchAuto && m.prefetch != prefetchAll {
		return nil, usageError("--prefetch " + m.prefetch + ": want none, auto or all")
	}
	if !slices.Contains(indexes, m.index) {
		return nil, usageError("--index " + m.index + ": want " + strings.Join(indexes, ", "))
	}
	if m.work != "" && m.upper == "" {
		return nil, usageError("--work wants --upper")
	}
	if m.ephemeral && m.upper != "" {
		return nil, usageError("--ephemeral throws away what is written; it does not go with --upper")
	}
	var err error
	if p.ids, err = m.ids.parse(); err != nil {
		return nil, err
	}
	if p.span, err = parseSpan(m.layers); err != nil {
		return nil, err
	}
	if err := p.applyOptions(m.options); err != nil {
		return nil, err
	}
	if m.evidenceFiles && (m.evidence == "" || p.rw) {
		return nil, usageError("--evidence-files wants --evidence, on a read-only mount")
	}
	if p.meta && (slices.Contains(p.flags, "suid") || slices.Contains(p.flags, "dev")) {
		return nil, usageError("--meta shows setuid programs and devices that the image has deleted: it does not go with -o suid and -o dev")
	}
	if p.maxFetch, err = parseBudget(m.maxFetch); err != nil {
		return nil, err
	}
	if err := p.setSymlinks(m.symlinks); err != nil {
		return nil, err
	}
	if p.dir, err = mountpoint(dir); err != nil {
		return nil, fmt.Errorf("%w: %w", fuse.ErrMountpoint, err)
	}
	if m.upper != "" && m.work == "" {
		m.work = strings.TrimRight(m.upper, "/") + ".work"
	}
	return p, e.placeUpper(p, m)
}

// placeUpper decides where the container layer lives.
func (e *env) placeUpper(p *mountPlan, m mountFlags) (err error) {
	if !p.rw {
		return nil
	}
	if p.span != (span{}) {
		return usageError("--layers is for looking: it does not go with a writable mount")
	}
	p.upper, p.work = m.upper, m.work
	if p.upper == "" {
		kind := "containers"
		if p.ephemeral {
			kind = "ephemeral"
		}
		base := filepath.Join(e.root, kind, mountID(p.dir))
		p.upper, p.work = filepath.Join(base, "upper"), filepath.Join(base, "work")
	}
	if p.upper, err = filepath.Abs(p.upper); err != nil {
		return err
	}
	p.work, err = filepath.Abs(p.work)
	return err
}

func parseSpan(s string) (span, error) {
	if s == "" {
		return span{}, nil
	}
	a, b, found := strings.Cut(s, "-")
	if !found {
		b = a
	}
	from, err1 := strconv.Atoi(a)
	to, err2 := strconv.Atoi(b)
	if err := errors.Join(err1, err2); err != nil || from < 1 || to < from {
		return span{}, usageError("--layers " + s + ": want N or M-N, counted from 1 at the base")
	}
	return span{from, to}, nil
}

// kernelOptions are the mount options that the kernel knows, and we pass on.
var kernelOptions = map[string]bool{
	"noexec": true, "exec": false, "noatime": true, "atime": false, "nodiratime": true, "diratime": false,
	"relatime": false, "strictatime": true, "nosymfollow": true, "nosuid": true, "nodev": true, "sync": true, "dirsync": true, "async": false,
}

// ignoredOptions are for mount(8) and systemd, not for a file system.
var ignoredOptions = map[string]bool{
	"_netdev": true, "nofail": true, "user": true, "users": true, "owner": true, "group": true,
	"auto": true, "noauto": true, "nouser": true, "defaults": true,
}

// applyOptions takes up -o. Mounts are nosuid and nodev unless dev and suid are asked for: an image is foreign content.
func (p *mountPlan) applyOptions(lists []string) error {
	dev, suid := false, false
	for _, list := range lists {
		for o := range strings.SplitSeq(list, ",") {
			pass, known := kernelOptions[o]
			switch {
			case o == "" || ignoredOptions[o] || strings.HasPrefix(o, "x-"):
			case o == "nonempty":
				p.flags = append(p.flags, o)
			case o == "ro":
				p.rw = false
			case o == "rw":
				p.rw = true
			case o == "dev", o == "nodev":
				dev = o == "dev"
			case o == "suid", o == "nosuid":
				suid = o == "suid"
			case o == "allow_other":
				p.allowOther = true
			case !known:
				return usageError("unknown mount option " + o)
			case pass:
				p.flags = append(p.flags, o)
			}
		}
	}
	p.flags = append(p.flags, map[bool]string{true: "dev", false: "nodev"}[dev], map[bool]string{true: "suid", false: "nosuid"}[suid])
	if !p.rw {
		p.flags = append(p.flags, "ro")
	}
	return nil
}

// mount mounts: in this process with -f, else by a server in the background.
func (e *env) mount(ctx context.Context, p *mountPlan) error {
	if e.getenv(backgroundEnv) != "" {
		return e.serveBackground(ctx, p)
	}
	if err := e.clearMountpoint(p.dir); err != nil {
		return err
	}
	if err := fuse.CheckMountpoint(p.dir, slices.Contains(p.flags, "nonempty")); err != nil {
		return err
	}
	if p.foreground {
		return e.serveForeground(ctx, p)
	}
	return e.startServer(ctx, p)
}

// clearMountpoint removes what a dead server left at a mountpoint, and says what it found.
func (e *env) clearMountpoint(dir string) error {
	m, mounted, err := fuse.Mounted(dir)
	if err != nil {
		return err
	}
	state, live, stateErr := e.settledState(dir, mounted && m.FSType == fuseType)
	if mounted && m.FSType == fuseType && (live || stateErr != nil && answers(dir)) {
		return fmt.Errorf("%w: %s: %s is mounted here already; \"layerfs umount %s\" first", fuse.ErrMountpoint, dir, m.Source, dir)
	}
	if stateErr != nil && (!mounted || m.FSType != fuseType) || live {
		return nil
	}
	if mounted && m.FSType == fuseType {
		if err := fuse.Unmount(dir, true); err != nil {
			return fmt.Errorf("%w: remove the dead mount at %s: %w", fuse.ErrMountpoint, dir, err)
		}
	}
	if state == nil {
		e.remark("%s: removed a dead mount of %s", dir, m.Source)
		return nil
	}
	e.remark("%s: the server of %s (process %d) ended without unmounting; removed the dead mount", dir, state.Image, state.PID)
	if state.Upper != "" && !state.Ephemeral {
		e.remark("%s: what was written is kept in %s", dir, state.Upper)
	}
	return os.RemoveAll(state.dir)
}

// dying is how long a killed server may take to let go of its lock after its mount has died.
const dying = 5 * time.Second

// settledState is findState, but waits for a server that is about to end.
func (e *env) settledState(dir string, mounted bool) (s *mountState, live bool, err error) {
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		s, live, err = e.findState(dir)
		if !live || !mounted || answers(dir) || time.Since(begun) > dying {
			return s, live, err
		}
	}
}

// fuseType is the type of our mounts in /proc/self/mountinfo.
const fuseType = "fuse.layerfs"

// answers tells whether a mount has a server: a dead one says ENOTCONN at once.
// One that says nothing is busy, and alive.
func answers(dir string) bool {
	said := make(chan error, 1)
	go func() {
		var st unix.Statfs_t // never from a cache of the kernel's
		said <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-said:
		return err == nil || errors.Is(err, fs.ErrPermission)
	case <-time.After(time.Second):
		return true
	}
}

// remark tells people something; --quiet silences it.
func (e *env) remark(format string, args ...any) {
	if !e.quiet {
		fmt.Fprintf(e.stderr, "layerfs: %s\n", safe(fmt.Sprintf(format, args...)))
	}
}

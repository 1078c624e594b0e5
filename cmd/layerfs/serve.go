package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/layerfs/layerfs/fuse"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic/meta"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func digestOf(s string) digest.Digest { return digest.Digest(s) }

// A teller writes news, from any goroutine.
type teller struct {
	mu  sync.Mutex
	enc *json.Encoder // protected by mu
}

// tell sends news. An error means that who started us is gone.
func (t *teller) tell(n news) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.enc.Encode(n)
}

// serverEvents are what a server says while it starts.
type serverEvents struct {
	layer  layerProgress
	remark func(text string)
	ready  func() error // an error: nobody waits any more
}

// A server is one mount being served.
type server struct {
	e     *env
	plan  *mountPlan
	im    *image
	upper *union.Upper
	fs    *union.FS
	fuse  *fuse.Server
	held  *heldState
	begun time.Time

	latest atomic.Pointer[image] // what commits went on from; nil: im
	state  *mountState

	folder  *meta.Folder // nil: without --meta
	mounted atomic.Bool  // fuse is set

	inSandbox atomic.Pointer[[]string] // what was given up; nil: nothing
	legacy    *legacy                  // nil in the foreground
	commits   atomic.Int32             // under way

	profile union.Profile // what earlier mounts read
}

// aim is the memory of a server above which the garbage collector works harder: what is
// live may be more, but an index of a million chunks is no reason to have twice its size.
const aim = 128 << 20

// serve opens the image, mounts it, and returns when it is unmounted. ctx ends it too.
func (e *env) serve(ctx context.Context, p *mountPlan, l *legacy, ev *serverEvents) (err error) {
	unix.Umask(0) // modes come from the kernel as they are to be
	if e.getenv("GOGC") == "" {
		debug.SetGCPercent(50) // a server lives long and allocates little
	}
	if e.getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(aim)
	}
	stopEvidence, err := e.startEvidence(p)
	if err != nil {
		return err
	}
	defer func() { err = stopEvidence(err) }()
	if e.budget, err = newBudget(p.maxFetch, e.stateDir(p.dir), l.taking(), e.log); err != nil {
		return err
	}
	s := &server{e: e, plan: p, legacy: l, begun: time.Now().UTC()}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx, ev); err != nil {
		return err
	}
	if !l.taking() { // its reads are no start, and there is nothing to fetch for one
		s.loadProfile()
	}
	if err := s.mount(); err != nil {
		return err
	}
	if err := errors.Join(s.noteMount(mountEvent(l)), e.budget.save()); err != nil {
		return errors.Join(err, s.fuse.Unmount())
	}
	unlisten, err := s.listen(ctx)
	if err != nil {
		return errors.Join(err, s.fuse.Unmount())
	}
	defer unlisten()
	s.im.WaitForRegistry()
	ev.remark(s.summary())
	if err := ev.ready(); err != nil {
		return errors.Join(fmt.Errorf("who wanted the mount has gone: %w", err), s.fuse.Unmount())
	}
	if err := s.leave(""); err != nil {
		e.log.Warn("if this server dies, the mount dies too", "err", err)
	}
	s.watchHolder()
	go debug.FreeOSMemory() // what opening the layers took
	e.log.Info("mounted", "mountpoint", p.dir, "image", s.im.Name, "mode", s.mode(), "generation", s.fuse.Connection().Generation, "ready_after", time.Since(s.begun))
	stop := context.AfterFunc(ctx, s.unmount)
	defer stop()
	defer s.startWork(ctx)()
	s.fuse.Wait()
	e.log.Info("unmounted", "mountpoint", p.dir)
	return s.noteMount("unmount")
}

func (s *server) open(ctx context.Context, ev *serverEvents) (err error) {
	if s.im, err = s.e.openDeferred(ctx, s.plan.image, true); err != nil {
		return err
	}
	if err := s.noteImage(); err != nil {
		return err
	}
	s.im.index = s.plan.index
	if err := s.im.openLayers(ctx, s.e, s.plan.span, ev.layer); err != nil {
		return err
	}
	if err := s.checkTree(); err != nil {
		return err
	}
	for _, w := range s.im.warnings {
		ev.remark("warning: " + w)
	}
	for _, d := range s.im.tree.Defects() {
		s.e.log.Warn("the image has a defect", "path", d.Path, "reason", d.Reason)
	}
	if err := s.openFS(); err != nil {
		return err
	}
	if s.plan.contain {
		s.fs.Contain()
	}
	return s.makeFolder(ctx)
}

func (s *server) openFS() (err error) {
	if !s.plan.rw {
		s.fs = union.New(s.im.tree, nil)
		s.fs.MapIDs(s.plan.ids)
		return nil
	}
	s.upper, err = union.OpenUpper(s.plan.upper, s.plan.work, union.UpperOptions{
		Create: true, Force: s.plan.force, Volatile: s.plan.ephemeral,
		Base: s.im.tree.Digest(), BaseRef: s.im.Name, Note: s.im.note(s.e).String(), IDs: s.plan.ids, Logger: s.e.log,
		Numbers: s.legacy.file(idsFile), Resume: s.legacy.taking(),
	})
	if errors.Is(err, union.ErrOtherBase) {
		err = fmt.Errorf("%w; mount that image, choose another --upper, or say --force-upper", err)
	}
	if errors.Is(err, union.ErrOtherIDs) {
		err = fmt.Errorf("%w; give the same --uid-map and --gid-map, none, or another --upper", err)
	}
	if err != nil {
		return err
	}
	s.fs = union.New(s.im.tree, s.upper)
	if s.legacy.taking() {
		return s.fs.Resume()
	}
	return nil
}

func (s *server) mode() string {
	if s.plan.rw {
		return "rw"
	}
	return "ro"
}

func (s *server) mount() (err error) {
	s.state = &mountState{
		Mountpoint: s.plan.dir, Image: s.plan.image, Name: s.im.Name, Index: s.im.IndexName(), Mode: s.mode(), Layers: len(s.im.layers), First: s.plan.span.from, PID: os.Getpid(),
		Started: s.begun, Upper: s.plan.upper, Work: s.plan.work, Ephemeral: s.plan.ephemeral, Platform: s.e.platform, Log: s.e.logPath(s.plan.dir),
	}
	if s.legacy != nil {
		s.state.Holder = os.Getppid()
	}
	if s.legacy.taking() {
		s.state.Image, s.state.Started = s.plan.asked, s.plan.started
		s.held, err = adoptState(s.state, s.e.stateDir(s.plan.dir), s.legacy.file(lockFile))
	} else {
		s.held, err = holdState(s.state, s.e.stateDir(s.plan.dir))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", fuse.ErrMountpoint, err)
	}
	s.fuse, err = fuse.Mount(fuse.Options{
		FS: s.fs, Mountpoint: s.plan.dir, FsName: s.im.Ref, Flags: s.plan.flags, AllowOther: s.plan.allowOther || os.Geteuid() == 0,
		Logger: s.e.log, Resume: s.legacy.connection(), Listings: s.legacy.file(listingsFile), Modes: s.legacy.file(modesFile), Hidden: s.hidden(), Opened: s.noteOpened(),
		Ready: s.sandbox,
	})
	s.mounted.Store(err == nil)
	return err
}

// unmount ends the service because of a signal. A mount in use is detached:
// those who use it get errors when this process ends, which is what a signal asks for.
func (s *server) unmount() {
	if err := s.fuse.Unmount(); err != nil {
		s.e.log.Warn("unmount", "err", err)
		if err := fuse.Unmount(s.plan.dir, true); err != nil {
			s.e.log.Error("lazy unmount", "err", err)
		}
	}
}

func (s *server) close() error {
	if s.fuse == nil && s.legacy.taking() {
		return nil // the mount is still there: the next server tries
	}
	var errs []error
	if s.fs != nil {
		errs = append(errs, s.fs.Close())
	}
	if s.upper != nil {
		errs = append(errs, s.upper.Close())
		if s.plan.ephemeral {
			errs = append(errs, os.RemoveAll(filepath.Dir(s.plan.upper)))
		}
	}
	if s.im != nil {
		errs = append(errs, s.image().Close())
	}
	if s.held != nil {
		errs = append(errs, s.held.release())
	}
	return errors.Join(errs...)
}

// notifyReady tells systemd that the service is up (sd_notify(3)).
func (e *env) notifyReady() {
	addr := e.getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	c, err := net.Dial("unixgram", addr)
	if err != nil {
		e.log.Warn("tell systemd", "err", err)
		return
	}
	defer c.Close()
	if _, err := c.Write([]byte("READY=1")); err != nil {
		e.log.Warn("tell systemd", "err", err)
	}
}

package fuse

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// Options of Mount.
type Options struct {
	FS         *union.FS // not closed by the server
	Mountpoint string
	FsName     string              // the source in the kernel's tables: the image
	Flags      []string            // mount options: ro nosuid nodev noexec noatime nosymfollow nonempty …; nosuid and nodev are the default
	AllowOther bool                // let other users in; always so for the superuser
	Logger     *slog.Logger        // nil discards
	Debug      bool                // log every request
	Listings   *os.File            // keeps listings for a later server; nil: there will be none
	Modes      *os.File            // keeps the modes of open files for a later server; nil: there will be none
	Hidden     Hidden              // shown below a name of the root; nil: nothing is
	Opened     func(Opening) error // is told of every open(2), which fails with its error; nil: nobody asks
	Ready      func()              // is called before the first request is read; nil: nothing is
	Resume     *Connection         // of a server that has ended, and still mounted; nil mounts anew. Closed by the server
}

const (
	// maxRequest is the size of the largest read or write, which is the most
	// the kernel allows without a sysctl (fs.fuse.max_pages_limit), and of read-ahead.
	maxRequest = 1 << 20
	// background is how many reads of the page cache may be under way at a
	// time. The kernel's 12 would be 12 for all processes together, and a read
	// may wait for a registry.
	background = 512
)

// A Server answers the kernel's requests for one mount.
type Server struct {
	core  *core
	conn  Connection
	point string
	info  MountInfo // as the kernel's table had it after the mount
	done  chan struct{}
	log   *slog.Logger
}

// Mount mounts a union and serves it in the background. It returns when the
// mount is there and the kernel and we have agreed on the protocol. An error
// that is ErrMountpoint says what is wrong with the directory; ErrFlag names
// an unknown option.
func Mount(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Resume != nil {
		return resume(o)
	}
	r, err := newOrder(o)
	if err != nil {
		return nil, err
	}
	fd, err := r.mount()
	if err != nil {
		return nil, err
	}
	s, err := serve(o, Connection{FD: fd}, r.point)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", r.point, err), unmount(r.point, true))
	}
	if s.info, _, err = Mounted(r.point); err != nil {
		return nil, errors.Join(err, unmount(r.point, true))
	}
	s.readAhead()
	return s, nil
}

// resume serves a mount that is there. It asks the mount nothing: nobody would answer.
func resume(o Options) (*Server, error) {
	s, err := serve(o, *o.Resume, o.Mountpoint)
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", o.Mountpoint, err)
	}
	if s.info, _, err = Mounted(o.Mountpoint); err != nil {
		return nil, err
	}
	return s, nil
}

// serve takes over the descriptor.
func serve(o Options, conn Connection, point string) (*Server, error) {
	c := newCore(o.FS, o.Logger)
	c.files.begin(conn.Generation)
	c.dirs.begin(conn.Generation)
	c.listings = newListings(o.Listings, o.Logger)
	c.modes = newModes(newModeTable(o.Modes, o.Logger), o.Logger)
	for _, node := range c.modes.restore() {
		o.FS.StillUnseen(union.ID(node))
	}
	var fs gofuse.RawFileSystem = stateful{c}
	if o.FS.ReadOnly() {
		fs = stateless{c}
	}
	if o.Hidden != nil {
		fs = withHidden{fs, c, o.Hidden}
	}
	if o.Opened != nil {
		fs = withOpened{fs, c, o.Opened}
	}
	raw, err := greet(fs, &conn, protocol(o))
	if err == nil && o.Resume != nil {
		err = conn.resend()
	}
	if err != nil {
		_ = unix.Close(conn.FD)
		return nil, err
	}
	keepResident(raw, residentSize(o.FS.ReadOnly()), o.Logger)
	if o.Ready != nil {
		o.Ready()
	}
	s := &Server{core: c, conn: conn, point: point, done: make(chan struct{}), log: o.Logger}
	go func() {
		defer close(s.done)
		raw.Serve()
		_ = unix.Close(conn.FD)
	}()
	return s, nil
}

// Connection is what a later server needs to go on. The descriptor is good until Wait returns.
func (s *Server) Connection() *Connection { return &s.conn }

// protocol is what we agree on with the kernel. All caches are ours to
// invalidate (ExplicitDataCacheControl): nothing changes behind the mount's back.
func protocol(o Options) *gofuse.MountOptions {
	p := &gofuse.MountOptions{
		Name:                     subtype,
		MaxWrite:                 maxRequest,
		MaxBackground:            background,
		EnableSymlinkCaching:     !o.FS.Contained() || o.FS.ReadOnly(), // a contained target changes when its directory is moved
		EnableAcl:                true,                                 // the kernel checks them
		ExplicitDataCacheControl: true,
		DisableSplice:            true, // no answer is a descriptor
		Debug:                    o.Debug,
		Logger:                   slog.NewLogLogger(o.Logger.Handler(), libraryLevel(o)),
		PanicHandler:             func(v any) gofuse.Status { return panicked(o.Logger, v) },
	}
	if o.FS.ReadOnly() {
		p.ExtraCapabilities = gofuse.CAP_NO_OPENDIR_SUPPORT
	} else {
		p.ExtraCapabilities = gofuse.CAP_ATOMIC_O_TRUNC | gofuse.CAP_HANDLE_KILLPRIV_V2 | gofuse.CAP_DONT_MASK
		p.DisabledCapabilities = gofuse.CAP_NO_OPEN_SUPPORT
	}
	return p
}

// libraryLevel is the level of what go-fuse logs: only trouble, unless every request was asked for.
func libraryLevel(o Options) slog.Level {
	if o.Debug {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// panicked keeps the mount alive: one request fails, and the log says where.
func panicked(log *slog.Logger, v any) gofuse.Status {
	log.Error("panic in a request", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	return gofuse.EIO
}

// readAhead raises the kernel's limit of 128 KiB to the size of a request. Only
// the superuser may, and the mount works without.
func (s *Server) readAhead() {
	file := "/sys/class/bdi/" + s.info.Dev() + "/read_ahead_kb"
	if err := os.WriteFile(file, []byte(strconv.Itoa(maxRequest>>10)), 0); err != nil {
		s.log.Debug("read-ahead stays small", slog.Any("error", err))
	}
}

// OpenFiles is how many open files the kernel has told us of. It tells nothing of read-only mounts.
func (s *Server) OpenFiles() int { return s.core.files.len() }

// Wait returns when the mount is gone and all requests have been answered.
func (s *Server) Wait() { <-s.done }

// Unmount removes the mount from the tree. A mount in use is EBUSY, after some
// tries: programs close their files late. What is mounted there by now in our
// place stays. Wait tells when the last request has been answered, which is
// later where other mount namespaces hold copies of the mount.
func (s *Server) Unmount() error {
	const tries = 5
	err := s.unmount()
	for wait, n := 10*time.Millisecond, 0; n < tries && errors.Is(err, unix.EBUSY); wait, n = wait*2, n+1 {
		time.Sleep(wait)
		err = s.unmount()
	}
	return err
}

func (s *Server) unmount() error {
	m, ok, err := Mounted(s.point)
	if err != nil || !ok || m.Dev() != s.info.Dev() {
		return err
	}
	return Unmount(s.point, false)
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/layerfs/layerfs/fuse"
	"golang.org/x/sys/unix"
)

// A legacy is a server's side of what passes between servers by way of their holder.
type legacy struct {
	socket int
	had    *handover           // nil: this is the first server
	files  [heldFiles]*os.File // but fuseFile; with had: lockFile
	alone  atomic.Bool         // the holder has gone
	left   atomic.Bool         // the holder has, or will find, the descriptors
}

// inherit finds out what this server begins with; nil where no holder has started it.
func (e *env) inherit() (*legacy, error) {
	l := &legacy{socket: legacyFD}
	unix.CloseOnExec(legacyFD)
	s := e.getenv(legacyEnv)
	if s == "" {
		return l, l.makeFiles()
	}
	l.had = &handover{}
	if err := json.Unmarshal([]byte(s), l.had); err != nil {
		return nil, fmt.Errorf("%s is not for people: %w", legacyEnv, err)
	}
	for i := range heldFiles {
		unix.CloseOnExec(heldFD + i)
		if i != fuseFile {
			l.files[i] = os.NewFile(uintptr(heldFD+i), "held")
		}
	}
	l.had.Connection.FD = heldFD + fuseFile
	return l, nil
}

// taking tells whether there was a server before.
func (l *legacy) taking() bool { return l != nil && l.had != nil }

// connection is what fuse.Mount goes on with.
func (l *legacy) connection() *fuse.Connection {
	if !l.taking() {
		return nil
	}
	return &l.had.Connection
}

// follow has a later server show the image that the earlier one showed, whatever its tag means by now.
func (p *mountPlan) follow(e *env, l *legacy) error {
	if !l.taking() {
		return nil
	}
	st, _, err := e.findState(p.dir)
	if err != nil {
		return fmt.Errorf("read the state of the mount: %w", err)
	}
	p.image, p.asked, p.started = st.Name, st.Image, st.Started
	return nil
}

// file is one of the files that a server keeps for the next, by its number in
// what is held; nil where nobody holds it. They are in memory: they have to
// survive the process, not the machine.
func (l *legacy) file(i int) *os.File {
	if l == nil {
		return nil
	}
	return l.files[i]
}

// makeFiles makes the files for a first server.
func (l *legacy) makeFiles() error {
	for _, i := range []int{idsFile, listingsFile, modesFile} {
		fd, err := unix.MemfdCreate("layerfs", unix.MFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("make a file in memory: %w", err)
		}
		l.files[i] = os.NewFile(uintptr(fd), "kept")
	}
	return nil
}

// errOtherTree says that the numbers which the kernel has for files would mean other files.
var errOtherTree = errors.New("the image has become another; the mount cannot go on")

func (s *server) checkTree() error {
	if s.legacy.taking() && s.legacy.had.Tree != s.im.tree.Digest() {
		return fmt.Errorf("take over %s: %w", s.plan.dir, errOtherTree)
	}
	return nil
}

// leave hands over, for the case of this server's death: to the holder, or to nobody
// in the foreground. upgrade names the program that comes next; "" for a crash.
func (s *server) leave(upgrade string) error {
	if s.legacy == nil {
		return nil
	}
	left := handover{Connection: *s.fuse.Connection(), Tree: s.im.tree.Digest(), Ready: time.Now(), Upgrade: upgrade, Lost: s.lost()}
	b, err := json.Marshal(left)
	if err != nil {
		return err
	}
	var rights []byte
	if !s.legacy.taking() && !s.legacy.left.Swap(true) {
		rights = unix.UnixRights(left.Connection.FD, int(s.held.f.Fd()), int(s.legacy.file(idsFile).Fd()), int(s.legacy.file(listingsFile).Fd()), int(s.legacy.file(modesFile).Fd()))
	}
	if err := unix.Sendmsg(s.legacy.socket, b, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("hand over to the holder: %w", err)
	}
	return nil
}

// lost says why nobody can take over. A commit that the mount goes on from
// leaves numbers to nodes that are nowhere but in this process.
func (s *server) lost() string {
	if s.latest.Load() != nil {
		return "the mount goes on from a commit"
	}
	return ""
}

// watchHolder says so when the holder goes: nothing follows this server then.
func (s *server) watchHolder() {
	if s.legacy == nil {
		return
	}
	go func() {
		b := make([]byte, 1)
		if n, err := unix.Read(s.legacy.socket, b); n == 0 && err == nil {
			s.legacy.alone.Store(true)
			s.e.log.Warn("the holder has ended; if this server dies, the mount dies too", "mountpoint", s.plan.dir)
		}
	}()
}

// mountEvent is what the evidence log calls the beginning of this server.
func mountEvent(l *legacy) string {
	if l.taking() {
		return "takeover"
	}
	return "mount"
}

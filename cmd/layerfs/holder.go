package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/layerfs/layerfs/fuse"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// A mount in the background has two processes. The server does everything; the
// holder, its parent, only keeps copies of the descriptors that a mount cannot
// do without, and starts a new server on them when one dies. It never
// looks at the mount: with no server, that would wait for itself.
//
// A server hands over on a socket (legacy), as soon as it is ready: a handover
// and the descriptors. They wait in the socket until the holder, woken by the
// server's death, reads them, so that it has nothing to do before.

const (
	holderEnv = "LAYERFS_HOLDER" // makes this program a holder: a holding as JSON
	legacyEnv = "LAYERFS_LEGACY" // tells a server what it takes over: a handover as JSON
)

// The descriptors of a server that a holder has started.
const (
	newsFD   = 3 // of the first server, see backgroundEnv; in later ones /dev/null
	legacyFD = 4 // the socket to the holder
	heldFD   = 5 // in later servers, the first of what is held
)

// What is held, in the order of the descriptors. All is open, or nothing.
const (
	fuseFile     = iota // of /dev/fuse
	lockFile            // the state file, locked
	idsFile             // union.UpperOptions.Numbers
	listingsFile        // fuse.Options.Listings
	modesFile           // fuse.Options.Modes
	heldFiles
)

// A handover is what a later server must know.
type handover struct {
	Connection fuse.Connection `json:"connection"`
	Tree       digest.Digest   `json:"tree"`              // numbers of nodes are those of this tree
	Ready      time.Time       `json:"ready"`             // since when the server was ready
	Upgrade    string          `json:"upgrade,omitempty"` // the server ends to make room for this program
	Lost       string          `json:"lost,omitempty"`    // why no server can follow
}

// A holder is the process that outlives the servers of a mount.
type holder struct {
	log    *slog.Logger
	legacy int // our end of the socket
	have   *handover
	held   []int
	early  int // servers that died at once, one after the other
}

// hold is the main function of a holder; it returns the exit code.
func hold() int {
	h := &holder{log: holderLog()}
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	if err := h.inherit(os.Getenv(holderEnv)); err != nil {
		h.log.Error("hold the mount", "err", err)
		return exitFailure
	}
	for {
		code, again := h.serve(signals)
		if !again {
			return code
		}
	}
}

// holderLog writes as the server does. A holder reads no flags.
func holderLog() *slog.Logger {
	if slices.Contains(os.Args, "--log-json") {
		return slog.New(slog.NewJSONHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}

// A holding is how a holder is told what it has: nothing at first, later what
// the program it replaces had (see upgrade).
type holding struct {
	Have *handover `json:"have,omitempty"`
	Held []int     `json:"held,omitempty"`
}

func (h *holder) inherit(s string) error {
	var had holding
	if err := json.Unmarshal([]byte(s), &had); err != nil {
		return fmt.Errorf("%s is not for people: %w", holderEnv, err)
	}
	if had.Have != nil {
		if len(had.Held) != heldFiles {
			return fmt.Errorf("the program before held %d descriptors, not %d", len(had.Held), heldFiles)
		}
		h.have, h.held = had.Have, had.Held
		h.have.Connection.FD = h.held[fuseFile]
		for _, fd := range h.held {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// serve starts a server and waits for its end; again asks for another one.
func (h *holder) serve(signals <-chan os.Signal) (code int, again bool) {
	cmd, err := h.start()
	if err != nil {
		h.log.Error("start the server", "err", err)
		return exitFailure, h.retry(false)
	}
	ended := make(chan struct{})
	go forward(signals, cmd.Process, ended)
	err = cmd.Wait()
	close(ended)
	h.receive()
	_ = unix.Close(h.legacy)
	return h.ended(cmd.ProcessState, err)
}

func forward(signals <-chan os.Signal, p *os.Process, ended <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			_ = p.Signal(s)
		case <-ended:
			return
		}
	}
}

// ended decides what the end of a server means.
func (h *holder) ended(st *os.ProcessState, err error) (code int, again bool) {
	switch {
	case h.have == nil || st.Success() && h.have.Upgrade == "":
		return max(st.ExitCode(), boolCode(err != nil)), false
	case !h.have.Connection.Alive():
		h.log.Info("unmounted while there was no server")
		return h.lastServer()
	case h.have.Lost != "":
		h.log.Error("the server died, and none can follow", "reason", h.have.Lost)
		return exitFailure, false
	case h.have.Upgrade != "":
		h.upgrade()
		return 0, true
	case !h.have.Connection.Survives():
		h.log.Error("the server died, and this kernel cannot send requests again (Linux 6.9 can)", "how", st.String())
		return exitFailure, false
	}
	h.log.Error("the server died; starting another", "process", st.Pid(), "how", st.String())
	return exitFailure, h.retry(time.Since(h.have.Ready) > settled)
}

func boolCode(b bool) int {
	if b {
		return exitFailure
	}
	return 0
}

// lastServer is asked for once more where a mount has gone without a server to clean up behind it.
func (h *holder) lastServer() (code int, again bool) { return 0, h.retry(false) }

const (
	// settled is how long a server lives that did not die of what it was started on.
	settled = 100 * time.Millisecond
	// tries servers that die at once are enough: a request that kills a server
	// comes again with the next one.
	tries = 10
)

// retry waits a little longer before each server that follows one that died at once.
func (h *holder) retry(lived bool) bool {
	if h.have == nil {
		return false
	}
	h.have.Ready = time.Now().Add(time.Hour) // until the next one says otherwise
	if lived {
		h.early = 0
		return true
	}
	if h.early++; h.early >= tries {
		h.log.Error("the server dies again and again; giving up, the mount is dead", "tries", tries)
		return false
	}
	time.Sleep(time.Duration(max(0, h.early-2)) * 50 * time.Millisecond)
	return true
}

// start starts a server with what there is to take over.
func (h *holder) start() (*exec.Cmd, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "legacy")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	// PWD goes because who looks whether it is right asks the mount, when it is the mountpoint.
	cmd.Env = withoutEnv(os.Environ(), holderEnv, legacyEnv, "PWD")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if h.have != nil {
		if err := h.bequeath(cmd, theirs); err != nil {
			return nil, errors.Join(err, unix.Close(pair[0]))
		}
	} else {
		news := os.NewFile(newsFD, "news") // not in later starts: the number is another file's then, which the garbage collector would close
		defer news.Close()                 // its end is how who waits learns of a death before there is a mount
		cmd.ExtraFiles = []*os.File{news, theirs}
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, unix.Close(pair[0]))
	}
	h.legacy = pair[0]
	return cmd, nil
}

func (h *holder) bequeath(cmd *exec.Cmd, legacy *os.File) error {
	h.have.Connection.Generation++
	b, err := json.Marshal(h.have)
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, legacyEnv+"="+string(b))
	cmd.ExtraFiles = []*os.File{null, legacy}
	for _, fd := range h.held {
		cmd.ExtraFiles = append(cmd.ExtraFiles, rawFile(fd))
	}
	return nil
}

// rawFile is a descriptor for exec.Cmd, a copy, so that ours is not closed with it.
func rawFile(fd int) *os.File {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(dup), "held")
}

func withoutEnv(env []string, names ...string) []string {
	return slices.DeleteFunc(env, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(names, name)
	})
}

// receive takes what the server has left in the socket.
func (h *holder) receive() {
	b, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(heldFiles*4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(h.legacy, b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return
		}
		var left handover
		if err := json.Unmarshal(b[:n], &left); err != nil {
			h.log.Error("read what the server left", "err", err)
			continue
		}
		h.keep(&left, oob[:oobn])
	}
}

func (h *holder) keep(left *handover, oob []byte) {
	if fds := rightsOf(oob); len(fds) == heldFiles && h.have == nil {
		h.held, h.have = fds, left
	}
	if h.have == nil {
		return
	}
	h.have.Ready, h.have.Upgrade, h.have.Lost = left.Ready, left.Upgrade, left.Lost
	h.have.Connection.FD = h.held[fuseFile]
}

func rightsOf(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			return fds
		}
	}
	return nil
}

// upgrade goes on as another program, in the same process, since the
// descriptors and the mount's servers are this process's. It returns when that
// could not be run: then the old program goes on.
func (h *holder) upgrade() {
	program := h.have.Upgrade
	h.have.Upgrade = ""
	if program == sameProgram {
		return
	}
	b, err := json.Marshal(holding{Have: h.have, Held: h.held})
	for _, fd := range h.held {
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
		}
	}
	if err == nil {
		err = syscall.Exec(program, os.Args, append(withoutEnv(os.Environ(), holderEnv), holderEnv+"="+string(b)))
	}
	h.log.Error("run the new program; the old one goes on", "program", program, "err", err)
}

// sameProgram in place of a new program's name asks for a new server only.
const sameProgram = "same"

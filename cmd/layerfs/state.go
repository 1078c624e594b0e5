package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A mountState is what is known of a mount outside its server: a file in
// ROOT/mounts/ID, which the server keeps locked while it lives.
type mountState struct {
	Mountpoint string    `json:"mountpoint"`
	Image      string    `json:"image"`                 // as the user gave it
	Name       string    `json:"name"`                  // stays true when a tag moves
	Index      string    `json:"index,omitempty"`       // the index it was found in, by digest
	Mode       string    `json:"mode"`                  // ro or rw
	Layers     int       `json:"layers"`                // shown
	First      int       `json:"first_layer,omitempty"` // of those, counted from 1 at the base; 0: all are shown
	PID        int       `json:"pid"`                   // of the server
	Holder     int       `json:"holder,omitempty"`      // the process that starts another server when this one dies
	Started    time.Time `json:"started"`               // UTC
	Upper      string    `json:"upper,omitempty"`
	Work       string    `json:"work,omitempty"`
	Ephemeral  bool      `json:"ephemeral,omitempty"`
	Platform   string    `json:"platform,omitempty"`
	Log        string    `json:"log,omitempty"`

	dir string // ROOT/mounts/ID
}

// span is the layers that the mount shows.
func (s *mountState) span() span {
	if s.First == 0 {
		return span{}
	}
	return span{s.First, s.First + s.Layers - 1}
}

// mountID names a mountpoint in file names.
func mountID(mountpoint string) string {
	sum := sha256.Sum256([]byte(mountpoint))
	return hex.EncodeToString(sum[:8])
}

func (e *env) stateDir(mountpoint string) string {
	return filepath.Join(e.root, "mounts", mountID(mountpoint))
}

const (
	stateFile   = "state.json"
	controlFile = "control.sock"
)

// A heldState is the server's hold on its state: others see the lock and know that it lives.
type heldState struct {
	dir string
	f   *os.File
}

// holdState writes the state of a mount that this process serves.
func holdState(s *mountState, dir string) (*heldState, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, stateFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	h := &heldState{dir, f}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(errors.New(s.Mountpoint+": another server is about to mount there"), f.Close())
	}
	if err := h.update(s); err != nil {
		return nil, errors.Join(err, h.release())
	}
	return h, nil
}

// adoptState is holdState for a server that follows another: the lock has been held all the time.
func adoptState(s *mountState, dir string, locked *os.File) (*heldState, error) {
	h := &heldState{dir, locked}
	return h, h.update(s)
}

func writeAt(f *os.File, b []byte) error {
	_, err := f.WriteAt(b, 0)
	return err
}

// update writes what has changed. Readers take the first document alone: what is left of a longer one does not matter.
func (h *heldState) update(s *mountState) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = writeAt(h.f, append(b, '\n'))
	}
	if err == nil {
		err = h.f.Truncate(int64(len(b)) + 1)
	}
	return err
}

// release removes the state: the mount is gone.
func (h *heldState) release() error {
	return errors.Join(os.RemoveAll(h.dir), h.f.Close())
}

// readState reads the state in a directory and tells whether its server lives.
func readState(dir string) (s *mountState, live bool, err error) {
	f, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	live = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
	s = &mountState{dir: dir}
	if err := json.NewDecoder(f).Decode(s); err != nil {
		return nil, live, errors.New(f.Name() + ": " + err.Error())
	}
	return s, live, nil
}

// findState finds the mount at a mountpoint.
func (e *env) findState(mountpoint string) (s *mountState, live bool, err error) {
	s, live, err = readState(e.stateDir(mountpoint))
	if err == nil && s.Mountpoint != mountpoint {
		return nil, false, fs.ErrNotExist
	}
	return s, live, err
}

// states lists all mounts of this root, sorted by mountpoint.
func (e *env) states() (all []*mountState, live []bool, err error) {
	dirs, err := os.ReadDir(filepath.Join(e.root, "mounts"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	type row struct {
		s    *mountState
		live bool
	}
	var rows []row
	for _, d := range dirs {
		s, l, err := readState(filepath.Join(e.root, "mounts", d.Name()))
		if err != nil {
			e.log.Debug("read the state of a mount", "dir", d.Name(), "err", err)
			continue
		}
		rows = append(rows, row{s, l})
	}
	slices.SortFunc(rows, func(a, b row) int { return compareStrings(a.s.Mountpoint, b.s.Mountpoint) })
	for _, r := range rows {
		all, live = append(all, r.s), append(live, r.live)
	}
	return all, live, err
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// mountpoint is the absolute path of a directory, without symlinks. It may be
// a dead mount, which must not be looked into, since that may hang or fail;
// readlink(2) does not.
func mountpoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	for range 40 { // as path_resolution(7)
		if err != nil || abs == "/" {
			return abs, err
		}
		parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if errors.Is(err, fs.ErrNotExist) {
			return abs, nil
		}
		if err != nil {
			return "", err
		}
		abs = filepath.Join(parent, filepath.Base(abs))
		target, err := os.Readlink(abs)
		if err != nil {
			return abs, nil // no symlink
		}
		if abs = filepath.Join(parent, target); filepath.IsAbs(target) {
			abs = filepath.Clean(target)
		}
	}
	return "", &fs.PathError{Op: "resolve", Path: dir, Err: unix.ELOOP}
}

// controlPath names the socket by a descriptor of its directory, because the
// address of a socket must be shorter than many paths are (unix(7): 108 bytes).
func controlPath(dir string) (path string, done func(), err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + controlFile, func() { _ = unix.Close(fd) }, nil
}

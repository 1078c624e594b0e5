package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/layerfs/layerfs/union"
)

// The control socket of a server: one request a connection. It lies in the
// state directory, which only its owner can enter.

// A controlRequest is what a client says first.
type controlRequest struct {
	Do      string           `json:"do"`                // "status", "commit" or "upgrade"
	Tar     union.TarOptions `json:"tar,omitzero"`      // of "commit"
	GoOn    bool             `json:"go_on,omitzero"`    // of "commit": a goOnRequest follows
	Program string           `json:"program,omitempty"` // of "upgrade"
}

// controlPatience bounds how long both sides wait for an answer that takes no work.
const controlPatience = 5 * time.Second

// listen answers on the control socket until the returned function is called,
// which waits for commits that are under way; ctx ends them.
func (s *server) listen(ctx context.Context) (stop func(), err error) {
	path, done, err := controlPath(s.held.dir)
	if err != nil {
		return nil, err
	}
	defer done()
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil { // the umask is 0; nobody can look into the directory before
		return nil, errors.Join(fmt.Errorf("open the control socket: %w", err), l.Close())
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { s.answer(ctx, c) })
		}
	})
	return func() {
		_ = l.Close()
		work.Wait()
	}, nil
}

func (s *server) answer(ctx context.Context, c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(controlPatience))
	var q controlRequest
	if err := json.NewDecoder(io.LimitReader(c, 64<<10)).Decode(&q); err != nil {
		s.e.log.Debug("read a request on the control socket", "err", err)
		return
	}
	switch q.Do {
	case "status":
		_ = json.NewEncoder(c).Encode(s.status()) // who asked may have gone
	case "commit":
		s.commits.Add(1)
		defer s.commits.Add(-1)
		s.answerCommit(ctx, c, q)
	case "upgrade":
		s.answerUpgrade(c, q.Program)
	}
}

// dialControl sends a request to the live server whose state is in dir.
func dialControl(dir string, q controlRequest) (net.Conn, error) {
	path, done, err := controlPath(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := net.DialTimeout("unix", path, 2*time.Second)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(controlPatience))
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// askStatus asks a live server.
func askStatus(dir string) (st liveStatus, err error) {
	c, err := dialControl(dir, controlRequest{Do: "status"})
	if err != nil {
		return st, err
	}
	defer c.Close()
	return st, json.NewDecoder(c).Decode(&st)
}

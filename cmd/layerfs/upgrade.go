package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/pflag"
)

var upgradeCommand = command{
	name: "upgrade", args: "[DIR…]", short: "Put this program under the live mounts",
	long: `
Each mount of this --root, or those at the given directories, gets a new server,
which is this program. Files stay open, and who uses the mount sees a short pause.
A mount with -f, or one under which a commit is running, is left as it is: an error.`,
	setup: func(*pflag.FlagSet) runFunc {
		return func(ctx context.Context, e *env, args []string) error {
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			states, err := e.upgradable(args)
			errs := []error{err}
			for _, s := range states {
				err := e.upgrade(ctx, s, program)
				if err == nil {
					_, err = fmt.Fprintln(e.stdout, s.Mountpoint)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		}
	},
}

// upgradable finds the mounts that are meant; none is all that are live.
func (e *env) upgradable(dirs []string) (found []*mountState, err error) {
	states, live, err := e.states()
	if err != nil {
		return nil, err
	}
	if len(dirs) == 0 {
		for i, s := range states {
			if live[i] {
				found = append(found, s)
			}
		}
		return found, nil
	}
	for _, dir := range dirs {
		point, dirErr := mountpoint(dir)
		var s *mountState
		if dirErr == nil {
			s, _, dirErr = e.findState(point)
		}
		if dirErr != nil {
			err = errors.Join(err, &exitError{exitNotFound, fmt.Errorf("upgrade %s: no mount of this --root; \"layerfs mounts\" lists them", dir)})
			continue
		}
		found = append(found, s)
	}
	return found, err
}

// upgradeEnd is how long a new server may take.
const upgradeEnd = 30 * time.Second

// upgrade asks for another server and waits until it answers.
func (e *env) upgrade(ctx context.Context, s *mountState, program string) error {
	if err := askUpgrade(s.dir, program); err != nil {
		return fmt.Errorf("upgrade %s: %w", s.Mountpoint, err)
	}
	for begun := time.Now(); time.Since(begun) < upgradeEnd; {
		now, live, err := readState(s.dir)
		if err == nil && now.PID != s.PID {
			if _, err := askStatus(s.dir); err == nil {
				return nil
			}
		}
		if err == nil && !live {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("upgrade %s: the new server does not answer; its log is %s", s.Mountpoint, s.Log)
}

// An upgradeAnswer is what a server says before it ends, or why it does not.
type upgradeAnswer struct {
	Error string `json:"error,omitempty"`
}

func askUpgrade(dir, program string) error {
	c, err := dialControl(dir, controlRequest{Do: "upgrade", Program: program})
	if err != nil {
		return err
	}
	defer c.Close()
	var a upgradeAnswer
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
}

// answerUpgrade is the server's side: it ends in the middle of things, but of no request.
func (s *server) answerUpgrade(c net.Conn, program string) {
	say := json.NewEncoder(c)
	if reason := s.notNow(); reason != "" {
		_ = say.Encode(upgradeAnswer{Error: reason})
		return
	}
	s.fuse.Pause()
	if err := s.leave(program); err != nil {
		s.e.log.Error("upgrade; this server has paused and must end", "err", err)
		os.Exit(exitFailure) // with a holder, another one comes; without, it was too late
	}
	s.e.log.Info("making room for another server", "program", program, "mountpoint", s.plan.dir)
	_ = say.Encode(upgradeAnswer{})
	os.Exit(exitOK)
}

// notNow says why this server cannot be replaced.
func (s *server) notNow() string {
	switch {
	case s.legacy == nil:
		return "it is served in the foreground (-f); end it and mount again"
	case s.legacy.alone.Load():
		return "the process that would start the new server has died; unmount and mount again"
	case !s.fuse.Connection().Survives():
		return "this kernel cannot hand a mount over (Linux 6.9 can)"
	case s.lost() != "":
		return s.lost() + "; unmount it and mount again"
	case s.commits.Load() > 0:
		return "a commit is running; try again after it"
	}
	return ""
}

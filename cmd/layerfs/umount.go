package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/layerfs/layerfs/fuse"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

var umountCommand = command{
	name: "umount", args: "DIR…", short: "Unmount, also what a crashed server left",
	long: `
It is no error if nothing is mounted at DIR. The container layer of a writable
mount stays where it is and is used again by the next mount at DIR.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		lazy := flags.BoolP("lazy", "l", false, "detach now, end when nobody uses it any more")
		all := flags.BoolP("all", "a", false, "every mount of this --root")
		return func(ctx context.Context, e *env, args []string) error {
			if *all == (len(args) > 0) {
				return usageError("usage: layerfs umount [-l] DIR…, or -a")
			}
			if *all {
				states, _, err := e.states()
				if err != nil {
					return err
				}
				for _, s := range states {
					args = append(args, s.Mountpoint)
				}
			}
			var errs []error
			for _, dir := range args {
				errs = append(errs, e.umount(ctx, dir, *lazy))
			}
			return errors.Join(errs...)
		}
	},
}

// umount unmounts one directory and waits for its server to end.
func (e *env) umount(ctx context.Context, dir string, lazy bool) error {
	dir, err := mountpoint(dir)
	if err != nil {
		return err
	}
	m, mounted, err := fuse.Mounted(dir)
	if err != nil {
		return err
	}
	if mounted && m.FSType != fuseType {
		return fmt.Errorf("%w: %s: a %s is mounted here, which is not ours", fuse.ErrMountpoint, dir, m.FSType)
	}
	if mounted {
		if err := fuse.Unmount(dir, lazy); err != nil {
			return umountError(dir, err)
		}
	}
	return e.forget(ctx, dir, lazy)
}

func umountError(dir string, err error) error {
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("umount %s: in use; end what uses it (fuser -vm %s), or say -l", dir, dir)
	}
	return fmt.Errorf("umount %s: %w", dir, err)
}

// serverEnd is how long a server may take to end after its mount has gone.
const serverEnd = 20 * time.Second

// forget waits until the server has ended, or removes the state of a dead one.
func (e *env) forget(ctx context.Context, dir string, lazy bool) error {
	for begun := time.Now(); ; {
		state, live, err := e.findState(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if !live && state != nil {
			return os.RemoveAll(state.dir)
		}
		if err != nil || lazy {
			return err
		}
		if time.Since(begun) > serverEnd {
			return fmt.Errorf("umount %s: unmounted, but the server (process %d) has not ended yet; its log is %s", dir, state.PID, state.Log)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

var mountsCommand = command{
	name: "mounts", args: "", short: "List the mounts of this --root",
	setup: func(flags *pflag.FlagSet) runFunc {
		asJSON := flags.Bool("json", false, "one JSON document")
		bytes := flags.Bool("bytes", false, "exact sizes")
		return func(_ context.Context, e *env, args []string) error {
			rows, err := e.mountRows()
			if err != nil {
				return err
			}
			if *asJSON {
				return writeJSON(e.stdout, rows)
			}
			for _, r := range rows {
				if r.Away != nil {
					e.remark("%s: the registry of %s does not answer since %s; who reads what is not in the cache waits", r.Mountpoint, r.Image, localTime(*r.Away))
				}
			}
			return table(e.stdout, func(w io.Writer) { printMounts(w, rows, *bytes) })
		}
	},
}

// A mountRow is a mount with what its server says.
type mountRow struct {
	mountState
	Live bool `json:"live"`
	liveStatus
}

func (e *env) mountRows() ([]mountRow, error) {
	states, live, err := e.states()
	rows := make([]mountRow, 0, len(states))
	for i, s := range states {
		r := mountRow{mountState: *s, Live: live[i]}
		if r.Live {
			if r.liveStatus, err = askStatus(s.dir); err != nil {
				e.log.Warn("ask the server", "mountpoint", s.Mountpoint, "err", err)
				err = nil
			}
		}
		rows = append(rows, r)
	}
	return rows, err
}

func printMounts(w io.Writer, rows []mountRow, exact bool) {
	fmt.Fprintln(w, "MOUNTPOINT\tIMAGE\tMODE\tLAYERS\tFETCHED\tOPEN\tUPTIME\tPID")
	for _, r := range rows {
		uptime := "dead"
		if r.Live {
			uptime = time.Since(r.Started).Truncate(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\t%s\t%d\n", safe(r.Mountpoint), safe(r.Image), r.Mode, r.Layers, size(r.Fetched, exact), r.Open, uptime, r.PID)
	}
}

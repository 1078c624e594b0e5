package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/layerfs/layerfs/union/layer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// The server in the background is this program once more, with the same
// arguments and this variable, started by a holder, which is so too. It holds the number of a descriptor: a pipe on
// which the server says how it goes, one JSON document a line, until it is
// ready or has failed.
const backgroundEnv = "LAYERFS_BACKGROUND"

// A news is one line of the pipe.
type news struct {
	// Progress of one layer.
	Layer    int             `json:"layer,omitempty"` // from 1
	Layers   int             `json:"layers,omitempty"`
	Digest   string          `json:"digest,omitempty"`
	Progress *layer.Progress `json:"progress,omitempty"`
	// Remark is for people.
	Remark string `json:"remark,omitempty"`
	// Ready ends the news: the mount answers.
	Ready bool `json:"ready,omitempty"`
	// Error ends the news too.
	Error string `json:"error,omitempty"`
	Code  int    `json:"code,omitempty"`
}

// startServer starts the server and waits until the mount answers.
func (e *env) startServer(ctx context.Context, p *mountPlan) error {
	logPath, logFile, err := e.openServerLog(p.dir)
	if err != nil {
		return err
	}
	defer logFile.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), backgroundEnv+"=3", holderEnv+"={}")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = logFile, logFile, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	if err := e.followServer(r, logPath); err != nil {
		_ = cmd.Wait()
		return err
	}
	_, err = fmt.Fprintln(e.stdout, p.dir)
	return errors.Join(err, cmd.Process.Release())
}

// openServerLog opens the log of a mountpoint's server, for appending.
func (e *env) openServerLog(dir string) (string, *os.File, error) {
	path := e.logPath(dir)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", nil, fmt.Errorf("make the state directory: %w; choose another with --root", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return path, f, err
}

func (e *env) logPath(dir string) string {
	return filepath.Join(e.root, "log", mountID(dir)+".log")
}

// followServer shows the server's news until it is ready or has failed.
func (e *env) followServer(r io.Reader, logPath string) error {
	p := e.newProgress()
	defer p.done()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var n news
		if err := json.Unmarshal(lines.Bytes(), &n); err != nil {
			return fmt.Errorf("the server's news: %w", err)
		}
		switch {
		case n.Error != "":
			return &exitError{n.Code, errors.New(n.Error)}
		case n.Ready:
			return nil
		case n.Progress != nil:
			p.layer(n.Layer-1, n.Layers, ocispec.Descriptor{Digest: digestOf(n.Digest)}, *n.Progress)
		case n.Remark != "":
			p.done()
			e.remark("%s", n.Remark)
		}
	}
	return fmt.Errorf("the server ended without a word; its log is %s", logPath)
}

// serveBackground is the server's side.
func (e *env) serveBackground(ctx context.Context, p *mountPlan) error {
	fd, err := strconv.Atoi(e.getenv(backgroundEnv))
	if err != nil {
		return usageError(backgroundEnv + " is not for people")
	}
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	pipe := os.NewFile(uintptr(fd), "news")
	unix.CloseOnExec(fd)
	if e.log, err = e.newLog(os.Stderr, slog.LevelInfo); err != nil {
		return err
	}
	l, err := e.inherit()
	if err != nil {
		return err
	}
	if err := p.follow(e, l); err != nil {
		return err
	}
	t := &teller{enc: json.NewEncoder(pipe)}
	err = e.serve(ctx, p, l, &serverEvents{
		layer: func(i, n int, d ocispec.Descriptor, now layer.Progress) {
			_ = t.tell(news{Layer: i + 1, Layers: n, Digest: string(d.Digest), Progress: &now})
		},
		remark: func(text string) { _ = t.tell(news{Remark: text}) },
		ready:  func() error { return errors.Join(t.tell(news{Ready: true}), pipe.Close()) },
	})
	e.log.Info("the server ends", "mountpoint", p.dir, "peak_memory", peakMemory())
	if err != nil {
		e.log.Error("serve", "mountpoint", p.dir, "err", err)
		_ = t.tell(news{Error: message(err), Code: exitCode(err)})
		return &exitError{exitCode(err), errSilent}
	}
	return nil
}

// serveForeground serves in this process until a signal or an unmount ends it.
func (e *env) serveForeground(ctx context.Context, p *mountPlan) error {
	bar := e.newProgress()
	log, err := e.newLog(e.stderr, slog.LevelWarn)
	if err != nil {
		return err
	}
	e.log = log
	return e.serve(ctx, p, nil, &serverEvents{
		layer:  bar.layer,
		remark: func(text string) { e.remark("%s", text) },
		ready: func() error {
			bar.done()
			e.notifyReady()
			fmt.Fprintln(e.stdout, p.dir)
			if f, ok := e.stdout.(*bufio.Writer); ok {
				return f.Flush()
			}
			return nil
		},
	})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/layerfs/layerfs/fuse"
	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union/layer"
)

// Exit codes. Scripts depend on them.
const (
	exitOK           = 0
	exitFailure      = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitUnauthorized = 4
	exitUnreachable  = 5
	exitIntegrity    = 6
	exitMountpoint   = 7
	exitLimit        = 8
	exitDifferent    = 10
	exitInterrupted  = 130
)

// exitCodes is the one table from errors to exit codes. The first match counts.
var exitCodes = []struct {
	err  error
	code int
}{
	{registry.ErrUsage, exitUsage},
	{registry.ErrUnauthorized, exitUnauthorized},
	{registry.ErrIntegrity, exitIntegrity},
	{layer.ErrDigest, exitIntegrity},
	{registry.ErrNotFound, exitNotFound},
	{registry.ErrOffline, exitNotFound},
	{registry.ErrUnreachable, exitUnreachable},
	{fuse.ErrMountpoint, exitMountpoint},
	{layer.ErrLimit, exitLimit},
	{context.Canceled, exitInterrupted},
}

// An exitError is an error with an exit code of its own. An empty text prints nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }

func (e *exitError) Unwrap() error { return e.err }

func usage(err error) error { return &exitError{exitUsage, err} }

func usageError(text string) error { return usage(errors.New(text)) }

// errSilent ends with an exit code alone: everything was said already.
var errSilent = errors.New("")

func exitCode(err error) int {
	var own *exitError
	if err == nil {
		return exitOK
	}
	if errors.As(err, &own) {
		return own.code
	}
	for _, row := range exitCodes {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return exitFailure
}

// report prints an error as one line and returns the exit code.
func (e *env) report(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil {
		err = &exitError{exitInterrupted, errors.New("interrupted")}
	}
	if errors.Is(err, syscall.EPIPE) {
		return exitFailure // the reader of our output has gone: nobody to tell
	}
	if text := message(err); text != "" {
		fmt.Fprintf(e.stderr, "layerfs: %s\n", safe(text))
	}
	return exitCode(err)
}

// message is the error with what to do next.
func message(err error) string {
	text := err.Error()
	var r *registry.Error
	if errors.As(err, &r) && r.Hint != "" {
		text += "; " + r.Hint
	}
	text += limitHint(err)
	if errors.Is(err, syscall.ENOSPC) {
		text += "; make room, or choose another disk with --root"
	}
	return text
}

// notInImage is a path that an image does not have. The hint says what to do; "" says nothing.
func notInImage(path string, err error, hint string) error {
	err = &fs.PathError{Op: "find", Path: path, Err: err}
	if hint != "" {
		err = fmt.Errorf("%w; %s", err, hint)
	}
	return &exitError{exitNotFound, err}
}

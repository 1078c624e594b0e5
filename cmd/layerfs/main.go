// Command layerfs mounts container images as directories, changes them, and commits the changes as new images.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if os.Getenv(holderEnv) != "" {
		os.Exit(hold())
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	e := &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
	code := e.main(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

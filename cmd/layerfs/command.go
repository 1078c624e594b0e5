package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/layerfs/layerfs/union/forensic"
	"github.com/spf13/pflag"
)

// A command is one word after layerfs.
type command struct {
	name, args string
	short      string // one line
	long       string // what a user has to know beyond the flags
	hidden     bool   // not in the list of commands
	// setup declares the flags and returns what to run with the arguments left.
	setup func(flags *pflag.FlagSet) runFunc
}

type runFunc func(ctx context.Context, e *env, args []string) error

// commands lists all commands, in the order of the help.
func commands() []command {
	return []command{
		mountCommand, umountCommand, mountsCommand, upgradeCommand,
		diffCommand, commitCommand, copyCommand, convertCommand, indexCommand, pullCommand,
		lsCommand, catCommand, cpCommand, statCommand, findCommand, whichCommand, inspectCommand, historyCommand,
		imagesCommand, containersCommand, timelineCommand, hashCommand, auditCommand, reportCommand, verifyCommand, evidenceCommand,
		cacheCommand, demoCommand, versionCommand, completionCommand(), helpCommand(),
	}
}

// env is what a command has of the world around it.
type env struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
	globals
	log      *slog.Logger
	evidence *forensic.Evidence // nil: nobody wants it
	budget   *budget            // of the mount that is served; nil: no limit

	waitRegistry time.Duration // see registry.Options
	stale        bool          // likewise
}

// main runs the program and returns the exit code.
func (e *env) main(ctx context.Context, args []string) int {
	out := bufio.NewWriter(e.stdout)
	e.stdout = out
	err := e.run(ctx, args)
	if flushErr := out.Flush(); err == nil {
		err = flushErr
	}
	return e.report(ctx, err)
}

func (e *env) run(ctx context.Context, args []string) error {
	if err := e.fromEnvironment(); err != nil {
		return err
	}
	first := e.flagSet("layerfs")
	first.SetInterspersed(false)
	switch err := first.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return e.help(first)
	case err != nil:
		return usage(err)
	}
	if first.NArg() == 0 {
		_ = e.help(first)
		return usageError("a command is missing")
	}
	return e.runCommand(ctx, first.Arg(0), first.Args()[1:])
}

func (e *env) runCommand(ctx context.Context, name string, args []string) error {
	all := commands()
	i := slices.IndexFunc(all, func(c command) bool { return c.name == name })
	if i < 0 {
		return usageError(fmt.Sprintf(`unknown command %q; "layerfs help" lists the commands`, name))
	}
	c := all[i]
	flags := e.flagSet(c.name)
	run := c.setup(flags)
	switch err := flags.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return e.commandHelp(c, flags)
	case err != nil:
		return usage(fmt.Errorf(`%w; see "layerfs %s --help"`, err, c.name))
	}
	if err := e.start(); err != nil {
		return err
	}
	return run(ctx, e, flags.Args())
}

// flagSet has the global flags, with the values they have by now as defaults.
func (e *env) flagSet(name string) *pflag.FlagSet {
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.SortFlags = false
	flags.Usage = func() {}
	e.globals.declare(flags)
	return flags
}

func (e *env) help(global *pflag.FlagSet) error {
	var b strings.Builder
	b.WriteString("layerfs mounts container images as directories.\n\nUsage: layerfs COMMAND [flags] ARGS\n\nCommands:\n")
	for _, c := range commands() {
		if !c.hidden {
			fmt.Fprintf(&b, "  %-11s %s\n", c.name, c.short)
		}
	}
	fmt.Fprintf(&b, "\nGlobal flags, also from the environment as LAYERFS_…:\n%s\n", global.FlagUsages())
	b.WriteString("\"layerfs COMMAND --help\" says more.\n")
	_, err := io.WriteString(e.stdout, b.String())
	return err
}

func (e *env) commandHelp(c command, flags *pflag.FlagSet) error {
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	own.SortFlags = false
	global := e.flagSet("")
	flags.VisitAll(func(f *pflag.Flag) {
		if global.Lookup(f.Name) == nil {
			own.AddFlag(f)
		}
	})
	fmt.Fprintf(e.stdout, "Usage: layerfs %s [flags] %s\n\n%s.\n", c.name, c.args, c.short)
	if c.long != "" {
		fmt.Fprintf(e.stdout, "\n%s\n", strings.TrimSpace(c.long))
	}
	if own.HasFlags() {
		fmt.Fprintf(e.stdout, "\nFlags:\n%s", own.FlagUsages())
	}
	_, err := fmt.Fprintf(e.stdout, "\nGlobal flags: see \"layerfs help\".\n")
	return err
}

func helpCommand() command {
	return command{name: "help", args: "[COMMAND]", short: "Explain the program or a command", setup: func(*pflag.FlagSet) runFunc {
		return func(ctx context.Context, e *env, args []string) error {
			if len(args) == 0 {
				return e.help(e.flagSet("layerfs"))
			}
			return e.runCommand(ctx, args[0], []string{"--help"})
		}
	}}
}

// wantArgs checks the number of arguments; most < 0 is no limit.
func wantArgs(usage string, args []string, least, most int) error {
	if len(args) < least || most >= 0 && len(args) > most {
		return usageError("usage: layerfs " + usage)
	}
	return nil
}

package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/registry"
	"github.com/spf13/pflag"
)

// globals are the flags that every command has.
type globals struct {
	root, cacheSize, platform    string
	authFile, hostsDir           string
	offline, plainHTTP, insecure bool
	logLevel                     string
	logJSON, quiet, verbose      bool
	limits                       limitFlag
	noSandbox                    bool
}

func (g *globals) declare(f *pflag.FlagSet) {
	f.StringVar(&g.root, "root", g.root, "state and cache (default /var/lib/layerfs for root, $XDG_DATA_HOME/layerfs otherwise)")
	f.StringVar(&g.cacheSize, "cache-size", g.cacheSize, "keep the cache below this size on disk: 20GB, 512MiB, none (default: 10 % of its file system)")
	f.StringVar(&g.platform, "platform", g.platform, "OS/ARCH[/VARIANT] to take of a multi-platform image")
	f.BoolVar(&g.offline, "offline", g.offline, "ask no registry; use what the cache holds")
	f.BoolVar(&g.plainHTTP, "plain-http", g.plainHTTP, "allow http for every registry, not for loopback alone")
	f.BoolVar(&g.insecure, "insecure-skip-tls-verify", g.insecure, "accept any certificate")
	f.StringVar(&g.authFile, "authfile", g.authFile, "credentials, in place of the files of docker and podman")
	f.StringVar(&g.hostsDir, "hosts-dir", g.hostsDir, "mirrors of registries, as containerd has them: DIR/HOST[:PORT]/hosts.toml; goes before registries.conf")
	f.Var(&g.limits, "limit", "NAME=N lifts or lowers what a layer may ask for: entries, depth, toc (bytes), unpacked (bytes), ratio")
	f.BoolVar(&g.noSandbox, "no-sandbox", g.noSandbox, "have a mount's server keep the privileges that it does not need")
	f.StringVar(&g.logLevel, "log-level", g.logLevel, "debug, info, warn or error (default warn; info for servers)")
	f.BoolVar(&g.logJSON, "log-json", g.logJSON, "log as JSON lines")
	f.BoolVarP(&g.quiet, "quiet", "q", g.quiet, "no progress and no remarks")
	f.BoolVarP(&g.verbose, "verbose", "v", g.verbose, "log what is done (--log-level debug)")
}

// fromEnvironment takes LAYERFS_ROOT for --root, and so on.
func (e *env) fromEnvironment() error {
	var firstErr error
	e.flagSet("").VisitAll(func(f *pflag.Flag) {
		name := "LAYERFS_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := e.getenv(name)
		if value == "" {
			return
		}
		if err := f.Value.Set(value); err != nil && firstErr == nil {
			firstErr = usageError(fmt.Sprintf("%s=%s: %v", name, value, err))
		}
	})
	return firstErr
}

// start makes ready what depends on the flags.
func (e *env) start() (err error) {
	if e.root == "" {
		e.root = defaultRoot(e.getenv)
	}
	if e.root, err = filepath.Abs(e.root); err != nil {
		return err
	}
	if e.hostsDir != "" { // a server's directory is another one
		if e.hostsDir, err = filepath.Abs(e.hostsDir); err != nil {
			return err
		}
	}
	e.log, err = e.newLog(e.stderr, slog.LevelWarn)
	return err
}

func defaultRoot(getenv func(string) string) string {
	switch {
	case os.Geteuid() == 0:
		return "/var/lib/layerfs"
	case getenv("XDG_DATA_HOME") != "":
		return filepath.Join(getenv("XDG_DATA_HOME"), "layerfs")
	}
	return filepath.Join(getenv("HOME"), ".local/share/layerfs")
}

func (e *env) newLog(w io.Writer, level slog.Level) (*slog.Logger, error) {
	if e.verbose {
		level = slog.LevelDebug
	}
	if e.logLevel != "" {
		if err := level.UnmarshalText([]byte(e.logLevel)); err != nil {
			return nil, usageError("--log-level " + e.logLevel + ": want debug, info, warn or error")
		}
	}
	o := &slog.HandlerOptions{Level: level}
	if e.logJSON {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

func (e *env) openStore() (*cache.Store, error) {
	limit, err := e.cacheLimit()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(e.root, "cache")
	if err := checkOwner(dir); err != nil {
		return nil, fmt.Errorf("open the cache: %w", err)
	}
	s, err := cache.Open(dir, cache.Options{MaxBytes: limit, Logger: e.log})
	if err != nil {
		return nil, fmt.Errorf("open the cache: %w; choose another directory with --root", err)
	}
	return s, nil
}

func (e *env) registryOptions(records registry.Records) registry.Options {
	return registry.Options{
		Platform: e.platform, PlainHTTP: e.plainHTTP, InsecureSkipTLSVerify: e.insecure, Offline: e.offline,
		AuthFile: e.authFile, HostsDir: e.hostsDir, Records: records, Logger: e.log, UserAgent: "layerfs/" + version,
		Wrap: e.noteRequests(), Wait: e.waitRegistry, Stale: e.stale,
	}
}

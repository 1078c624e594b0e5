package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/layerfs/layerfs/cache"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

var pullCommand = command{
	name: "pull", args: "IMAGE", short: "Fetch all of an image into the cache",
	long: `
Afterwards --offline works: nothing of the image has to be fetched any more. Its layers are
the last to leave the cache when --cache-size wants room; "layerfs cache rm" ends that.`,
	setup: func(*pflag.FlagSet) runFunc {
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("pull IMAGE", args, 1, 1); err != nil {
				return err
			}
			e.waitRegistry = defaultWait
			return e.withImage(ctx, args[0], func(im *image) error {
				if err := e.pullAll(ctx, im, runtime.GOMAXPROCS(0)*2); err != nil {
					return err
				}
				_, err := fmt.Fprintln(e.stdout, im.Name)
				return err
			})
		}
	},
}

// fetchAll reads every file of every layer, hidden ones too, so that all of it is in the cache: some layers at a time.
func (im *image) fetchAll(ctx context.Context, atOnce int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, l := range im.layers {
		if !l.Status().Complete {
			g.Go(func() error { return l.Fetch(ctx) })
		}
	}
	return g.Wait()
}

var cacheCommand = command{
	name: "cache", args: "[du|ls|rm|gc|verify] …", short: "Look at and clear what is kept on this machine",
	long: `
du          how much the layers take in all (the default)
ls          each layer: size, on disk, whole or in part, in use, last used
rm IMAGE…   remove the layers and the access profiles of images; sha256:… removes one layer
gc          evict what was used least recently until --cache-size is met (without it: all that is not in use)
verify      read everything and hold it against its checksums; what is damaged is dropped, so that
            it is fetched again, and the exit code is 6

Mounts keep the cache below --cache-size by themselves, the size of everything in the directory, indexes and
temporary files included. They evict pieces of about 1 MiB, the least recently used first, also of layers that
are in use: who reads such a piece again fetches it again. Of mounts with different
sizes the smallest counts, when it writes. A layer that cannot be fetched in parts (a zstd stream of one
frame) goes as a whole, when nobody uses it; what was pulled goes last. If nothing can go, what is read is
kept in memory for a moment. gc and the mounts keep the indexes of layers as long as they can: they are small and spare the
next mount from reading a layer to the end. gc keeps the access profiles.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		asJSON := flags.Bool("json", false, "one JSON document")
		bytes := flags.Bool("bytes", false, "exact sizes")
		return func(ctx context.Context, e *env, args []string) error {
			what := "du"
			if len(args) > 0 {
				what, args = args[0], args[1:]
			}
			store, err := e.openStore()
			if err != nil {
				return err
			}
			defer store.Close()
			switch {
			case what == "du" && len(args) == 0:
				return e.cacheUsage(store, *asJSON, *bytes)
			case what == "ls" && len(args) == 0:
				return e.cacheList(store, *asJSON, *bytes)
			case what == "gc" && len(args) == 0:
				return e.cacheGC(store, *bytes)
			case what == "verify" && len(args) == 0:
				return e.cacheVerify(ctx, store, *asJSON, *bytes)
			case what == "rm" && len(args) > 0:
				return e.cacheRemove(ctx, store, args)
			}
			return usageError("usage: layerfs cache [du|ls|rm IMAGE…|gc|verify]")
		}
	},
}

// A cacheRow is a layer in the cache.
type cacheRow struct {
	Digest   string    `json:"digest"`
	Size     int64     `json:"size"`
	OnDisk   int64     `json:"on_disk"`
	Complete bool      `json:"complete"`
	InUse    bool      `json:"in_use"`
	Used     time.Time `json:"used"`
}

func (e *env) cacheUsage(s *cache.Store, asJSON, exact bool) error {
	list, err := s.Usage()
	if err != nil {
		return err
	}
	var sum struct {
		Layers int   `json:"layers"`
		OnDisk int64 `json:"on_disk"`
		InUse  int64 `json:"in_use"`
	}
	for _, u := range list {
		sum.Layers++
		sum.OnDisk += u.OnDisk
		if u.InUse {
			sum.InUse += u.OnDisk
		}
	}
	if asJSON {
		return writeJSON(e.stdout, sum)
	}
	_, err = fmt.Fprintf(e.stdout, "%d layers, %s on disk, %s of it in use\n", sum.Layers, size(sum.OnDisk, exact), size(sum.InUse, exact))
	return err
}

func (e *env) cacheList(s *cache.Store, asJSON, exact bool) error {
	list, err := s.Usage()
	if err != nil {
		return err
	}
	rows := make([]cacheRow, 0, len(list))
	for _, u := range list {
		rows = append(rows, cacheRow{string(u.Digest), u.Size, u.OnDisk, u.Complete, u.InUse, u.Used.UTC()})
	}
	if asJSON {
		return writeJSON(e.stdout, rows)
	}
	return table(e.stdout, func(w io.Writer) {
		fmt.Fprintln(w, "LAYER\tSIZE\tON DISK\tCOMPLETE\tIN USE\tUSED")
		for _, r := range rows {
			fmt.Fprintf(w, "%s\t%s\t%s\t%t\t%t\t%s\n", shortDigest(hexOf(r.Digest)), size(r.Size, exact), size(r.OnDisk, exact), r.Complete, r.InUse, humanize.Time(r.Used))
		}
	})
}

func (e *env) cacheGC(s *cache.Store, exact bool) error {
	var limit int64
	if e.cacheSize != "" {
		var err error
		if limit, err = e.cacheLimit(); err != nil {
			return err
		}
	}
	freed, err := s.GC(limit)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s freed\n", size(freed, exact))
	return err
}

func (e *env) cacheRemove(ctx context.Context, s *cache.Store, refs []string) error {
	var errs []error
	for _, ref := range refs {
		digests, err := e.layersOf(ctx, ref)
		errs = append(errs, err)
		for _, d := range digests {
			err := s.Remove(d)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove %s: %w", d, err))
			}
		}
		errs = append(errs, dropProfile(s, digests))
	}
	return errors.Join(errs...)
}

// layersOf are the layers of an image, or one by its digest.
func (e *env) layersOf(ctx context.Context, ref string) ([]digest.Digest, error) {
	if d, err := digest.Parse(ref); err == nil {
		return []digest.Digest{d}, nil
	}
	im, err := e.openManifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer im.Close()
	var list []digest.Digest
	for _, d := range im.Manifest.Layers {
		list = append(list, d.Digest)
	}
	return list, nil
}

var versionCommand = command{
	name: "version", args: "", short: "Print the version",
	setup: func(flags *pflag.FlagSet) runFunc {
		asJSON := flags.Bool("json", false, "one JSON document")
		return func(_ context.Context, e *env, args []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok && v.Version == "unknown" && info.Main.Version != "" {
				v.Version = info.Main.Version
			}
			if *asJSON {
				return writeJSON(e.stdout, v)
			}
			_, err := fmt.Fprintf(e.stdout, "layerfs %s %s %s/%s\n", v.Version, v.Go, v.OS, v.Arch)
			return err
		}
	},
}

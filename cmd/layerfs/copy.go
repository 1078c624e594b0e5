package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/layerfs/layerfs/registry"
	"github.com/spf13/pflag"
)

var copyCommand = command{
	name: "copy", args: "SRC DEST", short: "Copy an image from one place to another",
	long: `
SRC is any image; DEST is a name in a registry, oci:DIR:TAG, oci-archive:FILE:TAG or
docker-archive:FILE:REF. Prints DEST with its digest, which is that of SRC:
no byte of a manifest, config or layer is changed. A docker archive is the
exception: it has no place for a manifest, and what reads it later makes another.

What DEST has already is not sent; a registry takes over what it has in another
repository; the rest is streamed through and verified. The tag moves last.

Of a multi-platform image the one of --platform (default: of this machine) is
copied, or with --all everything that its index names, attestations included.
Signatures and other referrers stay behind.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		all := flags.Bool("all", false, "every platform, and the index as it is")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("copy [flags] SRC DEST", args, 2, 2); err != nil {
				return err
			}
			return e.copyImage(ctx, args[0], args[1], *all)
		}
	},
}

func (e *env) copyImage(ctx context.Context, src, dest string, all bool) error {
	store, err := e.openStore()
	if err != nil {
		return err
	}
	defer store.Close()
	p := e.newProgress()
	_, name, err := registry.Copy(ctx, src, dest, registry.CopyOptions{Options: e.registryOptions(store), All: all, Progress: p.blob})
	p.done()
	if err != nil {
		return err
	}
	e.remarkArchive(dest)
	_, err = fmt.Fprintln(e.stdout, name)
	return err
}

// remarkArchive warns of digests that will not be met again.
func (e *env) remarkArchive(dest string) {
	if strings.HasPrefix(dest, "docker-archive:") {
		e.remark("a docker archive keeps layers and config, not the manifest: what loads it makes a new one, with another digest")
	}
}

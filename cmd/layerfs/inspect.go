package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/layerfs/layerfs/union/layer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
)

var inspectCommand = command{
	name: "inspect", args: "IMAGE", short: "Show the manifest, the config and the layers of an image",
	long: `
No layer is fetched. INDEX and LAZY are what a mount would find now: a layer without an
index is read whole by its first mount, which makes one. With --profile it prints the paths of the files that earlier
mounts of the image read when it started, one a line, in order: what "mount
--prefetch auto" fetches.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		asJSON := flags.Bool("json", false, "one JSON document, manifest and config as they are")
		bytes := flags.Bool("bytes", false, "exact sizes")
		profile := flags.Bool("profile", false, "print which files a start reads")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("inspect [flags] IMAGE", args, 1, 1); err != nil {
				return err
			}
			im, err := e.openManifest(ctx, args[0])
			if err != nil {
				return err
			}
			defer im.Close()
			e.warn(im)
			if *profile {
				return e.printProfile(im, *asJSON)
			}
			if *asJSON {
				return writeJSON(e.stdout, im.inspection())
			}
			return im.printInspection(e.stdout, *bytes)
		}
	},
}

// An inspection is what inspect --json prints.
type inspection struct {
	Name     string             `json:"name"`
	Manifest ocispec.Descriptor `json:"descriptor"`
	Raw      json.RawMessage    `json:"manifest"`
	Config   json.RawMessage    `json:"config"`
	Layers   []inspectedLayer   `json:"layers"`
}

type inspectedLayer struct {
	Layer     int    `json:"layer"`
	MediaType string `json:"media_type"`
	Digest    string `json:"digest"`
	DiffID    string `json:"diff_id,omitempty"`
	Size      int64  `json:"size"`
	Index     string `json:"index"`
	Lazy      bool   `json:"lazy"`
	Directory string `json:"directory,omitempty"` // of a layer on disk
	Role      string `json:"role,omitempty"`      // of a container's layer: init, container
	Step      string `json:"build_step,omitempty"`
}

func (im *image) inspection() inspection {
	out := inspection{Name: im.Name, Manifest: im.Desc, Raw: im.RawManifest, Config: im.RawConfig, Layers: []inspectedLayer{}}
	steps := im.steps()
	for i, d := range im.Manifest.Layers {
		index, lazy := layer.IndexKind(d, im.store)
		l := inspectedLayer{
			Layer: i + 1, MediaType: d.MediaType, Digest: string(d.Digest), DiffID: string(im.diffID(i)), Size: d.Size, Index: index, Lazy: lazy, Step: steps[i],
		}
		if im.isDir(i) {
			l.Index, l.Lazy, l.Directory, l.Role = "dir", false, im.Unpacked.Layers[i].Dir, im.Unpacked.Layers[i].Role
		}
		out.Layers = append(out.Layers, l)
	}
	return out
}

func (im *image) printInspection(w io.Writer, exact bool) error {
	c := im.Config
	return table(w, func(w io.Writer) {
		fmt.Fprintf(w, "Name\t%s\n", safe(im.Name))
		fmt.Fprintf(w, "Digest\t%s\n", im.Desc.Digest)
		fmt.Fprintf(w, "Media type\t%s\n", safe(im.Desc.MediaType))
		fmt.Fprintf(w, "Platform\t%s\n", safe(strings.Trim(c.OS+"/"+c.Architecture+"/"+c.Variant, "/")))
		if c.Created != nil {
			fmt.Fprintf(w, "Created\t%s\n", localTime(*c.Created))
		}
		if c.Author != "" {
			fmt.Fprintf(w, "Author\t%s\n", safe(c.Author))
		}
		for _, row := range []struct {
			name   string
			values []string
		}{{"Entrypoint", c.Config.Entrypoint}, {"Cmd", c.Config.Cmd}, {"Env", c.Config.Env}} {
			if len(row.values) > 0 {
				fmt.Fprintf(w, "%s\t%s\n", row.name, safe(strings.Join(row.values, " ")))
			}
		}
		fmt.Fprintf(w, "Size\t%s\n\n", size(im.size(), exact))
		fmt.Fprintln(w, "LAYER\tDIGEST\tSIZE\tINDEX\tLAZY\tMEDIA TYPE")
		for _, l := range im.inspection().Layers {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%t\t%s\n", l.Layer, shortDigest(hexOf(l.Digest)), size(l.Size, exact), l.Index, l.Lazy, safe(l.MediaType))
		}
	})
}

func hexOf(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex
}

// steps are the build steps of the layers, where the history says them.
func (im *image) steps() []string {
	steps := make([]string, len(im.Manifest.Layers))
	i := 0
	for _, h := range im.Config.History {
		if !h.EmptyLayer && i < len(steps) {
			steps[i] = h.CreatedBy
			i++
		}
	}
	return steps
}

// oneLine keeps a build step on a line.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 100 {
		return string(r[:99]) + "…"
	}
	return s
}

var historyCommand = command{
	name: "history", args: "IMAGE", short: "Show the build steps of an image, each with its layer",
	setup: func(flags *pflag.FlagSet) runFunc {
		asJSON := flags.Bool("json", false, "one JSON document")
		bytes := flags.Bool("bytes", false, "exact sizes")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("history [flags] IMAGE", args, 1, 1); err != nil {
				return err
			}
			im, err := e.openManifest(ctx, args[0])
			if err != nil {
				return err
			}
			defer im.Close()
			e.warn(im)
			rows := im.history()
			if *asJSON {
				return writeJSON(e.stdout, rows)
			}
			return table(e.stdout, func(w io.Writer) { printHistory(w, rows, *bytes) })
		}
	},
}

// A historyRow is a build step, or a layer that no step speaks of.
type historyRow struct {
	Layer     int        `json:"layer"` // from 1; 0: the step made no layer
	Digest    string     `json:"digest,omitempty"`
	Size      int64      `json:"size"`
	Created   *time.Time `json:"created,omitempty"`
	CreatedBy string     `json:"created_by,omitempty"`
	Author    string     `json:"author,omitempty"`
	Comment   string     `json:"comment,omitempty"`
}

func (im *image) history() []historyRow {
	rows := []historyRow{}
	next := 0
	take := func(r *historyRow) {
		if next < len(im.Manifest.Layers) {
			d := im.Manifest.Layers[next]
			next++
			r.Layer, r.Digest, r.Size = next, string(d.Digest), d.Size
		}
	}
	for _, h := range im.Config.History {
		r := historyRow{Created: h.Created, CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment}
		if !h.EmptyLayer {
			take(&r)
		}
		rows = append(rows, r)
	}
	for next < len(im.Manifest.Layers) {
		r := historyRow{}
		take(&r)
		rows = append(rows, r)
	}
	return rows
}

func printHistory(w io.Writer, rows []historyRow, exact bool) {
	fmt.Fprintln(w, "LAYER\tDIGEST\tSIZE\tCREATED\tCREATED BY")
	for _, r := range rows {
		number, digest, bytes, created := "-", "-", "-", "-"
		if r.Layer > 0 {
			number, digest, bytes = fmt.Sprint(r.Layer), shortDigest(hexOf(r.Digest)), size(r.Size, exact)
		}
		if r.Created != nil {
			created = localTime(*r.Created)
		}
		by := oneLine(r.CreatedBy)
		if r.Comment != "" {
			by += " (" + oneLine(r.Comment) + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", number, digest, bytes, created, safe(by))
	}
}

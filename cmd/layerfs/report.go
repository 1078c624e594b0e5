package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic/audit"
	"github.com/layerfs/layerfs/union/forensic/report"
	"github.com/spf13/pflag"
)

var reportCommand = command{
	name: "report", args: "IMAGE", short: "Write one HTML page of an image: layers, waste, timeline, findings",
	long: `
The page needs nothing but itself: no script, nothing that is loaded. It has the layers
with their build steps, what they carry that later ones hide, a picture of what takes
the room, the times of change down to the day, and what "layerfs audit" finds; with
--diff OTHER also what leads from another image to this one, as "layerfs diff" has it.

--no-content leaves out what wants content: checksums, and secrets in files.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		var o audit.Options
		out := flags.StringP("output", "o", "", "the file to write, or - for standard output")
		force := flags.Bool("force", false, "replace the file if it is there")
		other := flags.String("diff", "", "compare with this image, too")
		flags.BoolVar(&o.NoContent, "no-content", false, "do not read files")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("report [flags] IMAGE -o FILE.html", args, 1, 1); err != nil {
				return err
			}
			if *out == "" {
				return usageError("report wants -o FILE.html")
			}
			return e.withImage(ctx, args[0], func(im *image) error { return e.writeReport(ctx, im, o, *other, *out, *force) })
		}
	},
}

// writeReport writes the page, whole or not at all.
func (e *env) writeReport(ctx context.Context, im *image, o audit.Options, other, out string, force bool) (err error) {
	page, err := e.reportOf(ctx, im, o)
	if err == nil && other != "" {
		page.Against, err = e.against(ctx, other, im)
	}
	if err != nil {
		return err
	}
	if out == "-" {
		return report.Write(e.stdout, page)
	}
	return writeWhole(out, force, func(w io.Writer) error { return report.Write(w, page) })
}

// against compares an image with the one that is reported on.
func (e *env) against(ctx context.Context, ref string, im *image) (a *report.Against, err error) {
	err = e.withImage(ctx, ref, func(o *image) error {
		a = &report.Against{Name: o.Name}
		for c, err := range union.Diff(ctx, union.New(o.tree, nil), union.New(im.tree, nil), union.DiffOptions{}) {
			if err != nil {
				return err
			}
			a.Changes = append(a.Changes, c)
		}
		return nil
	})
	return a, err
}

// writeWhole writes a new file by another name first.
func writeWhole(path string, force bool, write func(io.Writer) error) (err error) {
	if _, err := os.Lstat(path); err == nil && !force {
		return fmt.Errorf("%s is there already; --force replaces it", path)
	}
	tmp := path + ".part"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp))
		}
	}()
	w := bufio.NewWriter(f)
	if err := errors.Join(write(w), w.Flush(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func (e *env) reportOf(ctx context.Context, im *image, o audit.Options) (report.Image, error) {
	p := report.Image{
		Name: im.Name, Digest: im.Desc.Digest, Platform: strings.Trim(im.Config.OS+"/"+im.Config.Architecture+"/"+im.Config.Variant, "/"),
		Config: im.configRows(), Tree: im.tree, Layers: im.layers, Steps: im.buildSteps(), Tool: "layerfs " + version,
	}
	if im.Config.Created != nil {
		p.Created = *im.Config.Created
	}
	for _, d := range im.descs {
		p.Blobs = append(p.Blobs, d.Size)
	}
	result, err := audit.Run(ctx, im.audited(), o, func(f audit.Finding) error {
		p.Findings = append(p.Findings, f)
		return nil
	})
	p.Notes = result.Unreadable
	if len(result.Databases) == 0 {
		p.Notes = append(p.Notes, "No package database that is read (dpkg, apk, rpm): nothing is said of who owns a file.")
	}
	if o.NoContent {
		p.Notes = append(p.Notes, "Made without content: no checksums were compared, no secrets looked for in files.")
	}
	return p, err
}

// audited is the image as package audit wants it.
func (im *image) audited() audit.Image {
	return audit.Image{Tree: im.tree, Layers: im.layers, Words: im.words()}
}

// configRows are what the config says of how the image is run.
func (im *image) configRows() (rows [][2]string) {
	c := im.Config.Config
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, [2]string{name, value})
		}
	}
	add("entrypoint", strings.Join(c.Entrypoint, " "))
	add("command", strings.Join(c.Cmd, " "))
	add("user", c.User)
	add("working directory", c.WorkingDir)
	add("ports", strings.Join(slices.Sorted(maps.Keys(c.ExposedPorts)), " "))
	add("volumes", strings.Join(slices.Sorted(maps.Keys(c.Volumes)), " "))
	for _, v := range c.Env {
		add("environment", v)
	}
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		add("label", k+"="+c.Labels[k])
	}
	return rows
}

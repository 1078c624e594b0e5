package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/layerfs/layerfs/union/forensic/audit"
	"github.com/spf13/pflag"
)

var auditCommand = command{
	name: "audit", args: "IMAGE", short: "List what in an image deserves a look: rights, foreign and changed files, secrets",
	long: `
Of all files: setuid and setgid programs, capabilities, devices, what anybody may
write, names that hide, programs where data belongs. Where dpkg, apk or rpm keeps its
database in the image: files that no package has, that are missing, that are not
what the package brought. In all layers, also in what later ones delete, and in the
config: private keys, tokens, passwords, of which only the first characters are shown.

Each line has the rule, the path, the layer that made it so and the build step.
--no-content reads nothing but metadata and package databases.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		var o audit.Options
		flags.BoolVar(&o.NoContent, "no-content", false, "do not read files: no checksums, no secrets in files")
		asJSON := flags.Bool("json", false, "one JSON document a line")
		exitCode := flags.Bool("exit-code", false, "exit with 10 if anything was found")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("audit [flags] IMAGE", args, 1, 1); err != nil {
				return err
			}
			n := 0
			err := e.withImage(ctx, args[0], func(im *image) (err error) {
				n, err = e.audit(ctx, im, o, *asJSON)
				return err
			})
			if err == nil && *exitCode && n > 0 {
				return &exitError{exitDifferent, fmt.Errorf("audit %s: %d findings", args[0], n)}
			}
			return err
		}
	},
}

func (e *env) audit(ctx context.Context, im *image, o audit.Options, asJSON bool) (n int, err error) {
	steps := im.steps()
	result, err := audit.Run(ctx, im.audited(), o, func(f audit.Finding) error {
		n++
		r := findingRow{Rule: f.Rule, Path: f.Path, Layer: f.Layer + 1, State: f.State, Detail: f.Detail, Files: f.Files}
		if f.Layer >= 0 && f.Layer < len(im.layers) {
			r.Digest, r.Step = string(im.layers[f.Layer].Digest()), steps[f.Layer]
		}
		if f.Path != "" {
			r.Path = "/" + f.Path
		}
		return r.print(e.stdout, asJSON)
	})
	for _, why := range result.Unreadable {
		e.remark("%s", why)
	}
	if len(result.Databases) == 0 && err == nil {
		e.remark("no package database that is read (dpkg, apk, rpm): nothing is said of who owns a file")
	}
	if err == nil {
		e.remark("%d findings; packages: %s; %s of content read", n, strings.Join(result.Databases, ", "), size(result.Read, false))
	}
	return n, err
}

// words are the texts of the config that may hold secrets.
func (im *image) words() (list []audit.Words) {
	for _, v := range im.Config.Config.Env {
		list = append(list, audit.Words{Where: "the environment", Text: v, Layer: -1})
	}
	for k, v := range im.Config.Config.Labels {
		list = append(list, audit.Words{Where: "label " + k, Text: v, Layer: -1})
	}
	for _, v := range slices.Concat(im.Config.Config.Entrypoint, im.Config.Config.Cmd) {
		list = append(list, audit.Words{Where: "the command", Text: v, Layer: -1})
	}
	for _, s := range im.buildSteps() {
		list = append(list, audit.Words{Where: "a build step", Text: s.CreatedBy, Layer: s.Layer})
	}
	return list
}

// A findingRow is a finding as it is printed.
type findingRow struct {
	Rule   string `json:"rule"`
	Path   string `json:"path,omitempty"`
	Layer  int    `json:"layer,omitempty"` // from 1 at the base
	Digest string `json:"layer_digest,omitempty"`
	Step   string `json:"build_step,omitempty"`
	State  string `json:"state,omitempty"`
	Detail string `json:"detail"`
	Files  int    `json:"files,omitempty"`
}

func (r findingRow) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return writeJSONLine(w, r)
	}
	where, step := "", ""
	if r.Layer > 0 {
		where = fmt.Sprintf("  layer %d", r.Layer)
	}
	if r.Step != "" {
		step = "  (" + safe(oneLine(r.Step)) + ")"
	}
	if r.State != "" && r.State != "visible" {
		where += ", " + r.State
	}
	path := safe(r.Path)
	if path == "" {
		path = "config"
	}
	_, err := fmt.Fprintf(w, "%-14s  %s%s  %s%s\n", r.Rule, path, where, safe(r.Detail), step)
	return err
}

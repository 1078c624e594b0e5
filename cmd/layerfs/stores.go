package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/layerfs/layerfs/registry/storage"
	"github.com/spf13/pflag"
)

var imagesCommand = storeCommand("images", "List the images in a storage root of docker, podman or containerd", imageRows)

var containersCommand = storeCommand("containers", "List the containers in a storage root of docker, podman or containerd", containerRows)

// storeCommand lists what a storage root holds.
func storeCommand(name, short string, list func(*storage.Store) ([]storeRow, error)) command {
	return command{
		name: name, args: "DIR", short: short,
		long: `
DIR is a docker data root (/var/lib/docker), a graph root of containers-storage
(podman: /var/lib/containers/storage, ~/.local/share/containers/storage) or a containerd
root (/var/lib/containerd), also of a disk that is only looked at: no engine is asked, and
nothing in DIR is changed, access times included where the system allows it.
REF in the JSON is what the other commands take.`,
		setup: func(flags *pflag.FlagSet) runFunc {
			asJSON := flags.Bool("json", false, "one JSON document")
			bytes := flags.Bool("bytes", false, "exact sizes")
			return func(_ context.Context, e *env, args []string) error {
				if err := wantArgs(name+" [flags] DIR", args, 1, 1); err != nil {
					return err
				}
				return e.listStore(args[0], list, *asJSON, *bytes)
			}
		},
	}
}

// A storeRow is an image or a container of a storage root.
type storeRow struct {
	ID      string        `json:"id"`
	Ref     string        `json:"ref"`
	Names   []string      `json:"names"`
	Created *time.Time    `json:"created,omitempty"`
	State   string        `json:"state,omitempty"`    // of containers
	Image   string        `json:"image,omitempty"`    // of containers: its name
	ImageID string        `json:"image_id,omitempty"` // of containers
	Size    int64         `json:"size"`               // of the layers' files, as far as the store says
	Layers  []storedLayer `json:"layers"`             // the base first
	Problem string        `json:"problem,omitempty"`  // why it cannot be opened

	Warnings []string `json:"warnings,omitempty"`
}

// A storedLayer is a layer as a store keeps it.
type storedLayer struct {
	ID        string `json:"id"`
	DiffID    string `json:"diff_id,omitempty"`
	Role      string `json:"role,omitempty"` // init, container
	Directory string `json:"directory,omitempty"`
	Size      *int64 `json:"size,omitempty"`
}

func (e *env) listStore(dir string, list func(*storage.Store) ([]storeRow, error), asJSON, exact bool) error {
	s, err := storage.Open(dir)
	if err != nil {
		return storeError(err)
	}
	rows, err := list(s)
	if err := errors.Join(err, s.Close()); err != nil {
		return storeError(err)
	}
	for i := range rows {
		rows[i].Ref = storeTransports[s.Kind] + ":" + dir + "#" + rows[i].ID
	}
	if asJSON {
		return writeJSON(e.stdout, rows)
	}
	for _, r := range rows {
		for _, w := range append(r.Warnings, r.Problem) {
			if w != "" {
				fmt.Fprintf(e.stderr, "layerfs: warning: %s: %s\n", safe(r.Ref), safe(strings.ReplaceAll(w, "\n", "; ")))
			}
		}
	}
	return table(e.stdout, func(w io.Writer) { printStore(w, rows, exact) })
}

var storeTransports = map[string]string{storage.Docker: "docker-root", storage.Containers: "containers-storage", storage.Containerd: "containerd-root"}

// storeError gives an error of package storage its exit code.
func storeError(err error) error {
	switch {
	case errors.Is(err, storage.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return &exitError{exitNotFound, err}
	case errors.Is(err, storage.ErrDamaged):
		return &exitError{exitIntegrity, err}
	}
	return err
}

func imageRows(s *storage.Store) ([]storeRow, error) {
	list, err := s.Images()
	rows := []storeRow{}
	for _, im := range list {
		r := newStoreRow(im.ID, im.Names, im.Created, im.Layers, im.Problem)
		r.Warnings = im.Warnings
		rows = append(rows, r)
	}
	return rows, err
}

func containerRows(s *storage.Store) ([]storeRow, error) {
	list, err := s.Containers()
	rows := []storeRow{}
	for _, c := range list {
		r := newStoreRow(c.ID, c.Names, c.Created, c.Layers, c.Problem)
		r.State, r.Image, r.ImageID, r.Warnings = c.State, c.Image, c.ImageID, c.Warnings
		rows = append(rows, r)
	}
	return rows, err
}

func newStoreRow(id string, names []string, created time.Time, layers []storage.Layer, problem error) storeRow {
	r := storeRow{ID: id, Names: append([]string{}, names...), Layers: []storedLayer{}}
	if !created.IsZero() {
		utc := created.UTC()
		r.Created = &utc
	}
	if problem != nil {
		r.Problem = problem.Error()
	}
	for _, l := range layers {
		out := storedLayer{ID: l.ID, DiffID: string(l.DiffID), Role: l.Role, Directory: l.Dir}
		if l.Size >= 0 {
			out.Size = &l.Size
			r.Size += l.Size
		}
		r.Layers = append(r.Layers, out)
	}
	return r
}

func printStore(w io.Writer, rows []storeRow, exact bool) {
	head := "ID\tNAMES\tCREATED\tLAYERS\tSIZE"
	containers := len(rows) > 0 && rows[0].State+rows[0].Image+rows[0].ImageID != ""
	if containers {
		head += "\tSTATE\tIMAGE"
	}
	fmt.Fprintln(w, head)
	for _, r := range rows {
		created := "-"
		if r.Created != nil {
			created = localTime(*r.Created)
		}
		names := "-"
		if len(r.Names) > 0 {
			names = strings.Join(r.Names, ",")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s", safe(shortID(r.ID)), safe(names), created, len(r.Layers), size(r.Size, exact))
		if containers {
			fmt.Fprintf(w, "\t%s\t%s", dash(r.State), dash(r.Image))
		}
		fmt.Fprintln(w)
	}
}

// shortID is an ID as the engines print it; names that are no digests stay whole.
func shortID(id string) string {
	hex := strings.TrimPrefix(id, "sha256:")
	if len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == "" {
		return shortDigest(hex)
	}
	return id
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return safe(s)
}

package main

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/spf13/pflag"
)

var timelineCommand = command{
	name: "timeline", args: "IMAGE…", short: "List when files were changed, in all layers, also of what was deleted",
	long: `
Every entry of every layer with its time of change, deletions, and the build
steps. A file that a later layer overwrites or deletes is named with its layer
and its fate: "/etc/passwd [layer 1, overwritten by layer 2]".`,
	setup: func(flags *pflag.FlagSet) runFunc {
		format := flags.String("format", forensic.Bodyfile, "bodyfile (for mactime), plaso, jsonl or csv (for timesketch)")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("timeline [flags] IMAGE…", args, 1, -1); err != nil {
				return err
			}
			if !strings.Contains(" bodyfile plaso jsonl csv ", " "+*format+" ") {
				return usageError("--format " + *format + ": want bodyfile, plaso, jsonl or csv")
			}
			for _, ref := range args {
				err := e.withImage(ctx, ref, func(im *image) error {
					return forensic.Timeline(e.stdout, *format, im.layers, im.buildSteps())
				})
				if err != nil {
					return err
				}
			}
			return nil
		}
	},
}

// buildSteps is the history as package forensic wants it.
func (im *image) buildSteps() []forensic.Step {
	var steps []forensic.Step
	next := 0
	for _, h := range im.Config.History {
		s := forensic.Step{Layer: -1, CreatedBy: h.CreatedBy}
		if h.Created != nil {
			s.Created = *h.Created
		}
		if !h.EmptyLayer && next < len(im.layers) {
			s.Layer = next
			next++
		}
		steps = append(steps, s)
	}
	return steps
}

var hashCommand = command{
	name: "hash", args: "IMAGE", short: "Print the checksums of all files of an image",
	long: `
The names are relative to the root, so that "sha256sum -c" and "hashdeep -a"
can be run in a mount of the image, and "mtree -p MOUNT" against it.

--match prints only the files whose checksum stands in a list of known ones: lines of
sha256sum, md5sum or hashdeep, CSV as of the NSRL, or bare checksums; those of the length
of the algorithm are taken. Exit code 10: there are such files.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		format := flags.String("format", "sha256sum", "sha256sum, hashdeep, mtree or jsonl")
		useMD5 := flags.Bool("md5", false, "MD5 in place of SHA-256")
		useSHA1 := flags.Bool("sha1", false, "SHA-1 in place of SHA-256")
		match := flags.String("match", "", "print only files whose checksum this list has")
		return func(ctx context.Context, e *env, args []string) error {
			if err := wantArgs("hash [flags] IMAGE", args, 1, 1); err != nil {
				return err
			}
			h := &hasher{w: e.stdout, name: "sha256", make: sha256.New, sums: map[union.ID]string{}}
			switch {
			case *useMD5 && *useSHA1:
				return usageError("--md5 and --sha1 exclude each other")
			case *useMD5:
				h.name, h.make = "md5", md5.New
			case *useSHA1:
				h.name, h.make = "sha1", sha1.New
			}
			if h.line = h.formats()[*format]; h.line == nil {
				return usageError("--format " + *format + ": want sha256sum, hashdeep, mtree or jsonl")
			}
			if *match != "" {
				return e.match(ctx, args[0], h, *format, *match)
			}
			return e.withImage(ctx, args[0], func(im *image) error { return h.run(ctx, im, *format) })
		}
	},
}

// A hasher prints a line for each path.
type hasher struct {
	w    io.Writer
	name string
	make func() hash.Hash
	sums map[union.ID]string // of hardlinked files
	line func(p string, r fileRow, sum string) error

	known   map[string]bool // checksums of the files to print; nil: all
	matches int
}

func (h *hasher) formats() map[string]func(p string, r fileRow, sum string) error {
	return map[string]func(string, fileRow, string) error{"sha256sum": h.sumLine, "hashdeep": h.hashdeepLine, "mtree": h.mtreeLine, "jsonl": h.jsonLine}
}

func (h *hasher) run(ctx context.Context, im *image, format string) error {
	switch format {
	case "hashdeep":
		fmt.Fprintf(h.w, "%%%%%%%% HASHDEEP-1.0\n%%%%%%%% size,%s,filename\n## Made by layerfs\n##\n", h.name)
	case "mtree":
		fmt.Fprint(h.w, "#mtree\n")
	}
	return h.node(ctx, im, ".", union.Root)
}

func (h *hasher) node(ctx context.Context, im *image, p string, id union.ID) error {
	r := im.row(p, id)
	sum := h.sums[id]
	if r.Type == "file" && sum == "" {
		f := h.make()
		if err := im.copyTo(ctx, f, p, id); err != nil {
			return err
		}
		sum = hex.EncodeToString(f.Sum(nil))
		if r.Links > 1 {
			h.sums[id] = sum
		}
	}
	if h.known == nil || h.known[sum] {
		h.matches++
		if err := h.line(p, r, sum); err != nil {
			return err
		}
	}
	if r.Type != "dir" {
		return nil
	}
	for name, child := range im.tree.Children(id) {
		if err := h.node(ctx, im, path.Join(p, name), child); err != nil {
			return err
		}
	}
	return nil
}

// sumLine is a line of sha256sum(1), which marks names with a backslash or a line's end by a backslash in front.
func (h *hasher) sumLine(p string, r fileRow, sum string) (err error) {
	if r.Type != "file" {
		return nil
	}
	escaped := strings.NewReplacer("\\", "\\\\", "\n", "\\n", "\r", "\\r").Replace(p)
	if escaped != p {
		sum = "\\" + sum
	}
	_, err = fmt.Fprintf(h.w, "%s  %s\n", sum, escaped)
	return err
}

func (h *hasher) hashdeepLine(p string, r fileRow, sum string) (err error) {
	if r.Type == "file" {
		_, err = fmt.Fprintf(h.w, "%d,%s,./%s\n", r.Size, sum, p)
	}
	return err
}

// mtreeLine is a line of mtree(5) with a whole path.
func (h *hasher) mtreeLine(p string, r fileRow, sum string) error {
	if p != "." {
		p = "./" + p
	}
	fmt.Fprintf(h.w, "%s type=%s mode=%s uid=%d gid=%d", vis(p), map[string]string{"symlink": "link"}[r.Type]+map[bool]string{true: r.Type}[r.Type != "symlink"], r.Mode, r.UID, r.GID)
	switch r.Type {
	case "file":
		fmt.Fprintf(h.w, " size=%d nlink=%d %s=%s", r.Size, r.Links, h.name, sum)
	case "symlink":
		fmt.Fprintf(h.w, " link=%s", vis(r.Target))
	case "char", "block":
		fmt.Fprintf(h.w, " device=linux,%d,%d", r.Major, r.Minor)
	}
	_, err := fmt.Fprintf(h.w, " time=%d.%09d\n", r.Mtime.Unix(), r.Mtime.Nanosecond())
	return err
}

// vis writes what is no plain character as three octal digits, as vis(3) does with VIS_OCTAL.
func vis(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\\#*?[=", c) >= 0 {
			fmt.Fprintf(&b, "\\%03o", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func (h *hasher) jsonLine(_ string, r fileRow, sum string) error {
	return writeJSONLine(h.w, struct {
		fileRow
		Algorithm string `json:"algorithm,omitempty"`
		Sum       string `json:"sum,omitempty"`
	}{r, map[bool]string{true: h.name}[sum != ""], sum})
}

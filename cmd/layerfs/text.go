package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/layerfs/layerfs/union/forensic"
)

// safe makes a name from an image or a registry harmless to a terminal.
func safe(s string) string { return forensic.Printable(s) }

// size prints a size for people, or exactly.
func size(n int64, exact bool) string {
	if exact {
		return fmt.Sprint(n)
	}
	return humanize.Bytes(uint64(max(n, 0)))
}

// shortDigest is what people recognise of a digest.
func shortDigest(hex string) string { return hex[:min(12, len(hex))] }

// localTime prints a time as people want it.
func localTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table aligns columns; cells are separated by tabs, and are made safe by who writes them.
func table(w io.Writer, write func(w io.Writer)) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	write(t)
	return t.Flush()
}

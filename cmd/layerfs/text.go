package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
)

// safe makes a name from an image or a registry harmless to a terminal:
// control characters, invisible ones and invalid UTF-8 become \xNN or \u{N}.
func safe(s string) string {
	clean := func(r rune) bool { return r != utf8.RuneError && r != '\\' && unicode.IsPrint(r) }
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1, r < 0x20, r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\\':
			b.WriteString(`\\`)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

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

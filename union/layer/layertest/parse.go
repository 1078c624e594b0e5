package layertest

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Parse reads a text archive. Its errors name the line.
func Parse(text string) ([]Entry, error) {
	var entries []Entry
	for i, line := range strings.Split(text, "\n") {
		words, err := splitWords(line)
		if err == nil && len(words) > 0 {
			var e Entry
			if e, err = parseEntry(words); err == nil {
				entries = append(entries, e)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("text archive: line %d: %w", i+1, err)
		}
	}
	return entries, nil
}

// A word is unquoted. Only one that was not quoted at its start can be more than
// content or a name.
type word struct {
	text   string
	quoted bool
}

// splitWords cuts a line at blanks, unquotes, and drops what stands behind a #.
func splitWords(line string) ([]word, error) {
	var words []word
	rest := strings.TrimLeft(line, " \t\r")
	for rest != "" && rest[0] != '#' {
		w := word{quoted: rest[0] == '"'}
		for rest != "" && !strings.ContainsRune(" \t\r", rune(rest[0])) {
			part := rest[:endOfPart(rest)]
			if rest[0] == '"' {
				var err error
				if part, err = strconv.QuotedPrefix(rest); err != nil {
					return nil, fmt.Errorf("%s: %w", rest, err)
				}
			}
			rest = rest[len(part):]
			if part[0] == '"' {
				part, _ = strconv.Unquote(part) // QuotedPrefix has checked it
			}
			w.text += part
		}
		words = append(words, w)
		rest = strings.TrimLeft(rest, " \t\r")
	}
	return words, nil
}

// endOfPart is where an unquoted part of a word ends.
func endOfPart(s string) int {
	if i := strings.IndexAny(s, " \t\r\""); i >= 0 {
		return i
	}
	return len(s)
}

func parseEntry(words []word) (Entry, error) {
	kind := words[0].text
	typ, ok := types[kind]
	if !ok {
		return Entry{}, fmt.Errorf("no such type: %s", kind)
	}
	if len(words) < 2 {
		return Entry{}, fmt.Errorf("%s: no name", kind)
	}
	e := Entry{Type: typ, Name: words[1].text, Mode: 0o644, Sec: Epoch}
	switch kind {
	case "dir":
		e.Mode = 0o755
	case "symlink":
		e.Mode = 0o777
	case "whiteout":
		dir, base := path.Split(e.Name)
		e.Name = dir + ".wh." + base
	case "opaque":
		e.Name = strings.TrimSuffix(e.Name, "/") + "/.wh..wh..opq"
	case "sparse":
		e.Sparse = "1.0"
	}
	rest, err := e.parseArgument(kind, words[2:])
	for _, w := range rest {
		if err == nil {
			err = e.parseAttr(kind, w)
		}
	}
	if err == nil {
		err = e.check()
	}
	if err != nil {
		return Entry{}, fmt.Errorf("%s %s: %w", kind, e.Name, err)
	}
	return e, nil
}

// parseArgument reads what must stand behind the name.
func (e *Entry) parseArgument(kind string, words []word) ([]word, error) {
	if !slices.Contains([]string{"link", "symlink", "random", "text", "zero", "sparse", "char", "block"}, kind) {
		return words, nil
	}
	if len(words) == 0 {
		return nil, errors.New("something is missing behind the name")
	}
	arg, err := words[0].text, error(nil)
	switch kind {
	case "link", "symlink":
		e.Link = arg
	case "char", "block":
		e.Major, e.Minor, err = pair(arg)
	default:
		e.Random, e.Text = kind == "random", kind == "text"
		e.Size, err = parseSize(arg)
	}
	return words[1:], err
}

func (e *Entry) parseAttr(kind string, w word) error {
	t := w.text
	switch name, value, hasValue := strings.Cut(t, "="); {
	case w.quoted && kind == "file" && e.Data == nil:
		e.Data, e.Size = []Extent{{0, t}}, int64(len(t))
		return nil
	case strings.HasPrefix(t, "@"):
		return e.parseTime(t[1:])
	case hasValue && name == "format":
		e.Format = value
	case hasValue && name == "sparse" && kind == "sparse":
		e.Sparse = value
	case hasValue && hasNamespace(name):
		e.Xattrs = append(e.Xattrs, Xattr{name, value})
	case strings.HasPrefix(t, "0") && !strings.Contains(t, ":"):
		mode, err := strconv.ParseInt(t, 8, 32)
		e.Mode = mode
		return err
	case kind == "sparse":
		return e.parseExtent(t)
	default:
		var err error
		e.UID, e.GID, err = pair(t)
		return err
	}
	return nil
}

func hasNamespace(name string) bool {
	return slices.ContainsFunc([]string{"user.", "security.", "trusted.", "system."}, func(ns string) bool {
		return strings.HasPrefix(name, ns)
	})
}

// parseTime reads seconds with up to nine digits behind the point.
func (e *Entry) parseTime(s string) error {
	sec, frac, _ := strings.Cut(s, ".")
	var err error
	if e.Sec, err = strconv.ParseInt(sec, 10, 64); err != nil {
		return err
	}
	if len(frac) > 9 {
		return fmt.Errorf("%s: finer than a nanosecond", s)
	}
	if e.Nsec, err = strconv.ParseInt("0"+frac+strings.Repeat("0", 9-len(frac)), 10, 64); err != nil {
		return err
	}
	if e.Nsec > 0 && strings.HasPrefix(sec, "-") { // nanoseconds count upwards
		e.Sec, e.Nsec = e.Sec-1, 1e9-e.Nsec
	}
	return nil
}

// parseExtent reads OFFSET:data, which in a sparse file takes the place of the
// owner.
func (e *Entry) parseExtent(s string) error {
	at, data, ok := strings.Cut(s, ":")
	off, err := parseSize(at)
	if !ok || err != nil {
		return fmt.Errorf("%s: want OFFSET:\"data\"", s)
	}
	e.Data = append(e.Data, Extent{off, data})
	return nil
}

func pair(s string) (a, b int64, err error) {
	x, y, ok := strings.Cut(s, ":")
	a, err1 := strconv.ParseInt(x, 10, 64)
	b, err2 := strconv.ParseInt(y, 10, 64)
	if !ok || err1 != nil || err2 != nil || a < 0 || b < 0 {
		return 0, 0, fmt.Errorf("what is %q?", s)
	}
	return a, b, nil
}

func parseSize(s string) (int64, error) {
	shift := 0
	for i, unit := range []string{"KiB", "MiB", "GiB"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			s, shift = n, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is no size", s)
	}
	return n << shift, nil
}

// check says what the writer could not write.
func (e *Entry) check() error {
	end := int64(0)
	for _, x := range e.Data {
		if x.Off < end || x.Off > e.Size-int64(len(x.Data)) {
			return fmt.Errorf("the data at %d overlaps, or ends behind the file", x.Off)
		}
		end = x.Off + int64(len(x.Data))
	}
	switch {
	case strings.Contains(e.Name+e.Link, "\x00"):
		return errors.New("a tar has no NUL in names")
	case !slices.Contains([]string{"", "pax", "gnu", "base256", "ustar", "v7"}, e.Format):
		return fmt.Errorf("no such format: %s", e.Format)
	case !slices.Contains([]string{"", "0.0", "0.1", "1.0", "gnu"}, e.Sparse):
		return fmt.Errorf("no such sparse format: %s", e.Sparse)
	case e.Type != tar.TypeReg && e.Size != 0:
		return errors.New("has no content")
	case e.Format != "" && e.Format != "pax" && (len(e.Xattrs) > 0 || e.Sparse != "" && e.Sparse != "gnu"):
		return errors.New("needs format=pax")
	}
	if len(e.Xattrs) > 0 && e.Sparse == "gnu" {
		return errors.New("xattrs need a sparse format of PAX")
	}
	for _, x := range e.Xattrs {
		if strings.Contains(x.Name, "=") || strings.Contains(x.Name, "\x00") {
			return fmt.Errorf("no name of an xattr: %q", x.Name)
		}
	}
	return nil
}

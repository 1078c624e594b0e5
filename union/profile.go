package union

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/layerfs/layerfs/union/layer"
)

// A Profile is which files of an image are read when it starts, in the order in which they are first read.
//
// As text it has one path a line, and that is all a hand-written one needs:
//
//	# a comment; empty lines are nothing
//	usr/bin/python3.11
//	/usr/lib/libc.so.6
//	"usr/share/a name with a\ttab"
//	usr/lib/libpython3.11.so.1.0	0-1048575,4194304-4325375	unread=2
//
// A slash at the beginning is no matter. What holds a tab, a line feed or a
// quote, or begins with # or a space, is quoted as in Go. After a tab stand the ranges
// that were read, first to last byte as in HTTP; without them it is the whole
// file. unread counts the recorded starts since the last one that read the file.
type Profile struct {
	Files []ProfileFile
}

// A ProfileFile is a file of a profile.
type ProfileFile struct {
	Path   string        // relative to the root: "usr/bin/env"
	Ranges []layer.Range // in order, apart from each other; nil is the whole file
	Unread int
}

const (
	// maxProfileLine holds a path of PATH_MAX bytes with every byte escaped, and 64 ranges.
	maxProfileLine = 64 << 10
	// maxProfileFiles is more than any start reads. It keeps what is no profile at all from filling the memory.
	maxProfileFiles = 1 << 20
)

var errProfile = errors.New("not an access profile")

// ParseProfile reads the text form. What is said twice counts where it is said first.
func ParseProfile(r io.Reader) (Profile, error) {
	var p Profile
	seen := map[string]bool{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxProfileLine)
	for n := 1; lines.Scan(); n++ {
		line := strings.Trim(lines.Text(), " \r")
		if line == "" || line[0] == '#' {
			continue
		}
		f, err := parseProfileLine(line)
		if err == nil && len(p.Files) == maxProfileFiles {
			err = fmt.Errorf("more than %d files", maxProfileFiles)
		}
		if err != nil {
			return Profile{}, fmt.Errorf("%w: line %d: %w", errProfile, n, err)
		}
		if !seen[f.Path] {
			seen[f.Path] = true
			p.Files = append(p.Files, f)
		}
	}
	if err := lines.Err(); err != nil {
		return Profile{}, fmt.Errorf("read profile: %w", err)
	}
	return p, nil
}

func parseProfileLine(line string) (f ProfileFile, err error) {
	fields := strings.Split(line, "\t")
	path := fields[0]
	if strings.HasPrefix(path, `"`) {
		if path, err = strconv.Unquote(path); err != nil {
			return f, fmt.Errorf("path %s: %w", fields[0], err)
		}
	}
	f.Path = strings.TrimLeft(path, "/")
	if f.Path == "" || strings.ContainsRune(f.Path, 0) {
		return f, errors.New("a path is missing")
	}
	for _, field := range fields[1:] {
		if err := f.parseField(field); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (f *ProfileFile) parseField(s string) (err error) {
	if n, ok := strings.CutPrefix(s, "unread="); ok {
		f.Unread, err = strconv.Atoi(n)
		if err == nil && f.Unread < 0 {
			err = strconv.ErrRange
		}
		return err
	}
	var end int64
	for part := range strings.SplitSeq(s, ",") {
		a, b, _ := strings.Cut(part, "-")
		first, err1 := strconv.ParseInt(a, 10, 64)
		last, err2 := strconv.ParseInt(b, 10, 64)
		if err := errors.Join(err1, err2); err != nil || first < end || last < first || last == 1<<63-1 {
			return fmt.Errorf("ranges %q: want FIRST-LAST,…, in order", s)
		}
		f.Ranges = append(f.Ranges, layer.Range{Off: first, N: last - first + 1})
		end = last + 1
	}
	return nil
}

// Text is the form that ParseProfile reads; full also says ranges, and how long ago a file was read.
func (p *Profile) Text(full bool) []byte {
	var b bytes.Buffer
	for _, f := range p.Files {
		b.WriteString(profilePath(f.Path))
		if full {
			f.writeFields(&b)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func (f *ProfileFile) writeFields(b *bytes.Buffer) {
	for i, r := range f.Ranges {
		sep := ","
		if i == 0 {
			sep = "\t"
		}
		fmt.Fprintf(b, "%s%d-%d", sep, r.Off, r.Off+r.N-1)
	}
	if f.Unread > 0 {
		fmt.Fprintf(b, "\tunread=%d", f.Unread)
	}
}

// profilePath quotes what a line could not hold, would read as something else, or would do to a terminal.
func profilePath(p string) string {
	odd := strings.ContainsFunc(p, func(r rune) bool { return !strconv.IsPrint(r) })
	if odd || p[0] == '"' || p[0] == '#' || strings.Trim(p, " ") != p {
		return strconv.Quote(p)
	}
	return p
}

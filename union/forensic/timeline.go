package forensic

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sys/unix"
)

// A Step is a build step of an image's history.
type Step struct {
	Layer     int // the layer it made, 0 is the base; -1: none
	Created   time.Time
	CreatedBy string
}

// Formats of Timeline.
const (
	Bodyfile = "bodyfile" // The Sleuth Kit 3, as mactime reads it
	Plaso    = "plaso"    // the dynamic CSV of plaso's psort
	JSONL    = "jsonl"    // as timesketch imports it
	CSV      = "csv"      // the same with fixed columns
)

// Timeline writes when what was changed: every entry of every layer with the
// time it has, also what later layers hide, and the build steps. The lines come
// in the order of the layers; the tools that read them sort.
func Timeline(w io.Writer, format string, layers []*layer.Layer, steps []Step) error {
	b := bufio.NewWriter(w)
	t, err := newTimeline(b, format, layers)
	if err != nil {
		return err
	}
	for r := range Records(layers) {
		if err := t.entry(r); err != nil {
			return err
		}
	}
	for i, s := range steps {
		if err := t.step(i, s); err != nil {
			return err
		}
	}
	return b.Flush()
}

// A timeline writes lines in one format.
type timeline struct {
	w      *bufio.Writer
	layers []*layer.Layer
	write  func(event) error
}

// An event is one line.
type event struct {
	label string
	inode string
	entry layer.Entry
	layer int // from 1
	sha   string
	time  time.Time
	what  string
}

func newTimeline(w *bufio.Writer, format string, layers []*layer.Layer) (*timeline, error) {
	t := &timeline{w: w, layers: layers}
	switch format {
	case Bodyfile:
		t.write = t.bodyfile
	case JSONL:
		t.write = t.jsonl
	case CSV:
		t.write = t.csv("datetime", "timestamp_desc", "message", "layer", "layer_digest", "mode", "uid", "gid", "size")
	case Plaso:
		t.write = t.plaso
		if _, err := w.WriteString("datetime,timestamp_desc,source,source_long,message,parser,display_name,tag\n"); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("unknown format %q", format)
	}
	return t, nil
}

func (t *timeline) entry(r Record) error {
	e := event{label: r.Label(), entry: r.Entry, layer: r.Layer + 1, sha: string(t.layers[r.Layer].Digest()), what: "Content Modification Time"}
	// A number of its own for every entry of every layer, as readers want one.
	e.inode = fmt.Sprint(uint64(r.Layer+1)<<32 | uint64(r.ID) + 1)
	if r.Whiteout {
		e.inode, e.what = "0", "Deletion Recorded" // a whiteout has no time of its own
	} else {
		e.time = time.Unix(r.Entry.Sec, int64(r.Entry.Nsec)).UTC()
	}
	return t.write(e)
}

func (t *timeline) step(i int, s Step) error {
	e := event{label: fmt.Sprintf("[build step %d", i+1), inode: "0", what: "Build Step", layer: s.Layer + 1, time: s.Created.UTC()}
	if s.Layer >= 0 {
		e.label += fmt.Sprintf(", layer %d", s.Layer+1)
		e.sha = string(t.layers[s.Layer].Digest())
	}
	e.label += "] " + strings.Join(strings.Fields(s.CreatedBy), " ")
	return t.write(e)
}

// bodyfile writes MD5|name|inode|mode|UID|GID|size|atime|mtime|ctime|crtime.
// mactime takes %XX apart after it has split the line; absent times are -1,
// which it leaves out.
func (t *timeline) bodyfile(e event) error {
	name := e.label
	if e.entry.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		name += " -> " + e.entry.Link
	}
	mtime := int64(-1)
	if !e.time.IsZero() && e.time.Unix() >= 0 {
		mtime = e.time.Unix()
	}
	_, err := fmt.Fprintf(t.w, "0|%s|%s|%s|%d|%d|%d|-1|%d|-1|-1\n", bodyName(name), e.inode, bodyMode(e.entry.Mode), e.entry.UID, e.entry.GID, e.entry.Size, mtime)
	return err
}

var bodyEscape = strings.NewReplacer("%", "%25", "|", "%7C")

func bodyName(s string) string { return bodyEscape.Replace(Printable(s)) }

// bodyMode is the mode in the manner of TSK's fls: two types, then the permissions.
func bodyMode(mode uint32) string {
	letter := map[uint32]string{
		syscall.S_IFREG: "r/r", syscall.S_IFDIR: "d/d", syscall.S_IFLNK: "l/l", syscall.S_IFCHR: "c/c", syscall.S_IFBLK: "b/b", syscall.S_IFIFO: "p/p",
	}[mode&syscall.S_IFMT]
	if letter == "" {
		letter = "-/-"
	}
	return letter + Permissions(mode)
}

// Permissions are the nine letters of ls(1).
func Permissions(mode uint32) string {
	b := []byte("rwxrwxrwx")
	for i := range b {
		if mode&(1<<(8-i)) == 0 {
			b[i] = '-'
		}
	}
	for _, s := range []struct {
		bit     uint32
		at      int
		on, off byte
	}{{unix.S_ISUID, 2, 's', 'S'}, {unix.S_ISGID, 5, 's', 'S'}, {unix.S_ISVTX, 8, 't', 'T'}} {
		switch {
		case mode&s.bit == 0:
		case b[s.at] == 'x':
			b[s.at] = s.on
		default:
			b[s.at] = s.off
		}
	}
	return string(b)
}

// Printable makes a name harmless and reversible: control characters and bytes
// that are no UTF-8 become \xNN, a backslash two.
func Printable(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1, r < 0x20, r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\\':
			b.WriteString(`\\`)
		case r >= 0x80 && r < 0xa0, r == 0x2028, r == 0x2029, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// A line is an event as timesketch wants it: message, datetime and timestamp_desc are its required columns.
type line struct {
	Message  string `json:"message"`
	Datetime string `json:"datetime"`
	What     string `json:"timestamp_desc"`
	Layer    int    `json:"layer,omitempty"`
	Digest   string `json:"layer_digest,omitempty"`
	Mode     string `json:"mode,omitempty"`
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
	Size     int64  `json:"size"`
}

func (e event) line() line {
	l := line{Message: Printable(e.label), What: e.what, Layer: e.layer, Digest: e.sha, UID: e.entry.UID, GID: e.entry.GID, Size: e.entry.Size}
	if e.entry.Mode != 0 {
		l.Mode = bodyMode(e.entry.Mode)
	}
	l.Datetime = e.time.Format(time.RFC3339Nano)
	if e.time.IsZero() {
		l.Datetime = time.Unix(0, 0).UTC().Format(time.RFC3339Nano)
	}
	return l
}

func (t *timeline) jsonl(e event) error { return json.NewEncoder(t.w).Encode(e.line()) }

func (t *timeline) csv(header ...string) func(event) error {
	c := csv.NewWriter(t.w)
	err := c.Write(header)
	return func(e event) error {
		if err != nil {
			return err
		}
		l := e.line()
		err = c.Write([]string{l.Datetime, l.What, l.Message, fmt.Sprint(l.Layer), l.Digest, l.Mode, fmt.Sprint(l.UID), fmt.Sprint(l.GID), fmt.Sprint(l.Size)})
		c.Flush()
		return err
	}
}

func (t *timeline) plaso(e event) error {
	l := e.line()
	c := csv.NewWriter(t.w)
	err := c.Write([]string{l.Datetime, l.What, "FILE", "OCI layer", l.Message, "layerfs", l.Message, "-"})
	c.Flush()
	return err
}

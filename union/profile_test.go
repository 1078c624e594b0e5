package union_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/layer"
)

func TestParseProfile(t *testing.T) {
	const long = "a/very/long/name"
	for _, c := range []struct {
		text string
		want []union.ProfileFile
		err  string
	}{
		{text: ""},
		{text: "# nothing\n\n  \n#a\n"},
		{text: "usr/bin/env\n/etc/passwd", want: []union.ProfileFile{{Path: "usr/bin/env"}, {Path: "etc/passwd"}}},
		{text: "b\r\na\r\nb\n/b\n", want: []union.ProfileFile{{Path: "b"}, {Path: "a"}}},
		{text: "a b#c\\\n", want: []union.ProfileFile{{Path: `a b#c\`}}},
		{text: `"a\tb\n\xff"` + "\n\" #\"\n", want: []union.ProfileFile{{Path: "a\tb\n\xff"}, {Path: " #"}}},
		{text: "f\t0-9,20-20\tunread=3\n", want: []union.ProfileFile{{Path: "f", Ranges: []layer.Range{{Off: 0, N: 10}, {Off: 20, N: 1}}, Unread: 3}}},
		{text: long + "\n" + strings.Repeat("x", 70000), err: "token too long"},
		{text: "ok\n/\n", err: "line 2: a path is missing"},
		{text: "a\x00b\n", err: "line 1"},
		{text: `"a` + "\n", err: `path "a`},
		{text: "a\tx\n", err: "ranges"},
		{text: "a\t5-4\n", err: "ranges"},
		{text: "a\t0-9,9-10\n", err: "ranges"},
		{text: "a\t0-9223372036854775807\n", err: "ranges"},
		{text: "a\tunread=-1\n", err: "out of range"},
	} {
		p, err := union.ParseProfile(strings.NewReader(c.text))
		switch {
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%.40q: error %v, want %q", c.text, err, c.err)
		case c.err == "" && (err != nil || !reflect.DeepEqual(p.Files, c.want)):
			t.Errorf("%.40q: %+v, %v, want %+v", c.text, p.Files, err, c.want)
		}
	}
}

func TestProfileText(t *testing.T) {
	p := union.Profile{Files: []union.ProfileFile{
		{Path: "a"}, {Path: "# b", Unread: 1}, {Path: `"`}, {Path: "tab\t"}, {Path: "\xff\u202e\x1b"}, {Path: "ü ñ"},
		{Path: "r", Ranges: []layer.Range{{Off: 1, N: 2}, {Off: 10, N: 1}}, Unread: 4},
	}}
	full := p.Text(true)
	back, err := union.ParseProfile(bytes.NewReader(full))
	if err != nil || !reflect.DeepEqual(back, p) {
		t.Errorf("%q: %+v, %v", full, back, err)
	}
	if got, want := string(p.Text(false)), "a\n\"# b\"\n\"\\\"\"\n\"tab\\t\"\n\"\\xff\\u202e\\x1b\"\nü ñ\nr\n"; got != want {
		t.Errorf("paths alone:\n%s\nwant:\n%s", got, want)
	}
}

// FuzzParseProfile: whatever parses can be written and read again, and stays the same.
func FuzzParseProfile(f *testing.F) {
	f.Add("usr/bin/env\n\"a\\xff\"\t0-9,12-20\tunread=2\n# x\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := union.ParseProfile(strings.NewReader(text))
		if err != nil {
			return
		}
		back, err := union.ParseProfile(bytes.NewReader(p.Text(true)))
		if err != nil || !reflect.DeepEqual(back, p) {
			t.Errorf("%q: %+v became %+v, %v", text, p, back, err)
		}
	})
}

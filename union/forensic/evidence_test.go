package forensic_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/union/forensic"
)

// evidence writes a log of n lines and returns its path.
func evidence(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	for range 2 { // it goes on where it was
		l, err := forensic.OpenEvidence(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n / 2 {
			if err := l.Add("request", map[string]any{"i": i, "url": "http://h/ü\n"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestEvidence(t *testing.T) {
	path := evidence(t, 8)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := forensic.VerifyEvidence(bytes.NewReader(b))
	if err != nil || whole.Lines != 8 || whole.First.IsZero() || whole.Last.Before(whole.First) {
		t.Fatalf("%+v, %v", whole, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	last := bytes.LastIndexByte(b[:len(b)-1], '\n') + 1
	for i := range last {
		c := slices.Clone(b)
		c[i] ^= 1
		if _, err := forensic.VerifyEvidence(bytes.NewReader(c)); !errors.Is(err, forensic.ErrEvidence) {
			t.Errorf("byte %d (%q) changed: %v", i, b[i], err)
		}
	}
	for i := last; i < len(b); i++ { // the last line has no other after it: its hash must have been written down
		c := slices.Clone(b)
		c[i] ^= 1
		if s, err := forensic.VerifyEvidence(bytes.NewReader(c)); err == nil && s.Head == whole.Head {
			t.Errorf("byte %d of the last line changed: the hash is the same", i-last)
		}
	}
}

func TestEvidenceLines(t *testing.T) {
	b, err := os.ReadFile(evidence(t, 6))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(b), "\n")
	lines = lines[:len(lines)-1]
	for name, c := range map[string]struct {
		lines []string
		say   string
	}{
		"taken out":    {slices.Delete(slices.Clone(lines), 2, 3), "line 3"},
		"first gone":   {lines[1:], "line 1: it is not the first"},
		"twice":        {slices.Insert(slices.Clone(lines), 2, lines[2]), "line 4"},
		"swapped":      {[]string{lines[0], lines[2], lines[1]}, "line 2"},
		"cut off":      {[]string{lines[0], lines[1][:20]}, "line 2: it was cut off"},
		"no JSON":      {[]string{lines[0], "x\n"}, "line 2"},
		"far too long": {[]string{strings.Repeat("x", 2<<20)}, "line 1: it is too long"},
	} {
		_, err := forensic.VerifyEvidence(strings.NewReader(strings.Join(c.lines, "")))
		if !errors.Is(err, forensic.ErrEvidence) || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s, err := forensic.VerifyEvidence(strings.NewReader("")); err != nil || s.Lines != 0 {
		t.Errorf("empty: %+v, %v", s, err)
	}
}

func TestEvidenceOpen(t *testing.T) {
	path := evidence(t, 4)
	l, err := forensic.OpenEvidence(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := forensic.OpenEvidence(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second writer: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Add("late", nil); err == nil {
			t.Error("a line was added to a log that cannot be written")
		}
	}
	before, _ := os.ReadFile(path)
	if err := os.WriteFile(path, append(before, "torn"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := forensic.OpenEvidence(path); !errors.Is(err, forensic.ErrEvidence) {
		t.Errorf("a torn log: %v", err)
	}
	if after, _ := os.ReadFile(path); len(after) != len(before)+4 {
		t.Error("a torn log was written to")
	}
}

// FuzzEvidence reads logs that hold anything, as long as some 64 KiB: longer lines are cut by a limit of their own.
func FuzzEvidence(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"seq":1,"time":"2026-01-01T00:00:00Z","prev":"` + strings.Repeat("0", 64) + `","event":"begin"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := forensic.VerifyEvidence(bytes.NewReader(b))
		if n := int64(bytes.Count(b, []byte("\n"))); s.Lines > n || err == nil && s.Lines != n {
			t.Errorf("%d lines of %d: %v", s.Lines, n, err)
		}
	})
}

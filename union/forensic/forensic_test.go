package forensic_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/layerfs/layerfs/union/layer/layertest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type blob []byte

func (b blob) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

func layersOf(t *testing.T, texts ...string) []*layer.Layer {
	t.Helper()
	s, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	var list []*layer.Layer
	for _, text := range texts {
		tar := layertest.Tar(text)
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(tar), Size: int64(len(tar))}
		l, err := layer.Open(t.Context(), d, blob(tar), s, layer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		list = append(list, l)
	}
	return list
}

func TestRecords(t *testing.T) {
	layers := layersOf(t,
		"file a \"1\"\nfile d/x \"1\"\nfile d/y \"1\"\nfile gone \"1\"\nfile keep \"1\"\nfile p/q \"1\"",
		"file a \"2\"\nwhiteout gone\nwhiteout d\nfile p \"a file now\"",
		"file gone \"3\"\nfile d/x \"3\"\ndir e\nopaque e",
	)
	var got []string
	for r := range forensic.Records(layers) {
		got = append(got, r.Label())
	}
	want := []string{
		"/a [layer 1, overwritten by layer 2]",
		"/d/x [layer 1, deleted by layer 2]",
		"/d/y [layer 1, deleted by layer 2]",
		"/gone [layer 1, deleted by layer 2]",
		"/keep",
		"/p/q [layer 1, deleted by layer 2]",
		"/a", "/p", "/d [whiteout in layer 2]", "/gone [whiteout in layer 2]",
		"/d/x", "/e", "/gone",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

var hostile = "file \"pipe|%41 percent\" \"x\" @1000000000\nfile \"esc\\x1b[31m\" \"x\" @1000000001\nfile \"new\\nline\" \"x\" @1000000002\nfile \"\\xff\\xfe\" \"x\" @1000000003\nfile old \"x\" @-5\nsymlink l /etc/passwd @1000000004\nfile \"two  spaces\" \"x\" @1000000005"

func TestTimeline(t *testing.T) {
	layers := layersOf(t, "file a \"1\" @999999999", hostile, "whiteout a")
	steps := []forensic.Step{{Layer: 0, Created: time.Unix(1e9+10, 0), CreatedBy: "RUN  one"}, {Layer: -1, Created: time.Unix(1e9+11, 0), CreatedBy: "ENV x=|"}}
	records := 0
	for range forensic.Records(layers) {
		records++
	}
	out := map[string]string{}
	for _, format := range []string{forensic.Bodyfile, forensic.Plaso, forensic.JSONL, forensic.CSV} {
		var b bytes.Buffer
		if err := forensic.Timeline(&b, format, layers, steps); err != nil {
			t.Fatal(err)
		}
		out[format] = b.String()
		for i, c := range b.Bytes() {
			if c < 0x20 && c != '\n' || c == 0x7f {
				t.Errorf("%s: a control character at %d", format, i)
			}
		}
	}
	for i, text := range strings.Split(strings.TrimSpace(out[forensic.Bodyfile]), "\n") {
		if n := strings.Count(text, "|"); n != 10 {
			t.Errorf("bodyfile line %d has %d separators: %s", i+1, n, text)
		}
	}
	for _, format := range []string{forensic.Plaso, forensic.CSV} {
		rows, err := csv.NewReader(strings.NewReader(out[format])).ReadAll()
		if err != nil || len(rows) != records+len(steps)+1 {
			t.Errorf("%s: %d rows, want %d, %v", format, len(rows), records+len(steps)+1, err)
		}
	}
	dec := json.NewDecoder(strings.NewReader(out[forensic.JSONL]))
	for range records + len(steps) {
		var l struct{ Message, Datetime string }
		if err := dec.Decode(&l); err != nil || l.Message == "" {
			t.Errorf("jsonl: %+v, %v", l, err)
		}
	}
	if err := forensic.Timeline(io.Discard, "nonsense", layers, nil); err == nil {
		t.Error("an unknown format is accepted")
	}
}

// TestMactime gives the bodyfile to the tool that it is for: no line may be lost.
func TestMactime(t *testing.T) {
	if _, err := exec.LookPath("mactime"); err != nil {
		t.Skip("needs mactime")
	}
	layers := layersOf(t, hostile)
	var body bytes.Buffer
	if err := forensic.Timeline(&body, forensic.Bodyfile, layers, nil); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("mactime", "-d", "-y", "-z", "UTC")
	cmd.Stdin = &body
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/pipe|%41 percent", `/esc\x1b[31m`, `/new\x0aline`, `/\xff\xfe`, "/l -> /etc/passwd", "/two  spaces"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("mactime does not show %s:\n%s", want, out)
		}
	}
	if n := bytes.Count(out, []byte("\n")); n != 7 { // the header, and all but the one before 1970
		t.Errorf("mactime prints %d lines:\n%s", n, out)
	}
}

func TestPermissions(t *testing.T) {
	for mode, want := range map[uint32]string{0o755: "rwxr-xr-x", 0o4755: "rwsr-xr-x", 0o4644: "rwSr--r--", 0o2711: "rwx--s--x", 0o1777: "rwxrwxrwt", 0o1000: "--------T"} {
		if got := forensic.Permissions(mode); got != want {
			t.Errorf("%o: %s, want %s", mode, got, want)
		}
	}
	if got := forensic.Printable("a\\b\x00\x9f\u202e"); got != `a\\b\x00\x9f\u{202e}` {
		t.Errorf("printable: %s", got)
	}
}

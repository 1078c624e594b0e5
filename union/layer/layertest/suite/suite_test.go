package suite

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestModel(t *testing.T) { Run(t, openModel()) }

// TestMistakes runs the suite against models with one mistake each, in a process
// of its own, and wants it to fail: a suite is worth what it finds.
func TestMistakes(t *testing.T) {
	if mistake := os.Getenv("SUITE_MISTAKE"); mistake != "" {
		Run(t, openModel(mistake), "gzip")
		return
	}
	for mistake, found := range map[string]string{
		"whiteouts hide their own layer": "whiteout_behind_an_entry_of_its_name",
		"opaque is ignored":              "opaque_behind_its_entries",
		"children in no order":           "order_of_names",
		"short reads are silent":         "many_chunks",
		"a byte is wrong":                "many_chunks",
		"no holes":                       "sparse_1.0",
		"holes have data":                "chunk_borders",
	} {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestMistakes$")
		cmd.Env = append(os.Environ(), "SUITE_MISTAKE="+mistake)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: TestMistakes/gzip/"+found) {
			t.Errorf("%s: the suite finds nothing wrong with %s", mistake, found)
		}
	}
}

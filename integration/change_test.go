//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/registry"
)

// TestChangesAsBuildah holds a config made by --change against one made by buildah of the same lines.
func TestChangesAsBuildah(t *testing.T) {
	needRoot(t)
	needTool(t, "buildah")
	lines := strings.Join([]string{
		`ENV A=b C="d e" \`, `  F=g\ h`, `# a comment`, `LABEL l="x y" m=$A n='$A'`, `CMD echo $A "b  c"`, `ENTRYPOINT ["e","f"]`,
		`EXPOSE 80 53/udp`, `VOLUME ["/v", "/w x"]`, `VOLUME /y /z`, `USER u:g`, `WORKDIR /a`, `WORKDIR b/${C:+c}`, `STOPSIGNAL SIGQUIT`,
		`HEALTHCHECK --interval=5m --retries=3 CMD curl x || exit 1`, `ONBUILD RUN x`, `SHELL ["/bin/bash", "-ec"]`,
	}, "\n")
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/Dockerfile", []byte("FROM scratch\n"+lines+"\n"), 0o600))
	buildah := func(args ...string) []byte {
		cmd := exec.Command("buildah", append([]string{"--root", dir + "/r", "--runroot", dir + "/rr", "--storage-driver", "vfs"}, args...)...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("buildah %q: %v\n%s", args, err, errs.String())
		}
		return out
	}
	buildah("bud", "-q", "--format", "docker", "--isolation", "chroot", "-t", "x", dir)
	var theirs struct {
		Docker struct {
			Config map[string]any `json:"config"`
		}
	}
	must(t, json.Unmarshal(buildah("inspect", "--type", "image", "x"), &theirs))
	cfg := map[string]json.RawMessage{}
	must(t, registry.ApplyChanges(cfg, []string{lines}))
	var ours map[string]any
	must(t, json.Unmarshal(cfg["config"], &ours))
	want := theirs.Docker.Config
	delete(want["Labels"].(map[string]any), "io.buildah.version")
	want["Env"] = slices.DeleteFunc(want["Env"].([]any), func(v any) bool { return strings.HasPrefix(v.(string), "PATH=") }) // buildah's own
	for key, v := range ours {
		if !reflect.DeepEqual(v, want[key]) {
			t.Errorf("%s: %v, buildah has %v", key, v, want[key])
		}
	}
	for key, v := range want {
		if _, ok := ours[key]; !ok && key != "Hostname" && !reflect.ValueOf(v).IsZero() {
			t.Errorf("buildah has %s: %v", key, v)
		}
	}
}

package registry

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestEvenHistory(t *testing.T) {
	const filler = `{"comment":"layer of the base image, without history"}`
	for _, tt := range []struct {
		name   string
		before string
		layers int
		after  string
	}{
		{"none", ``, 2, filler + " " + filler},
		{"as many", `{"x":1} {"empty_layer":true} {"y":2}`, 2, `{"x":1} {"empty_layer":true} {"y":2}`},
		{"too few", `{"x":1} {"empty_layer":true}`, 2, `{"x":1} {"empty_layer":true} ` + filler},
		{"too many", `{"x":1} {"empty_layer":true} {"y": 2} {"empty_layer":false,"z":3}`, 1,
			`{"x":1} {"empty_layer":true} {"y":2,"empty_layer":true} {"empty_layer":true,"z":3}`},
		{"no layers", `{"x":1}`, 0, `{"x":1,"empty_layer":true}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var list []json.RawMessage
			for dec := json.NewDecoder(strings.NewReader(tt.before)); dec.More(); {
				var raw json.RawMessage
				if err := dec.Decode(&raw); err != nil {
					t.Fatal(err)
				}
				list = append(list, raw)
			}
			got, err := evenHistory(list, tt.layers)
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, raw := range got {
				out = append(out, strings.ReplaceAll(string(raw), ": ", ":"))
			}
			if s := strings.Join(out, " "); s != tt.after {
				t.Errorf("got %s, want %s", s, tt.after)
			}
		})
	}
	for _, bad := range []string{`1`, `null`, `{"created":1}`} {
		if list, err := evenHistory([]json.RawMessage{json.RawMessage(bad)}, 0); err == nil {
			t.Errorf("%s gives %s", bad, list)
		}
	}
}

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

func call(t *testing.T, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// counters reads the JSON that scripts read.
func counters(t *testing.T, url string) (c struct{ Requests, Connections, Sent, Received int64 }) {
	t.Helper()
	_, b := call(t, "GET", url+"/counters")
	if err := json.Unmarshal([]byte(b), &c); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return c
}

func TestControls(t *testing.T) {
	far := registrytest.New(registrytest.Options{})
	defer far.Close()
	d := far.PutBlob("r", make([]byte, 100_000))
	to, err := url.Parse(far.URL())
	if err != nil {
		t.Fatal(err)
	}
	s := registrytest.New(registrytest.Options{Upstream: to})
	defer s.Close()
	control := httptest.NewServer(controls(s))
	defer control.Close()
	blob := s.URL() + "/v2/r/blobs/" + d.Digest.String()

	if status, _ := call(t, "PUT", control.URL+"/link?mbit=8&rtt=20ms"); status != http.StatusOK {
		t.Fatalf("PUT /link: %d", status)
	}
	begun := time.Now()
	call(t, "GET", blob)
	if took := time.Since(begun); took < 120*time.Millisecond {
		t.Errorf("100 kB at 8 Mbit/s took %v", took)
	}
	if c := counters(t, control.URL); c.Requests != 1 || c.Connections != 1 || c.Received != 100_000 || c.Sent != 0 {
		t.Errorf("counted %+v", c)
	}
	if _, log := call(t, "GET", control.URL+"/log"); !strings.HasPrefix(log, "0\t") || !strings.Contains(log, "\t200\t100000\tGET\t/v2/r/blobs/") {
		t.Errorf("log %q", log)
	}
	call(t, "DELETE", control.URL+"/counters")
	if c := counters(t, control.URL); c.Requests != 0 || c.Received != 0 {
		t.Errorf("counted %+v after a reset", c)
	}
	for _, bad := range []string{"mbit=-1", "mbit=fast", "rtt=20", "rtt=-1s"} {
		if status, _ := call(t, "PUT", control.URL+"/link?"+bad); status != http.StatusBadRequest {
			t.Errorf("PUT /link?%s: %d", bad, status)
		}
	}
}

package main

import (
	"net/url"
	"testing"
)

func TestPublicURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://user:pass@h/v2/":                              "https://h/v2/",
		"https://s3/blob?X-Amz-Signature=abc&X-Amz-Expires=20": "https://s3/blob?X-Amz-Expires=…&X-Amz-Signature=…",
		"http://127.0.0.1:5000/v2/a/manifests/1":               "http://127.0.0.1:5000/v2/a/manifests/1",
		"https://h/token?scope=a&scope=b&service=s#frag":       "https://h/token?scope=…&service=…",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := publicURL(u); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

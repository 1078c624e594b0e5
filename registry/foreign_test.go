package registry

import (
	"net/url"
	"testing"
)

func TestForeignAllowed(t *testing.T) {
	for _, tt := range []struct {
		host, url string
		want      bool
	}{
		{"registry.example", "https://192.0.2.1/layer", true},
		{"registry.example", "https://10.0.0.1/layer", true},
		{"registry.example", "http://192.0.2.1/layer", false},
		{"registry.example", "file:///etc/passwd", false},
		{"registry.example", "https:///etc/passwd", false},
		{"registry.example", "ftp://192.0.2.1/layer", false},
		{"registry.example", "http://169.254.169.254/latest/meta-data", false},
		{"registry.example", "https://169.254.169.254/latest/meta-data", false},
		{"registry.example", "https://[fe80::1]/", false},
		{"registry.example", "https://[::ffff:169.254.169.254]/", false},
		{"registry.example", "https://[::ffff:127.0.0.1]/", false},
		{"registry.example", "https://127.0.0.1/", false},
		{"registry.example", "https://[::1]:5000/", false},
		{"registry.example", "http://127.0.0.1:5000/", false},
		{"registry.example", "https://localhost/", false},
		{"registry.example", "https://0.0.0.0/", false},
		{"127.0.0.1:5000", "http://127.0.0.1:6000/layer", true},
		{"localhost:5000", "https://localhost/layer", true},
		{"localhost:5000", "gopher://localhost/layer", false},
		{"127.0.0.1:5000", "https://169.254.169.254/", false},
	} {
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&client{host: tt.host}).foreignAllowed(t.Context(), u); got != tt.want {
			t.Errorf("%s in an image of %s: %v, want %v", tt.url, tt.host, got, tt.want)
		}
	}
}

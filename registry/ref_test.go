package registry

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseRef(t *testing.T) {
	tests := []struct {
		in   string
		want Ref
		str  string
	}{
		{"alpine", Ref{Transport: "docker", Host: "docker.io", Repo: "library/alpine", Tag: "latest"}, "docker.io/library/alpine:latest"},
		{"debian:12", Ref{Transport: "docker", Host: "docker.io", Repo: "library/debian", Tag: "12"}, "docker.io/library/debian:12"},
		{"docker://debian:12", Ref{Transport: "docker", Host: "docker.io", Repo: "library/debian", Tag: "12"}, "docker.io/library/debian:12"},
		{"docker.io/debian", Ref{Transport: "docker", Host: "docker.io", Repo: "library/debian", Tag: "latest"}, "docker.io/library/debian:latest"},
		{"index.docker.io/o/r", Ref{Transport: "docker", Host: "docker.io", Repo: "o/r", Tag: "latest"}, "docker.io/o/r:latest"},
		{"o/r", Ref{Transport: "docker", Host: "docker.io", Repo: "o/r", Tag: "latest"}, "docker.io/o/r:latest"},
		{"ghcr.io/o/r:t", Ref{Transport: "docker", Host: "ghcr.io", Repo: "o/r", Tag: "t"}, "ghcr.io/o/r:t"},
		{"localhost/r", Ref{Transport: "docker", Host: "localhost", Repo: "r", Tag: "latest"}, "localhost/r:latest"},
		{"[::1]:5000/r", Ref{Transport: "docker", Host: "[::1]:5000", Repo: "r", Tag: "latest"}, "[::1]:5000/r:latest"},
		{"host:5000/r@" + someDigest, Ref{Transport: "docker", Host: "host:5000", Repo: "r", Digest: someDigest}, "host:5000/r@" + someDigest},
		{"host:5000/r:t@" + someDigest, Ref{Transport: "docker", Host: "host:5000", Repo: "r", Tag: "t", Digest: someDigest}, "host:5000/r:t@" + someDigest},
		{"oci:dir", Ref{Transport: "oci", Path: "dir"}, "oci:dir"},
		{"oci:/a/b:tag", Ref{Transport: "oci", Path: "/a/b", Tag: "tag"}, "oci:/a/b:tag"},
		{"docker-root:/var/lib/docker#web", Ref{Transport: "docker-root", Path: "/var/lib/docker", Tag: "web"}, "docker-root:/var/lib/docker#web"},
		{"containers-storage:/s#1#localhost/a:1", Ref{Transport: "containers-storage", Path: "/s#1", Tag: "localhost/a:1"}, "containers-storage:/s#1#localhost/a:1"},
		{"containerd-root:/c#docker.io/a/b@sha256:" + strings.Repeat("0", 64), Ref{Transport: "containerd-root", Path: "/c", Tag: "docker.io/a/b@sha256:" + strings.Repeat("0", 64)}, "containerd-root:/c#docker.io/a/b@sha256:" + strings.Repeat("0", 64)},
		{"dir:/top:/base", Ref{Transport: "dir", Path: "/top:/base"}, "dir:/top:/base"},
		{"oci:dir:docker.io/x:1", Ref{Transport: "oci", Path: "dir", Tag: "docker.io/x:1"}, "oci:dir:docker.io/x:1"},
		{"oci:dir@" + someDigest, Ref{Transport: "oci", Path: "dir", Digest: someDigest}, "oci:dir@" + someDigest},
		{"oci-archive:x.tar:t", Ref{Transport: "oci-archive", Path: "x.tar", Tag: "t"}, "oci-archive:x.tar:t"},
		{"docker-archive:x.tar:debian:12", Ref{Transport: "docker-archive", Path: "x.tar", Tag: "debian:12"}, "docker-archive:x.tar:debian:12"},
		{"docker-archive:x.tar:@1", Ref{Transport: "docker-archive", Path: "x.tar", Tag: "@1"}, "docker-archive:x.tar:@1"},
	}
	for _, tt := range tests {
		got, err := ParseRef(tt.in)
		if err != nil || got != tt.want || got.String() != tt.str {
			t.Errorf("%s: %+v %q %v", tt.in, got, got.String(), err)
		}
	}
}

func TestParseRefErrors(t *testing.T) {
	for in, text := range map[string]string{
		"":                                       "no repository name",
		"Alpine":                                 "lower case",
		"o/R":                                    "lower case",
		"a b":                                    "malformed",
		"host:5000/":                             "no repository name",
		"r:t:u":                                  "malformed",
		"r:" + strings.Repeat("t", 129):          "malformed tag",
		"r@sha256:abc":                           "digest",
		"r@md5:d41d8cd98f00b204e9800998ecf8427e": "digest",
		strings.Repeat("a", 300):                 "at most 255",
		"oci:":                                   "no path",
		"oci::tag":                               "no path",
		"docker-daemon:x:y":                      `unknown transport "docker-daemon"`,
		"docker-daemon:x":                        `unknown transport "docker-daemon"`,
		"containers-storage:x":                   "no image or container after",
		"docker-root:#x":                         "no image or container after",
		"docker-root:/d#":                        "no image or container after",
		"dir:/a::/b":                             "an empty path",
		"https://host/r":                         `unknown transport "https"`,
		"ho_st.x/r":                              "malformed registry name",
		"../x":                                   "malformed",
		"-x":                                     "malformed",
	} {
		_, err := ParseRef(in)
		var e *Error
		if !errors.Is(err, ErrUsage) || !errors.As(err, &e) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, want %s", in, err, text)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"alpine", "a.b:1/c/d:e@" + someDigest, "oci:x:y", "docker://x", "[::1]:1/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			if !errors.Is(err, ErrUsage) {
				t.Fatalf("%v", err)
			}
			return
		}
		again, err := ParseRef(r.String())
		if r.Transport == transportDocker && (err != nil || again != r) {
			t.Fatalf("%q is %+v, whose name %q is %+v: %v", s, r, r.String(), again, err)
		}
	})
}

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"alpine:3":           "docker.io/library/alpine@" + someDigest,
		"oci:d:t":            "oci:d:t",
		"oci:d":              "oci:d@" + someDigest,
		"docker-archive:f":   "docker-archive:f",
		"docker-archive:f:r": "docker-archive:f:r",
	} {
		r, err := ParseRef(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.canonical(digest.Digest(someDigest)); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "a.localhost": true, "127.0.0.1": true, "127.9.9.9:1": true, "[::1]:5000": true, "::1": true,
		"10.0.0.1": false, "localhost.example": false, "xlocalhost": false, "example.com:80": false, "": false,
	} {
		if isLoopback(host) != want {
			t.Errorf("%q: %v", host, !want)
		}
	}
}

func TestPlatform(t *testing.T) {
	list := func(names ...string) (out []ocispec.Descriptor) {
		for _, n := range names {
			d := ocispec.Descriptor{MediaType: n, Digest: digest.FromString(n)}
			if n != "none" {
				parts := strings.Split(n+"//", "/")
				d.Platform = &ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
			}
			out = append(out, d)
		}
		return out
	}
	side := ocispec.Descriptor{MediaType: "side", Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	attestation, soci, nydus := side, side, side
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	soci.ArtifactType = "application/vnd.amazon.soci.index.v2+json"
	nydus.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64", OSFeatures: []string{"nydus.remoteimage.v1"}}
	tests := []struct {
		want string
		list []ocispec.Descriptor
		got  string
	}{
		{"linux/amd64", list("linux/arm64", "linux/amd64"), "linux/amd64"},
		{"x86_64", list("linux/arm64", "linux/amd64"), "linux/amd64"},
		{"linux/amd64", list("linux/amd64/v2", "linux/amd64"), "linux/amd64"},
		{"linux/amd64", list("linux/amd64/v2"), ""},
		{"linux/amd64/v3", list("linux/amd64", "linux/amd64/v2", "linux/amd64/v4"), "linux/amd64/v2"},
		{"linux/arm64", list("linux/arm64/v8"), "linux/arm64/v8"},
		{"linux/arm64/v8", list("linux/arm64"), "linux/arm64"},
		{"aarch64", list("linux/arm/v7", "linux/arm64"), "linux/arm64"},
		{"linux/arm/v7", list("linux/arm/v5", "linux/arm/v6", "linux/arm64"), "linux/arm/v6"},
		{"armel", list("linux/arm/v7", "linux/arm/v5"), "linux/arm/v5"},
		{"linux/arm", list("linux/arm/v6", "linux/arm/v7"), "linux/arm/v7"},
		{"linux/amd64", list("windows/amd64", "linux/amd64", "linux/amd64"), "linux/amd64"},
		{"linux/amd64", list("none"), "none"},
		{"linux/amd64", list("none", "none"), ""},
		{"linux/amd64", list("unknown/unknown"), ""},
		{"linux/amd64", append([]ocispec.Descriptor{attestation, soci, nydus}, list("linux/amd64")...), "linux/amd64"},
		{"linux/amd64", nil, ""},
	}
	for _, tt := range tests {
		p, err := ParsePlatform(tt.want)
		if err != nil {
			t.Fatal(err)
		}
		d, err := pick(tt.list, p)
		if tt.got == "" {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s of %v: %v %v", tt.want, tt.list, d.MediaType, err)
			}
		} else if err != nil || d.MediaType != tt.got {
			t.Errorf("%s of %v: %v %v, want %s", tt.want, tt.list, d.MediaType, err, tt.got)
		}
	}
	for _, s := range []string{"/", "linux/", "a/b/c/d", "/amd64"} {
		if _, err := ParsePlatform(s); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if p, err := ParsePlatform(""); err != nil || p.OS != "linux" || p.String() == "" {
		t.Errorf("default: %v %v", p, err)
	}
}

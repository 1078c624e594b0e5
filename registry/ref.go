package registry

import (
	"net"
	"net/netip"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// The transports a reference can name.
const (
	transportDocker        = "docker"
	transportOCI           = "oci"
	transportOCIArchive    = "oci-archive"
	transportDockerArchive = "docker-archive"

	// Of directories: storage roots, and unpacked layers.
	transportDockerRoot     = "docker-root"
	transportStorage        = "containers-storage"
	transportContainerdRoot = "containerd-root"
	transportDir            = "dir"
)

// foreignTransports are prefixes that other tools understand and that must not
// be taken for a repository name.
var foreignTransports = []string{
	"docker-daemon", "ostree", "sif", "tarball", "atomic",
}

// hubHost is how people write Docker Hub, hubAPI where its API is, and hubRegistry what they
// name in configurations.
const (
	hubHost     = "docker.io"
	hubAPI      = "index.docker.io"
	hubRegistry = "registry-1.docker.io"
)

// A Ref is a parsed image reference.
type Ref struct {
	Transport string // "docker", "oci", "oci-archive", "docker-archive"; of unpacked layers "docker-root", "containers-storage", "containerd-root" or "dir"

	// Of the docker transport.
	Host string // "docker.io", "localhost:5000"
	Repo string // "library/alpine"

	Path string // of the others: directory or file; of "dir" several, with colons between

	Tag    string        // tag; of docker-archive the reference, or "@N"; of storage roots an image's or container's name; may be empty
	Digest digest.Digest // may be empty; wins over the tag
}

// Grammar of names: the distribution project's reference grammar, which
// every registry enforces.
var (
	repoRE = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	hostRE = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$`)
)

// maxRepo is the longest repository name that registries accept, host included.
const maxRepo = 255

// ParseRef parses [TRANSPORT:]REF. It looks at nothing but the string. Its
// errors wrap ErrUsage.
func ParseRef(s string) (Ref, error) {
	r, err := parseRef(s)
	if err != nil {
		return Ref{}, wrapError("parse", quoteRef(s), err)
	}
	return r, nil
}

func quoteRef(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

func parseRef(s string) (Ref, error) {
	if rest, ok := strings.CutPrefix(s, "docker://"); ok {
		return parseName(rest)
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return Ref{}, unknownTransport(scheme)
	}
	prefix, rest, _ := strings.Cut(s, ":")
	switch prefix {
	case transportOCI, transportOCIArchive, transportDockerArchive:
		if rest == "" {
			return Ref{}, faultf(ErrUsage, "no path after %q", prefix+":").withHint(hintTransports)
		}
		return parsePath(prefix, rest)
	case transportDockerRoot, transportStorage, transportContainerdRoot, transportDir:
		return parseUnpacked(prefix, rest)
	}
	for _, t := range foreignTransports {
		if t == prefix && rest != "" {
			return Ref{}, unknownTransport(prefix)
		}
	}
	return parseName(s)
}

func unknownTransport(name string) error {
	return faultf(ErrUsage, "unknown transport %q", name).withHint(hintTransports)
}

// parsePath parses what follows a transport of local files. The path ends at
// the first colon, as it does in skopeo.
func parsePath(transport, s string) (Ref, error) {
	r := Ref{Transport: transport}
	if i := strings.LastIndex(s, "@"); i > 0 && transport != transportDockerArchive {
		if d := digest.Digest(s[i+1:]); d.Validate() == nil {
			r.Digest, s = d, s[:i]
		}
	}
	r.Path, r.Tag, _ = strings.Cut(s, ":")
	if r.Path == "" {
		return Ref{}, faultf(ErrUsage, "no path in the reference").withHint(hintTransports)
	}
	return r, nil
}

// parseName parses [HOST/]REPO[:TAG][@DIGEST] with the defaults of Docker Hub.
func parseName(s string) (Ref, error) {
	r := Ref{Transport: transportDocker}
	name, dig, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		r.Digest = digest.Digest(dig)
		if err := r.Digest.Validate(); err != nil {
			return Ref{}, faultf(ErrUsage, "digest %q: %w", dig, err)
		}
	}
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		name, r.Tag = name[:i], name[i+1:]
		if !tagRE.MatchString(r.Tag) {
			return Ref{}, faultf(ErrUsage, "malformed tag %q", r.Tag)
		}
	}
	r.Host, r.Repo = splitHost(name)
	if r.Tag == "" && !hasDigest {
		r.Tag = "latest"
	}
	return r, r.checkName()
}

// splitHost cuts the registry off a name. The first component is a registry
// when it has a dot, a port or upper case letters, or is "localhost".
func splitHost(name string) (host, repo string) {
	first, rest, ok := strings.Cut(name, "/")
	if !ok || (!strings.ContainsAny(first, ".:[") && first != "localhost" && first == strings.ToLower(first)) {
		host, repo = hubHost, name
	} else {
		host, repo = first, rest
	}
	switch host {
	case hubAPI, hubRegistry, "registry.hub.docker.com":
		host = hubHost
	}
	if host == hubHost && !strings.Contains(repo, "/") {
		repo = "library/" + repo
	}
	return host, repo
}

func (r Ref) checkName() error {
	if !hostRE.MatchString(r.Host) {
		return faultf(ErrUsage, "malformed registry name %q", r.Host).withHint(hintTransports)
	}
	repo := strings.TrimPrefix(r.Repo, "library/")
	switch {
	case repo == "":
		return faultf(ErrUsage, "no repository name").withHint(hintTransports)
	case repoRE.MatchString(r.Repo) && len(r.Host)+1+len(r.Repo) <= maxRepo:
		return nil
	case repoRE.MatchString(strings.ToLower(r.Repo)):
		return faultf(ErrUsage, "repository name %q must be lower case and at most %d bytes", repo, maxRepo)
	}
	return faultf(ErrUsage, "malformed repository name %q", repo).withHint(hintTransports)
}

// String returns the reference in full, with every default filled in.
func (r Ref) String() string {
	s := r.base()
	if r.Tag != "" && r.inStore() {
		return s + "#" + r.Tag
	}
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

func (r Ref) base() string {
	if r.Transport == transportDocker {
		return r.Host + "/" + r.Repo
	}
	return r.Transport + ":" + r.Path
}

// canonical returns the name of the image with manifest digest d: it stays
// true when the tag moves. Of local files only OCI layouts have such names.
func (r Ref) canonical(d digest.Digest) string {
	switch {
	case r.inStore(), r.Transport == transportDir:
		return r.String()
	case r.Transport == transportDockerArchive, r.Transport != transportDocker && r.Tag != "":
		r.Digest = ""
		return r.String()
	}
	return r.base() + "@" + d.String()
}

// apiHost returns the host to talk to.
func apiHost(host string) string {
	if host == hubHost {
		return hubAPI
	}
	return host
}

// isLoopback tells whether host, with or without a port, is this machine.
// RFC 6761 section 6.3 reserves localhost and everything below it.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

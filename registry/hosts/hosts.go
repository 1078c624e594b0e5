// Package hosts finds out which hosts have the images of a registry: mirrors, in what order, and how each is spoken to.
//
// Two formats say so, and both are read as those who made them do: the directories of
// hosts.toml files that containerd has (its docs/hosts.md), and registries.conf of podman, skopeo and
// buildah (containers-registries.conf(5), version 2). Nothing is sent from here. Certificates
// that docker and podman keep for a host (containers-certs.d(5)) are found too.
package hosts

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// A Host is one place that has a repository, or part of what it holds.
type Host struct {
	Name   string // host[:port], as it is asked and as credentials are filed
	Scheme string // "http" or "https", and nothing else; "": as for a registry that nobody configured
	Root   string // path of the API, without a slash behind: "/v2"
	Repo   string // the repository's name there
	NS     string // value of the query ns, which tells a mirror of many registries which one is meant; "" is none
	Can    Abilities
	Mirror bool // not the registry itself

	Header   http.Header // sent with every request to the host; may be nil
	TLS      *tls.Config // of the configured certificates; nil: as usual
	Insecure bool        // neither certificates nor http are minded
}

// Abilities are what a host may be asked for.
type Abilities uint8

// The abilities.
const (
	Resolve Abilities = 1 << iota // which manifest a tag means
	Pull                          // manifests and blobs, by digest
	Push
)

// Errors of Find. Its others are of files that cannot be read or understood, and name them.
var (
	// ErrBlocked says that nobody may pull from the registry.
	ErrBlocked = errors.New("blocked")
	// ErrMalformed says that a file is not what its format asks for.
	ErrMalformed = errors.New("malformed")
)

// Options say where to look. The zero value reads registries.conf and certificates in the usual places.
type Options struct {
	Dir    string              // of hosts.toml directories; "": none. It wins where it speaks of a registry
	Getenv func(string) string // nil: os.Getenv
	Etc    string              // "": /etc
	Log    *slog.Logger        // nil discards
}

func (o Options) getenv(name string) string {
	if o.Getenv == nil {
		return os.Getenv(name)
	}
	return o.Getenv(name)
}

func (o Options) etc(elem ...string) string {
	root := o.Etc
	if root == "" {
		root = "/etc"
	}
	return filepath.Join(append([]string{root}, elem...)...)
}

// configHome is where a user's own files are; "": nowhere.
func (o Options) configHome() string {
	if dir := o.getenv("XDG_CONFIG_HOME"); dir != "" {
		return dir
	}
	if home := o.getenv("HOME"); home != "" {
		return filepath.Join(home, ".config")
	}
	return ""
}

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// A Name is what is looked for.
type Name struct {
	Host, Repo string // "docker.io", "library/alpine"
	Tagged     bool   // it is asked for by a tag, and not by a digest
}

// Find returns the hosts that have a repository, in the order in which they are to be asked.
// The last one is the registry itself, or what stands for it.
func Find(n Name, o Options) ([]Host, error) {
	list, err := find(n, o)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].TLS != nil {
			continue
		}
		if list[i].TLS, err = o.certificates(list[i].Name); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func find(n Name, o Options) ([]Host, error) {
	list, err := o.fromDir(n)
	if list != nil || err != nil {
		return list, err
	}
	list, err = o.fromRegistries(n)
	if list != nil || err != nil {
		return list, err
	}
	return []Host{n.itself()}, nil
}

// itself is the registry that a name stands for, as nobody configured it.
func (n Name) itself() Host {
	return Host{Name: n.Host, Root: "/v2", Repo: n.Repo, Can: Resolve | Pull | Push}
}

// maxFile is the largest file that is read. Those that list the mirrors of whole companies have
// some kilobytes; a decoder keeps several times the size in memory.
const maxFile = 1 << 20

// readFile reads a configuration; "" stands for one that is not there.
func readFile(name string) (string, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: %w: more than %d bytes", name, ErrMalformed, maxFile)
	}
	return string(b), err
}

// isHub tells whether a host is one of the names of Docker Hub.
func isHub(host string) bool {
	return host == "docker.io" || host == "index.docker.io" || host == "registry-1.docker.io"
}

// validHost tells whether s can be the name of a host, with or without a port.
func validHost(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, "1"
	}
	return host != "" && port != "" && !strings.Contains(host, "..") && !strings.ContainsAny(s, "/\\@?#% \t\r\n")
}

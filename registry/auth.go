package registry

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	dockerconfig "github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
)

// hubKey is Docker Hub in the files that "docker login" writes.
const hubKey = "https://index.docker.io/v1/"

// credentials finds what the user has stored for a registry, and keeps it
// until a server refuses it: a credential helper is a process of its own.
type credentials struct {
	file string // explicit; "": the usual places
	ref  Ref
	log  *slog.Logger

	mu    sync.Mutex
	found *authn.AuthConfig // protected by mu
	used  bool              // found was given out by an earlier get than the last; protected by mu
}

// get returns the credentials; the zero value means anonymous.
func (c *credentials) get() (authn.AuthConfig, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.found != nil {
		c.used = true
		return *c.found, nil
	}
	cfg, err := c.lookup()
	if err != nil {
		return cfg, err
	}
	c.found, c.used = &cfg, false
	return cfg, nil
}

// forget makes the next get read the files again: "docker login" may have
// been run meanwhile, and helpers hand out tokens that expire. It tells whether
// what it forgets was read a while ago, so that another look may help.
func (c *credentials) forget() (old bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old = c.used
	c.found, c.used = nil, false
	return old
}

// lookup asks the files in the order of containers-auth.json(5) and takes the first
// that knows the registry. A file that the user names must be there.
func (c *credentials) lookup() (authn.AuthConfig, error) {
	files := authFiles()
	explicit := c.file
	if explicit == "" {
		explicit = os.Getenv("REGISTRY_AUTH_FILE")
	}
	if explicit != "" {
		files = []string{explicit}
	}
	for _, name := range files {
		cfg, err := c.fromFile(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && explicit == "":
		case err != nil:
			return cfg, faultf(ErrUnauthorized, "credentials: %w", err)
		case cfg != authn.AuthConfig{}:
			return cfg, nil
		}
	}
	return authn.AuthConfig{}, nil
}

// authFiles lists podman's files, which are the more specific ones, and docker's.
func authFiles() []string {
	var list []string
	add := func(dir string, rest ...string) {
		if dir != "" {
			list = append(list, filepath.Join(append([]string{dir}, rest...)...))
		}
	}
	home, _ := os.UserHomeDir()
	configDir := os.Getenv("XDG_CONFIG_HOME")
	if configDir == "" && home != "" {
		configDir = filepath.Join(home, ".config")
	}
	add(os.Getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	add(configDir, "containers", "auth.json")
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(home, ".docker", "config.json")
	}
	return list
}

func (c *credentials) fromFile(name string) (authn.AuthConfig, error) {
	f, err := os.Open(name)
	if err != nil {
		return authn.AuthConfig{}, err
	}
	defer func() { _ = f.Close() }()
	cf, err := dockerconfig.LoadFromReader(f)
	if err != nil {
		return authn.AuthConfig{}, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	if a, ok := c.fromEntries(cf); ok {
		return fromDocker(a), nil
	}
	return c.fromHelper(cf), nil
}

// fromEntries looks for the longest key of the file that the repository is
// below: "host/org/repo", "host/org", "host".
func (c *credentials) fromEntries(cf *configfile.ConfigFile) (types.AuthConfig, bool) {
	key := c.ref.Host + "/" + c.ref.Repo
	for {
		if a, ok := usable(cf.AuthConfigs[key]); ok {
			return a, true
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			break
		}
		key = key[:i]
	}
	for _, key := range c.hostKeys() {
		if a, ok := usable(cf.AuthConfigs[key]); ok {
			return a, true
		}
	}
	return types.AuthConfig{}, false
}

// usable tells whether an entry holds anything: with a credential helper,
// docker leaves empty ones behind.
func usable(a types.AuthConfig) (types.AuthConfig, bool) {
	a.ServerAddress = ""
	return a, a != types.AuthConfig{}
}

// hostKeys are the spellings under which docker files the registry itself.
func (c *credentials) hostKeys() []string {
	if c.ref.Host == hubHost {
		return []string{hubKey, hubAPI, hubHost}
	}
	return []string{c.ref.Host, "https://" + c.ref.Host, "http://" + c.ref.Host}
}

// fromHelper asks the helper program that the file names for the registry. One that
// fails is no reason not to try a public image anonymously.
func (c *credentials) fromHelper(cf *configfile.ConfigFile) authn.AuthConfig {
	key := c.hostKeys()[0]
	if _, ok := cf.CredentialHelpers[c.ref.Host]; ok {
		key = c.ref.Host
	}
	if cf.CredentialHelpers[key] == "" && cf.CredentialsStore == "" {
		return authn.AuthConfig{}
	}
	a, err := cf.GetAuthConfig(key)
	if err != nil {
		c.log.Warn("credential helper", "registry", c.ref.Host, "error", err)
		return authn.AuthConfig{}
	}
	a, _ = usable(a)
	return fromDocker(a)
}

func fromDocker(a types.AuthConfig) authn.AuthConfig {
	return authn.AuthConfig{
		Username: a.Username, Password: a.Password, Auth: a.Auth,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
}

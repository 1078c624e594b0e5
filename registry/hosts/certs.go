package hosts

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// certificates finds what docker and podman keep for a host: the first of their directories
// that is there (containers-certs.d(5)). nil: nothing.
func (o Options) certificates(host string) (*tls.Config, error) {
	if !validHost(host) {
		return nil, nil
	}
	dirs := []string{o.etc("containers", "certs.d", host), o.etc("docker", "certs.d", host)}
	if home := o.configHome(); home != "" {
		dirs = append([]string{filepath.Join(home, "containers", "certs.d", host)}, dirs...)
	}
	for _, dir := range dirs {
		m, err := certificateFiles(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return m.config()
	}
	return nil, nil
}

// Material is what the files of a host give for TLS.
type material struct {
	ca      []string    // files of certificates that are trusted beside the system's
	pairs   [][2]string // files of a client's certificate and its key; no key: it is in the same file
	skip    bool        // the host's certificate is not looked at
	skipSet bool        // skip was said
}

// certificateFiles sorts the files of a directory by their names: *.crt are trusted, *.cert is a
// client's certificate whose key is in *.key.
func certificateFiles(dir string) (m material, err error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return m, err
	}
	for _, e := range list {
		name := filepath.Join(dir, e.Name())
		base := strings.TrimSuffix(name, filepath.Ext(name))
		switch filepath.Ext(name) {
		case ".crt":
			m.ca = append(m.ca, name)
		case ".cert":
			m.pairs = append(m.pairs, [2]string{name, base + ".key"})
		case ".key":
			if _, err := os.Stat(base + ".cert"); err != nil {
				return m, fmt.Errorf("%w: the key %s has no certificate beside it", ErrMalformed, name)
			}
		}
	}
	return m, nil
}

// config reads the files; nil: there is nothing to say.
func (m material) config() (*tls.Config, error) {
	if len(m.ca) == 0 && len(m.pairs) == 0 && !m.skipSet {
		return nil, nil
	}
	c := &tls.Config{InsecureSkipVerify: m.skip}
	for _, name := range m.ca {
		if err := trust(c, name); err != nil {
			return nil, err
		}
	}
	for _, p := range m.pairs {
		if p[1] == "" {
			p[1] = p[0]
		}
		pair, err := tls.LoadX509KeyPair(p[0], p[1])
		if err != nil {
			return nil, fmt.Errorf("client certificate %s: %w", p[0], err)
		}
		c.Certificates = append(c.Certificates, pair)
	}
	return c, nil
}

// trust adds the certificates of a file to those of the system.
func trust(c *tls.Config, name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if c.RootCAs == nil {
		if c.RootCAs, err = x509.SystemCertPool(); err != nil {
			c.RootCAs = x509.NewCertPool()
		}
	}
	if !c.RootCAs.AppendCertsFromPEM(b) {
		return fmt.Errorf("%s: %w: no certificate in it", name, ErrMalformed)
	}
	return nil
}

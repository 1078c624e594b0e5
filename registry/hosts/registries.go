package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// fromRegistries reads what registries.conf has about a repository; nil: nothing. Short names are not
// its matter here: a name without a host is Docker Hub's, whatever unqualified-search-registries and
// aliases say.
func (o Options) fromRegistries(n Name) ([]Host, error) {
	var all registries
	for _, name := range o.registryFiles() {
		text, err := readFile(name)
		if err != nil {
			return nil, err
		}
		more, err := parseRegistries(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if more.old {
			o.log().Warn("registries.conf: version 1 is not read", "file", name)
		}
		for i := range more.list {
			more.list[i].file = name
		}
		all.add(more.list)
	}
	r, rest := all.match(n)
	if r == nil {
		return nil, nil
	}
	if r.Blocked {
		return nil, fmt.Errorf("%w in %s", ErrBlocked, r.file)
	}
	return r.hosts(n, rest), nil
}

// registryFiles are the files in the order in which they are read: one, and those of the
// directories whose entries add to it.
func (o Options) registryFiles() []string {
	var dirs []string
	main := o.etc("containers", "registries.conf")
	dirs = append(dirs, main+".d")
	if home := o.configHome(); home != "" {
		own := filepath.Join(home, "containers", "registries.conf")
		dirs = append(dirs, own+".d")
		if _, err := os.Stat(own); err == nil {
			main = own
		}
	}
	if name := o.getenv("CONTAINERS_REGISTRIES_CONF"); name != "" {
		main = name
	}
	files := []string{main}
	for _, dir := range dirs {
		list, err := os.ReadDir(dir) // in the order of the names
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			o.log().Warn("registries.conf", "error", err)
		}
		for _, e := range list {
			if strings.HasSuffix(e.Name(), ".conf") && !e.IsDir() {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
	}
	return files
}

// Registries are the entries of one file or several.
type registries struct {
	list []registryEntry
	old  bool // it has what version 1 was made of
}

// A registryEntry is a [[registry]] table.
type registryEntry struct {
	Prefix   string        `toml:"prefix"`
	Location string        `toml:"location"`
	Insecure bool          `toml:"insecure"`
	Blocked  bool          `toml:"blocked"`
	ByDigest bool          `toml:"mirror-by-digest-only"`
	Mirrors  []mirrorEntry `toml:"mirror"`

	file string
}

// A mirrorEntry is a [[registry.mirror]] table.
type mirrorEntry struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
	From     string `toml:"pull-from-mirror"` // all, digest-only, tag-only; "": all
}

// parseRegistries reads one file.
func parseRegistries(text string) (registries, error) {
	var raw struct {
		Registry   []registryEntry `toml:"registry"`
		Registries any             `toml:"registries"`
	}
	if _, err := toml.Decode(text, &raw); err != nil {
		return registries{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	for i := range raw.Registry {
		if err := raw.Registry[i].check(); err != nil {
			return registries{}, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
	return registries{list: raw.Registry, old: raw.Registries != nil}, nil
}

// check completes an entry with its defaults.
func (r *registryEntry) check() (err error) {
	if r.Location, err = cleanLocation(r.Location); err != nil {
		return err
	}
	if r.Prefix == "" {
		r.Prefix = r.Location
	}
	wild := strings.HasPrefix(r.Prefix, "*.")
	if r.Prefix, err = cleanLocation(strings.TrimPrefix(r.Prefix, "*.")); err != nil {
		return err
	}
	switch {
	case r.Prefix == "":
		return errors.New("a registry without prefix and location")
	case wild:
		r.Prefix = "*." + r.Prefix
	case r.Location == "":
		r.Location = r.Prefix
	}
	for i := range r.Mirrors {
		if err := r.Mirrors[i].check(r.ByDigest); err != nil {
			return fmt.Errorf("mirror of %s: %w", r.Prefix, err)
		}
	}
	return nil
}

func (m *mirrorEntry) check(byDigest bool) (err error) {
	if m.Location, err = cleanLocation(m.Location); err != nil {
		return err
	}
	switch {
	case m.Location == "":
		return errors.New("no location")
	case m.From != "" && byDigest:
		return errors.New("pull-from-mirror beside mirror-by-digest-only")
	case byDigest:
		m.From = "digest-only"
	case m.From == "":
		m.From = "all"
	}
	if !slices.Contains([]string{"all", "digest-only", "tag-only"}, m.From) {
		return fmt.Errorf("pull-from-mirror %q: want all, digest-only or tag-only", m.From)
	}
	return nil
}

// cleanLocation checks HOST[:PORT][/PATH].
func cleanLocation(s string) (string, error) {
	s = strings.TrimRight(s, "/")
	host, _, _ := strings.Cut(s, "/")
	switch {
	case s == "":
		return "", nil
	case strings.Contains(s, "://"):
		return "", fmt.Errorf("%q: want HOST[:PORT][/PATH], no URL", s)
	case !validHost(host) || strings.Contains(s, "//") || strings.ContainsAny(s, "\\@?#% \t\r\n"):
		return "", fmt.Errorf("%q: want HOST[:PORT][/PATH]", s)
	}
	return s, nil
}

// add lets later entries take the place of earlier ones with the same prefix.
func (r *registries) add(list []registryEntry) {
	for _, e := range list {
		i := slices.IndexFunc(r.list, func(o registryEntry) bool { return o.Prefix == e.Prefix })
		if i < 0 {
			r.list = append(r.list, e)
		} else {
			r.list[i] = e
		}
	}
}

// match returns the entry with the longest prefix of a repository, and what of its name is behind the prefix.
func (r *registries) match(n Name) (best *registryEntry, rest string) {
	for i := range r.list {
		e := &r.list[i]
		left, ok := e.cut(n.Host + "/" + n.Repo)
		if ok && (best == nil || len(e.Prefix) > len(best.Prefix)) {
			best, rest = e, left
		}
	}
	return best, rest
}

// cut takes the prefix off a name.
func (r *registryEntry) cut(name string) (rest string, ok bool) {
	prefix := r.Prefix
	if domain, wild := strings.CutPrefix(prefix, "*"); wild { // ".example.com[/PATH]"
		host, _, _ := strings.Cut(name, "/")
		top, _, _ := strings.Cut(domain, "/")
		if !strings.HasSuffix(host, top) || len(host) == len(top) {
			return "", false
		}
		prefix = strings.TrimSuffix(host, top) + domain
	}
	rest, ok = strings.CutPrefix(name, prefix)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// hosts returns the mirrors and then the registry.
func (r *registryEntry) hosts(n Name, rest string) (list []Host) {
	for _, m := range r.Mirrors {
		h, ok := place(m.Location, rest)
		if h.Can = m.abilities(n.Tagged); !ok || h.Can == 0 {
			continue
		}
		h.Insecure, h.Mirror = m.Insecure, true
		list = append(list, h)
	}
	own := n.itself()
	own.Insecure = r.Insecure
	if h, ok := place(r.Location, rest); ok && r.Location != "" && (h.Name != n.Host || h.Repo != n.Repo) {
		// As with podman, what is pushed goes where its name says.
		h.Insecure, h.Can = r.Insecure, Resolve|Pull
		own.Can = Push
		return append(list, h, own)
	}
	return append(list, own)
}

// abilities: of a mirror for digests a tag is not asked, and all that a tag led to elsewhere is.
func (m mirrorEntry) abilities(tagged bool) Abilities {
	switch {
	case m.From == "digest-only":
		return Pull
	case m.From == "tag-only" && !tagged:
		return 0
	}
	return Resolve | Pull
}

// place is what a location becomes with the rest of a name behind it.
func place(location, rest string) (Host, bool) {
	host, repo, ok := strings.Cut(location+rest, "/")
	if isHub(host) && ok && !strings.Contains(repo, "/") {
		repo = "library/" + repo
	}
	return Host{Name: host, Root: "/v2", Repo: repo}, ok && repo != ""
}

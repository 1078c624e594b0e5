package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// fromDir reads what the directory of hosts.toml files has about a registry; nil: nothing.
func (o Options) fromDir(n Name) ([]Host, error) {
	if o.Dir == "" || !validHost(n.Host) {
		return nil, nil
	}
	if _, err := os.Stat(o.Dir); err != nil {
		return nil, err // who names it means it
	}
	for _, dir := range hostDirs(o.Dir, n.Host) {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			return o.fromHostDir(dir, n)
		}
	}
	return nil, nil
}

// hostDirs are the directories that can be a host's, the first one that is there being it.
// Where a file system takes no colon, "_5000_" stands for ":5000".
func hostDirs(root, host string) (dirs []string) {
	if i := strings.LastIndexByte(host, ':'); i > 0 {
		dirs = append(dirs, filepath.Join(root, host[:i]+"_"+host[i+1:]+"_"))
	}
	return append(dirs, filepath.Join(root, host), filepath.Join(root, "_default"))
}

// fromHostDir reads one host's directory: hosts.toml, or else certificates as docker has them.
func (o Options) fromHostDir(dir string, n Name) ([]Host, error) {
	name := filepath.Join(dir, "hosts.toml")
	text, err := readFile(name)
	if err != nil {
		return nil, err
	}
	if text != "" {
		file, err := parseHostsToml(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, key := range file.unknown {
			o.log().Warn("hosts.toml: not understood", "file", name, "key", key)
		}
		return file.hosts(dir, n)
	}
	m, err := certificateFiles(dir)
	if err != nil {
		return nil, err
	}
	h := n.itself()
	h.TLS, err = m.config()
	return []Host{h}, err
}

// A hostsToml is a hosts.toml file.
type hostsToml struct {
	server  hostTable // its address "" is that of the registry
	mirrors []hostTable
	unknown []string // keys that nobody here knows
}

// A hostTable is what the file says of one host.
type hostTable struct {
	address string
	can     Abilities // 0: nothing is said
	header  http.Header
	override,
	skip *bool
	ca    []string
	pairs [][2]string
}

// Capabilities as they are spelled.
var abilityNames = map[string]Abilities{"resolve": Resolve, "pull": Pull, "push": Push}

// A rawTable is a hostTable as it is spelled: some values are one thing or a list of them.
type rawTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath *bool          `toml:"override_path"`
	DialTimeout  any            `toml:"dial_timeout"` // known, and not needed
}

// parseHostsToml reads a hosts.toml file. Mirrors come in the order of the file.
func parseHostsToml(text string) (f hostsToml, err error) {
	var raw struct {
		Server string `toml:"server"`
		rawTable
		Host map[string]rawTable `toml:"host"`
	}
	md, err := toml.Decode(text, &raw)
	if err != nil {
		return f, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	for _, k := range md.Undecoded() {
		f.unknown = append(f.unknown, k.String())
	}
	if f.server, err = raw.read(raw.Server); err != nil {
		return f, fmt.Errorf("%w: server: %w", ErrMalformed, err)
	}
	for _, k := range md.Keys() {
		if len(k) < 2 || k[0] != "host" || slices.ContainsFunc(f.mirrors, func(t hostTable) bool { return t.address == k[1] }) {
			continue
		}
		t, err := raw.Host[k[1]].read(k[1])
		if err != nil {
			return f, fmt.Errorf("%w: host %q: %w", ErrMalformed, k[1], err)
		}
		f.mirrors = append(f.mirrors, t)
	}
	return f, nil
}

func (r rawTable) read(address string) (t hostTable, err error) {
	t = hostTable{address: address, override: r.OverridePath, skip: r.SkipVerify}
	for _, name := range r.Capabilities {
		a, ok := abilityNames[strings.ToLower(name)]
		if !ok {
			return t, fmt.Errorf("capability %q: want pull, resolve or push", name)
		}
		t.can |= a
	}
	if t.ca, err = stringList("ca", r.CA); err != nil {
		return t, err
	}
	if t.pairs, err = clientPairs(r.Client); err != nil {
		return t, err
	}
	t.header = http.Header{}
	for name, v := range r.Header {
		values, err := stringList("header "+name, v)
		if err != nil {
			return t, err
		}
		t.header[http.CanonicalHeaderKey(name)] = values
	}
	return t, nil
}

// stringList takes a string or a list of them.
func stringList(what string, v any) (list []string, err error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%s: want strings", what)
			}
			list = append(list, s)
		}
		return list, nil
	}
	return nil, fmt.Errorf("%s: want a string or a list of strings", what)
}

// clientPairs takes a file, a list of files, or a list of files and pairs of files.
func clientPairs(v any) (pairs [][2]string, err error) {
	list, ok := v.([]any)
	if !ok && v != nil {
		list = []any{v}
	}
	for _, e := range list {
		files, err := stringList("client", e)
		if err != nil || len(files) == 0 || len(files) > 2 {
			return nil, errors.New("client: want a file with certificate and key, or pairs of files")
		}
		pairs = append(pairs, [2]string{files[0], append(files, "")[1]})
	}
	return pairs, nil
}

// hosts returns the mirrors and the server behind them. dir is where relative names of files start.
func (f hostsToml) hosts(dir string, n Name) (list []Host, err error) {
	own := f.server
	if own.address == "" {
		own.address = "https://" + n.Host
	}
	server, err := own.host(dir, n)
	if err != nil {
		return nil, err
	}
	listed := false
	for _, t := range f.mirrors {
		h, err := t.host(dir, n)
		if err != nil {
			return nil, err
		}
		h.Mirror = h.Name != server.Name || h.Root != server.Root || h.Scheme != server.Scheme
		if !h.Mirror {
			h.Can |= pushUnlessSaid(t)
			listed = true // with what is to be known about it
		}
		list = append(list, h)
	}
	if listed {
		return list, nil
	}
	if f.server.address == "" {
		server.Scheme = "" // a registry on this machine may speak http
	}
	server.Can |= pushUnlessSaid(f.server)
	return append(list, server), nil
}

// pushUnlessSaid: the registry itself takes pushes, unless it has a list of capabilities that says no.
func pushUnlessSaid(t hostTable) Abilities {
	if t.can == 0 {
		return Push
	}
	return 0
}

// host is the place that a table is about.
func (t hostTable) host(dir string, n Name) (Host, error) {
	address := t.address
	if !strings.HasPrefix(address, "http://") && !strings.HasPrefix(address, "https://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || !validHost(u.Host) || u.User != nil || u.RawQuery != "" {
		return Host{}, fmt.Errorf("%w: the address of a host: %q", ErrMalformed, t.address)
	}
	h := Host{Name: u.Host, Scheme: u.Scheme, Root: t.root(u.Path), Repo: n.Repo, Can: t.abilities(), Header: t.header}
	if h.Name != n.Host && (!isHub(n.Host) || !isHub(h.Name)) {
		h.NS = n.Host
	}
	h.TLS, err = t.material(dir).config()
	return h, err
}

// root is the path of the API on a host: what is in the address, with /v2 behind it unless that is there or not wanted.
func (t hostTable) root(p string) string {
	p = strings.TrimSuffix(path.Clean("/"+p), "/")
	if t.override != nil && *t.override || strings.HasSuffix(p, "/v2") {
		return p
	}
	return p + "/v2"
}

// abilities are those listed. Where there is no list, containerd gives a mirror all of them; here nothing
// is pushed to a mirror that does not say that it takes it.
func (t hostTable) abilities() Abilities {
	if t.can == 0 {
		return Resolve | Pull
	}
	return t.can
}

func (t hostTable) material(dir string) material {
	m := material{skipSet: t.skip != nil, skip: t.skip != nil && *t.skip}
	within := func(name string) string {
		if name == "" || filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(dir, name)
	}
	for _, name := range t.ca {
		m.ca = append(m.ca, within(name))
	}
	for _, p := range t.pairs {
		m.pairs = append(m.pairs, [2]string{within(p[0]), within(p[1])})
	}
	return m
}

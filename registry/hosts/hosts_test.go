package hosts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// places are options that see no file of the machine, and the directory that is their /etc.
func places(t *testing.T) (Options, string) {
	root := t.TempDir()
	env := map[string]string{"HOME": filepath.Join(root, "home")}
	return Options{Etc: filepath.Join(root, "etc"), Getenv: func(name string) string { return env[name] }}, root
}

// line shows a host as one line of a table.
func line(h Host) string {
	s := h.Scheme + "://" + h.Name + h.Root + " " + h.Repo
	for _, a := range []struct {
		can  Abilities
		name string
	}{{Resolve, " resolve"}, {Pull, " pull"}, {Push, " push"}} {
		if h.Can&a.can != 0 {
			s += a.name
		}
	}
	if h.NS != "" {
		s += " ns=" + h.NS
	}
	if h.Mirror {
		s += " mirror"
	}
	if h.Insecure {
		s += " insecure"
	}
	return s
}

func lines(list []Host) string {
	var all []string
	for _, h := range list {
		all = append(all, line(h))
	}
	return strings.Join(all, "\n")
}

func wantHosts(t *testing.T, what string, n Name, o Options, want ...string) []Host {
	t.Helper()
	list, err := Find(n, o)
	if err != nil || lines(list) != strings.Join(want, "\n") {
		t.Errorf("%s: %v\n%s\nwant\n%s", what, err, lines(list), strings.Join(want, "\n"))
	}
	return list
}

func TestHostsToml(t *testing.T) {
	hub := Name{"docker.io", "library/alpine", true}
	own := Name{"reg.example:5000", "team/app", true}
	tests := []struct {
		name, text string
		n          Name
		want       []string
	}{
		{"server alone", `server = "https://registry-1.docker.io"`, hub, []string{"https://registry-1.docker.io/v2 library/alpine resolve pull push"}},
		{"order of the file", `
server = "https://reg.example:5000"
[host."https://z.example"]
  capabilities = ["pull"]
[host."http://a.example:8080"]
  capabilities = ["pull", "resolve"]
[host."https://m.example/cache"]
`, own, []string{
			"https://z.example/v2 team/app pull ns=reg.example:5000 mirror",
			"http://a.example:8080/v2 team/app resolve pull ns=reg.example:5000 mirror",
			"https://m.example/cache/v2 team/app resolve pull ns=reg.example:5000 mirror",
			"https://reg.example:5000/v2 team/app resolve pull push",
		}},
		{"no server", `
[host."cache.example"]
capabilities = ["Pull", "Resolve", "push"]
`, hub, []string{
			"https://cache.example/v2 library/alpine resolve pull push ns=docker.io mirror",
			"://docker.io/v2 library/alpine resolve pull push",
		}},
		{"paths", `
[host."https://a.example/v2/proxy"]
  override_path = true
[host."https://b.example/x/v2/"]
[host."https://c.example/"]
  override_path = true
`, own, []string{
			"https://a.example/v2/proxy team/app resolve pull ns=reg.example:5000 mirror",
			"https://b.example/x/v2 team/app resolve pull ns=reg.example:5000 mirror",
			"https://c.example team/app resolve pull ns=reg.example:5000 mirror",
			"://reg.example:5000/v2 team/app resolve pull push",
		}},
		{"the server is listed", `
server = "https://reg.example:5000"
[host."https://reg.example:5000"]
  skip_verify = true
`, own, []string{"https://reg.example:5000/v2 team/app resolve pull push"}},
		{"a server with a list", "server = 'https://up.example'\ncapabilities = ['pull']", own, []string{"https://up.example/v2 team/app pull ns=reg.example:5000"}},
	}
	for _, tt := range tests {
		o, root := places(t)
		o.Dir = filepath.Join(root, "hosts.d")
		write(t, filepath.Join(o.Dir, tt.n.Host, "hosts.toml"), tt.text)
		wantHosts(t, tt.name, tt.n, o, tt.want...)
	}
}

func TestHostsTomlHeaders(t *testing.T) {
	o, root := places(t)
	o.Dir = root
	write(t, filepath.Join(root, "r.example", "hosts.toml"), `
[host."https://m.example"]
  skip_verify = true
  [host."https://m.example".header]
    x-meta = "one"
    X-More = ["a", "b"]
`)
	list := wantHosts(t, "header", Name{"r.example", "a", false}, o, "https://m.example/v2 a resolve pull ns=r.example mirror", "://r.example/v2 a resolve pull push")
	if h := list[0]; fmt.Sprint(h.Header) != "map[X-Meta:[one] X-More:[a b]]" || h.TLS == nil || !h.TLS.InsecureSkipVerify {
		t.Errorf("%v %v", h.Header, h.TLS)
	}
	if list[1].TLS != nil || len(list[1].Header) != 0 {
		t.Error("what is a mirror's is the registry's too")
	}
}

// TestHostDirs: where a host's directory may be.
func TestHostDirs(t *testing.T) {
	toml := func(name string) string { return "[host.'https://" + name + ".example']" }
	n := Name{"r.example:5000", "a", false}
	o, root := places(t)
	o.Dir = root
	wantHosts(t, "nothing", n, o, "://r.example:5000/v2 a resolve pull push")
	for _, dir := range []string{"_default", "r.example:5000", "r.example_5000_"} {
		mirror := strings.Trim(strings.ReplaceAll(dir, ":", "-"), "_")
		write(t, filepath.Join(root, dir, "hosts.toml"), toml(mirror))
		wantHosts(t, dir, n, o, "https://"+mirror+".example/v2 a resolve pull ns=r.example:5000 mirror", "://r.example:5000/v2 a resolve pull push")
	}
	o.Dir = filepath.Join(root, "none")
	if _, err := Find(n, o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestHostsTomlErrors(t *testing.T) {
	for _, text := range []string{
		"server = ", "server = 'ftp://x'", "server = 'https://u:p@x'", "[host.'https://']", "[host.'https://m'",
		"[host.'https://m']\ncapabilities = ['fetch']", "[host.'https://m']\nca = 7", "[host.'https://m']\nclient = [[1]]",
		"[host.'https://m']\nclient = [['a', 'b', 'c']]", "[host.'https://m']\nca = ['gone.crt']", "[host.'https://m'.header]\nx = 3",
		"[host.'https://m?x=1']", "server = '" + strings.Repeat("x", maxFile) + "'",
	} {
		o, root := places(t)
		o.Dir = root
		name := write(t, filepath.Join(root, "r.example", "hosts.toml"), text)
		if _, err := Find(Name{"r.example", "a", false}, o); err == nil || !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "gone.crt") && !errors.Is(err, ErrMalformed) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

func TestRegistriesConf(t *testing.T) {
	const text = `
unqualified-search-registries = ["quay.io"]
short-name-mode = "enforcing"
[aliases]
"alpine" = "quay.io/alpine"

[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "cache.example:5000/hub"
insecure = true
[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "docker.io/team"
location = "internal.example/docker/team"
insecure = true

[[registry]]
location = "quay.example/blocked"
blocked = true

[[registry]]
prefix = "*.corp.example"
[[registry.mirror]]
location = "mirror.corp/all"

[[registry]]
prefix = "*.corp.example/deep"
location = "deep.example"
mirror-by-digest-only = true
[[registry.mirror]]
location = "d.example/"
`
	tests := []struct {
		n    Name
		want []string
	}{
		{Name{"docker.io", "library/alpine", true}, []string{
			"://cache.example:5000/v2 hub/library/alpine resolve pull mirror insecure",
			"://digests.example/v2 library/alpine pull mirror",
			"://tags.example/v2 library/alpine resolve pull mirror",
			"://docker.io/v2 library/alpine resolve pull push",
		}},
		{Name{"docker.io", "library/alpine", false}, []string{
			"://cache.example:5000/v2 hub/library/alpine resolve pull mirror insecure",
			"://digests.example/v2 library/alpine pull mirror",
			"://docker.io/v2 library/alpine resolve pull push",
		}},
		{Name{"docker.io", "team/app", true}, []string{
			"://internal.example/v2 docker/team/app resolve pull insecure",
			"://docker.io/v2 team/app push insecure",
		}},
		{Name{"docker.io", "teams/app", false}, []string{
			"://cache.example:5000/v2 hub/teams/app resolve pull mirror insecure",
			"://digests.example/v2 teams/app pull mirror",
			"://docker.io/v2 teams/app resolve pull push",
		}},
		{Name{"quay.example", "free/app", true}, []string{"://quay.example/v2 free/app resolve pull push"}},
		{Name{"a.b.corp.example", "x", true}, []string{
			"://mirror.corp/v2 all/x resolve pull mirror",
			"://a.b.corp.example/v2 x resolve pull push",
		}},
		{Name{"a.corp.example", "deep/x", true}, []string{
			"://d.example/v2 x pull mirror",
			"://deep.example/v2 x resolve pull",
			"://a.corp.example/v2 deep/x push",
		}},
		{Name{"corp.example", "x", true}, []string{"://corp.example/v2 x resolve pull push"}},
	}
	o, root := places(t)
	write(t, filepath.Join(root, "etc/containers/registries.conf"), text)
	for _, tt := range tests {
		wantHosts(t, tt.n.Host+"/"+tt.n.Repo, tt.n, o, tt.want...)
	}
	if _, err := Find(Name{"quay.example", "blocked/app", true}, o); !errors.Is(err, ErrBlocked) {
		t.Errorf("blocked: %v", err)
	}
}

// TestRegistryFiles: which file is read, what drop-ins replace, and that hosts.toml goes before.
func TestRegistryFiles(t *testing.T) {
	conf := func(mirror string) string {
		return "[[registry]]\nlocation = 'r.example'\n[[registry.mirror]]\nlocation = '" + mirror + "'"
	}
	n := Name{"r.example", "a", true}
	o, root := places(t)
	env := map[string]string{"HOME": filepath.Join(root, "home")}
	o.Getenv = func(name string) string { return env[name] }
	want := func(what, mirror string) {
		t.Helper()
		wantHosts(t, what, n, o, "://"+mirror+"/v2 a resolve pull mirror", "://r.example/v2 a resolve pull push")
	}
	write(t, filepath.Join(root, "etc/containers/registries.conf"), conf("etc"))
	want("of the system", "etc")
	write(t, filepath.Join(root, "home/.config/containers/registries.conf"), conf("home"))
	want("of the user", "home")
	env["CONTAINERS_REGISTRIES_CONF"] = write(t, filepath.Join(root, "env.conf"), conf("env"))
	want("of the environment", "env")
	write(t, filepath.Join(root, "etc/containers/registries.conf.d/10-x.conf"), conf("drop"))
	write(t, filepath.Join(root, "etc/containers/registries.conf.d/20-x.conf.off"), conf("off"))
	want("a drop-in", "drop")
	write(t, filepath.Join(root, "home/.config/containers/registries.conf.d/05-x.conf"), conf("mine"))
	want("the user's drop-in", "mine")
	o.Dir = filepath.Join(root, "hosts.d")
	write(t, filepath.Join(o.Dir, "other.example/hosts.toml"), "")
	want("hosts.toml files of another", "mine")
	write(t, filepath.Join(o.Dir, "_default/hosts.toml"), "[host.'m.example']")
	wantHosts(t, "hosts.toml", n, o, "https://m.example/v2 a resolve pull ns=r.example mirror", "://r.example/v2 a resolve pull push")
}

func TestRegistriesConfErrors(t *testing.T) {
	for _, text := range []string{
		"[[registry]]", "[[registry]]\nlocation = 'https://x'", "[[registry]\n", "[[registry]]\nlocation='a b'",
		"[[registry]]\nlocation='x'\n[[registry.mirror]]", "[[registry]]\nlocation='x'\n[[registry.mirror]]\nlocation='m'\npull-from-mirror='never'",
		"[[registry]]\nlocation='x'\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation='m'\npull-from-mirror='all'",
	} {
		if _, err := parseRegistries(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if r, err := parseRegistries("[registries.search]\nregistries = ['docker.io']"); err != nil || !r.old || len(r.list) != 0 {
		t.Errorf("version 1: %v, %v", r, err)
	}
}

// selfSigned writes a certificate and its key in PEM.
func selfSigned(t *testing.T, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}))
}

// TestCertificates: all the places and spellings of certificates of a host.
func TestCertificates(t *testing.T) {
	cert, key := selfSigned(t, "x")
	n := Name{"r.example:5000", "a", false}
	tests := map[string]func(root string, o *Options){
		"etc/containers/certs.d": func(root string, _ *Options) {
			dir := filepath.Join(root, "etc/containers/certs.d/r.example:5000")
			write(t, dir+"/ca.crt", cert)
			write(t, dir+"/me.cert", cert)
			write(t, dir+"/me.key", key)
		},
		"etc/docker/certs.d": func(root string, _ *Options) {
			dir := filepath.Join(root, "etc/docker/certs.d/r.example:5000")
			write(t, dir+"/ca.crt", cert)
			write(t, dir+"/me.cert", cert+key)
			write(t, dir+"/me.key", key)
		},
		"the user's": func(root string, _ *Options) {
			dir := filepath.Join(root, "home/.config/containers/certs.d/r.example:5000")
			write(t, dir+"/ca.crt", cert)
			write(t, dir+"/me.cert", cert)
			write(t, dir+"/me.key", key)
		},
		"hosts.toml": func(root string, o *Options) {
			o.Dir = root
			dir := filepath.Join(root, "r.example_5000_")
			write(t, dir+"/tls/ca.pem", cert)
			write(t, dir+"/both.pem", cert+key)
			write(t, dir+"/hosts.toml", "ca = 'tls/ca.pem'\nclient = '"+dir+"/both.pem'")
		},
		"pairs in hosts.toml": func(root string, o *Options) {
			o.Dir = root
			dir := filepath.Join(root, "_default")
			write(t, dir+"/ca.pem", cert)
			write(t, dir+"/me.key", key)
			write(t, dir+"/hosts.toml", "ca = ['ca.pem']\nclient = [['ca.pem', 'me.key']]")
		},
		"beside no hosts.toml": func(root string, o *Options) {
			o.Dir = root
			dir := filepath.Join(root, "r.example:5000")
			write(t, dir+"/ca.crt", cert)
			write(t, dir+"/me.cert", cert)
			write(t, dir+"/me.key", key)
		},
	}
	for name, put := range tests {
		o, root := places(t)
		put(root, &o)
		list, err := Find(n, o)
		if err != nil || len(list) != 1 || list[0].TLS == nil || list[0].TLS.RootCAs == nil || len(list[0].TLS.Certificates) != 1 {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
	}
	for name, content := range map[string]string{"ca.crt": "no certificate", "me.key": key, "me.cert": cert} {
		o, root := places(t)
		file := write(t, filepath.Join(root, "etc/containers/certs.d/r.example:5000", name), content)
		if _, err := Find(n, o); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzHostsToml(f *testing.F) {
	f.Add("server = 'https://a'\n[host.'b']\ncapabilities=['pull']\nclient=[['a','b'],'c']")
	f.Add("[host.'https://a/v2'.header]\nx=['1']\n[host.'http://[::1]:5000']")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := parseHostsToml(text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		list, err := file.hosts("/nowhere", Name{"r.example", "a", true})
		if err != nil {
			return // certificates that are not there
		}
		for _, h := range list {
			if !validHost(h.Name) || h.Scheme != "" && h.Scheme != "http" && h.Scheme != "https" || h.Repo != "a" {
				t.Errorf("%+v", h)
			}
		}
	})
}

func FuzzRegistriesConf(f *testing.F) {
	f.Add("[[registry]]\nprefix='*.example'\n[[registry.mirror]]\nlocation='m/x'")
	f.Add("[[registry]]\nlocation='a.example/team'\nblocked=true\n[registries.search]\nregistries=[]")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRegistries(text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		var all registries
		all.add(r.list)
		n := Name{"a.example", "team/app", true}
		e, rest := all.match(n)
		if e == nil {
			return
		}
		if !strings.HasSuffix("a.example/team/app", rest) {
			t.Errorf("rest %q", rest)
		}
		for _, h := range e.hosts(n, rest) {
			if h.Name == "" || h.Repo == "" {
				t.Errorf("%+v", h)
			}
		}
	})
}

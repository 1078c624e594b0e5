package audit

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"
)

const modeFile = unix.S_IFREG

// dpkg reads Debian's database: the lists and checksums in info, the conffiles in status
// (deb-md5sums(5), dpkg-query(1)), diversions (dpkg-divert(1)); and status.d, where images
// without a package manager keep what they were made of.
func (a *auditor) dpkg(ctx context.Context) error {
	const dir = "var/lib/dpkg/"
	info, err := a.im.Tree.ResolveFollow(dir + "info")
	lists := err == nil && a.im.Tree.IsDir(info)
	parts, err := a.im.Tree.ResolveFollow(dir + "status.d")
	inParts := err == nil && a.im.Tree.IsDir(parts)
	if !lists && !inParts {
		return nil
	}
	a.result.Databases = append(a.result.Databases, "dpkg")
	if inParts {
		if err := a.dpkgSums(ctx, dir+"status.d/", a.names(parts), nil); err != nil {
			return err
		}
	}
	if !lists {
		return nil
	}
	return a.dpkgInfo(ctx, dir, a.names(info))
}

// dpkgInfo reads the folder info and what goes with it.
func (a *auditor) dpkgInfo(ctx context.Context, dir string, names []string) error {
	text, err := a.text(ctx, dir+"diversions")
	if err != nil {
		return err
	}
	moved := parseDiversions(text)
	for _, name := range names {
		pkg, ok := strings.CutSuffix(name, ".list")
		if !ok {
			continue
		}
		if text, err = a.text(ctx, dir+"info/"+name); err != nil {
			return err
		}
		for p := range strings.Lines(string(text)) {
			a.claim(moved.of(pkg, strings.TrimSuffix(p, "\n")), claim{pkg: pkg})
		}
	}
	if err := a.dpkgSums(ctx, dir+"info/", names, moved); err != nil {
		return err
	}
	text, err = a.text(ctx, dir+"status")
	stanzas(text, a.conffiles(moved))
	return err
}

// dpkgSums reads all files PACKAGE.md5sums of a folder.
func (a *auditor) dpkgSums(ctx context.Context, dir string, names []string, moved diversions) error {
	for _, name := range names {
		pkg, ok := strings.CutSuffix(name, ".md5sums")
		if !ok {
			continue
		}
		text, err := a.text(ctx, dir+name)
		if err != nil {
			return err
		}
		a.md5sums(pkg, text, moved)
	}
	return nil
}

// md5sums takes lines of 32 digits, two blanks, and a path without a slash at its begin.
func (a *auditor) md5sums(pkg string, text []byte, moved diversions) {
	for l := range strings.Lines(string(text)) {
		hex, p, ok := strings.Cut(strings.TrimSuffix(l, "\n"), "  ")
		if ok && len(hex) == 32 {
			a.claim(moved.of(pkg, "/"+p), claim{pkg: pkg, sum: sum{"md5", hex}})
		}
	}
}

// conffiles takes a paragraph of the status, where the checksums of configuration files stand.
func (a *auditor) conffiles(moved diversions) func(lines []string) {
	return func(lines []string) {
		var pkg, key, status string
		for _, l := range lines {
			if strings.HasPrefix(l, " ") {
				if key == "Conffiles" && strings.HasSuffix(status, " installed") {
					a.conffile(pkg, strings.Fields(l), moved)
				}
				continue
			}
			var value string
			switch key, value, _ = strings.Cut(l, ":"); key {
			case "Package":
				pkg = strings.TrimSpace(value)
			case "Status":
				status = value
			}
		}
	}
}

// conffile takes a line: path, MD5, perhaps "obsolete" or "remove-on-upgrade".
func (a *auditor) conffile(pkg string, words []string, moved diversions) {
	if len(words) >= 2 && len(words[1]) == 32 {
		a.claim(moved.of(pkg, words[0]), claim{pkg: pkg, conffile: true, sum: sum{"md5", words[1]}})
	}
}

// diversions say where a file of a package is, when another package wanted its place.
type diversions map[string]diversion

type diversion struct{ to, by string }

// of is where a path of a package is.
func (d diversions) of(pkg, p string) string {
	name, _, _ := strings.Cut(pkg, ":") // the architecture
	if v, ok := d[p]; ok && v.by != name {
		return v.to
	}
	return p
}

// parseDiversions takes lines in threes: the path, where it goes, for which package (":" when
// an administrator asked for it).
func parseDiversions(text []byte) diversions {
	d := diversions{}
	for lines := strings.Split(string(text), "\n"); len(lines) >= 3; lines = lines[3:] {
		d[lines[0]] = diversion{to: lines[1], by: lines[2]}
	}
	return d
}

package audit

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	modeType = unix.S_IFMT
	modeLink = unix.S_IFLNK
)

// A pattern finds one kind of secret. The group of the expression, or all of it, is what is shown the begin of.
type pattern struct {
	name string
	hint string // that stands in every match
	re   *regexp.Regexp
}

// patterns have the published forms of keys and tokens: each issuer gives its own a prefix
// so that they can be found.
var patterns = sync.OnceValue(func() []pattern {
	return []pattern{
		{"private key", "PRIVATE KEY-----", regexp.MustCompile(`-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[A-Za-z0-9+/=:,\- ]{16}`)},
		{"AWS access key", "KIA", regexp.MustCompile(`\bAKIA[0-9A-Z]{16}\b`)},
		{"AWS session key", "SIA", regexp.MustCompile(`\bASIA[0-9A-Z]{16}\b`)},
		{"AWS secret key", "aws_secret_access_key", regexp.MustCompile(`aws_secret_access_key\s*[=:]\s*["']?([A-Za-z0-9/+]{40})`)},
		{"GitHub token", "gh", regexp.MustCompile(`\bgh[pousr]_[A-Za-z0-9]{36,}\b`)},
		{"GitHub token", "github_pat_", regexp.MustCompile(`\bgithub_pat_[A-Za-z0-9_]{60,}\b`)},
		{"GitLab token", "glpat-", regexp.MustCompile(`\bglpat-[A-Za-z0-9_-]{20,}\b`)},
		{"Slack token", "xox", regexp.MustCompile(`\bxox[abeoprs]-[A-Za-z0-9-]{20,}`)},
		{"Google API key", "AIza", regexp.MustCompile(`\bAIza[0-9A-Za-z_-]{35}\b`)},
		{"Stripe key", "k_live_", regexp.MustCompile(`\b[rs]k_live_[0-9A-Za-z]{20,}\b`)},
		{"npm token", "npm_", regexp.MustCompile(`\bnpm_[A-Za-z0-9]{36}\b`)},
		{"npm token", "_authToken", regexp.MustCompile(`_authToken\s*=\s*([^\s${]{8,})`)},
		{"PyPI token", "pypi-", regexp.MustCompile(`\bpypi-[A-Za-z0-9_-]{50,}`)},
		{"registry login", `"auth"`, regexp.MustCompile(`"auth"\s*:\s*"([A-Za-z0-9+/]{8,}={0,2})"`)},
		{"password in a URL", "://", regexp.MustCompile(`\b[a-z][a-z0-9+.-]*://[^/\s:@"'<>{}$]+:([^/\s:@"'<>{}$]{3,})@[a-zA-Z0-9]`)},
		{"password of a netrc", "machine", regexp.MustCompile(`\bmachine\s+\S+\s+login\s+\S+\s+password\s+(\S+)`)},
	}
})

// assigned finds passwords in environment and build steps, where a name says that they are
// one. In files of programs too much looks like it.
var assigned = sync.OnceValue(func() pattern {
	return pattern{"password by its name", "=", regexp.MustCompile(`(?i)\b[a-z0-9_]*(?:passw(?:or)?d|secret|token|api_?key|credential)[a-z0-9_]*=["']?([^\s"'$]{4,})`)}
})

// find names what looks like a secret in a text: the kind, the line, and its first characters.
func find(text []byte, words bool) (found []string) {
	list := patterns()
	if words {
		list = append([]pattern{assigned()}, list...)
	}
	seen := map[string]bool{}
	for _, p := range list {
		if !bytes.Contains(text, []byte(p.hint)) {
			continue
		}
		for _, m := range p.re.FindAllSubmatchIndex(text, 16) {
			value := text[m[len(m)-2]:m[len(m)-1]]
			line := 1 + bytes.Count(text[:m[0]], []byte("\n"))
			s := fmt.Sprintf("%s, line %d: %s", p.name, line, masked(value))
			if !seen[s] {
				seen[s] = true
				found = append(found, s)
			}
		}
	}
	return found
}

// masked shows enough of a secret to know it again, and no more.
func masked(v []byte) string {
	s := strings.Join(strings.Fields(strings.ReplaceAll(string(v), "-----", "")), " ")
	if strings.Contains(s, "PRIVATE KEY") {
		return s[strings.Index(s, "BEGIN")+6 : strings.Index(s, "PRIVATE KEY")+11]
	}
	return fmt.Sprintf("%s… (%d characters)", s[:min(4, len(s)/3)], len(s))
}

// passwords finds the accounts of a shadow(5) that have a password.
func passwords(text []byte) (found []string) {
	for line := range bytes.Lines(text) {
		f := strings.Split(string(line), ":")
		switch {
		case len(f) < 3:
		case f[1] == "":
			found = append(found, "account "+f[0]+" needs no password")
		case strings.HasPrefix(f[1], "$") || len(f[1]) == 13 && !strings.ContainsAny(f[1], "!*"): // crypt(5)
			found = append(found, "password of account "+f[0]+", hashed")
		}
	}
	return found
}

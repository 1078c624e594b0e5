package audit

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// apk reads Alpine's database. Its lines have a letter and a value: P the package, F a
// folder, R a file in it, Z the checksum of that file ("Q1" and the SHA-1 in base64; of a
// symlink that of its target).
func (a *auditor) apk(ctx context.Context) error {
	for _, p := range []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"} {
		text, err := a.text(ctx, p)
		if err != nil {
			return err
		}
		if len(text) == 0 {
			continue
		}
		a.result.Databases = append(a.result.Databases, "apk")
		stanzas(text, a.apkPackage)
		return nil
	}
	return nil
}

func (a *auditor) apkPackage(lines []string) {
	var pkg, dir, file string
	for _, l := range lines {
		if len(l) < 2 || l[1] != ':' {
			continue
		}
		switch value := l[2:]; l[0] {
		case 'P':
			pkg = value
		case 'F':
			dir = value
			a.claim(dir, claim{pkg: pkg})
		case 'R':
			file = join(dir, value)
			a.claim(file, claim{pkg: pkg})
		case 'Z':
			raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(value, "Q1"))
			if err == nil && len(raw) == 20 {
				a.claim(file, claim{pkg: pkg, sum: sum{"sha1", hex.EncodeToString(raw)}})
			}
		}
	}
}

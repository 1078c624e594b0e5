package audit_test

import (
	"strings"
	"testing"

	"github.com/layerfs/layerfs/union/forensic/audit"
)

// FuzzDatabases reads package databases that hold anything: every claim is a clean path
// without a slash at its begin.
func FuzzDatabases(f *testing.F) {
	f.Add("Package: sh\nStatus: install ok installed\nConffiles:\n /etc/conf 0123456789abcdef0123456789abcdef obsolete\n", "0123456789abcdef0123456789abcdef  bin/sh\n", "/bin/sh\n/bin/sh.orig\n:\n")
	f.Add("C:Q1x\nP:box\nF:bin\nR:sh\nZ:Q1AAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", "", "")
	f.Add("\n\n \n:\nR:../../x\n", "  \n", "\n\n\n")
	im := imageOf(f, file("usr/bin/sh", "x")+"\nsymlink bin usr/bin\nsymlink loop loop")
	f.Fuzz(func(t *testing.T, status, sums, diversions string) {
		for p := range audit.Parse(im.Tree, status, sums, diversions) {
			if p == "" || p[0] == '/' || strings.Contains("/"+p+"/", "/../") || strings.Contains(p, "//") {
				t.Errorf("claims %q", p)
			}
		}
	})
}

package audit_test

import (
	"os"
	"slices"
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

// FuzzRPM reads databases of rpm that hold anything: no panic, no end, and no claim that is not a clean path.
func FuzzRPM(f *testing.F) {
	sound, err := os.ReadFile("testdata/rpmdb.sqlite")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sound)
	f.Add(sound[:3000])
	loop := slices.Clone(sound) // every page number leads to page 2
	for i := 512; i+4 <= len(loop); i += 512 {
		copy(loop[i:], []byte{0, 0, 0, 2})
	}
	f.Add(loop)
	im := imageOf(f, file("usr/bin/tool", "tool"))
	f.Fuzz(func(t *testing.T, db []byte) {
		claims, _ := audit.ParseRPM(im.Tree, db)
		for p := range claims {
			if p == "" || p[0] == '/' || strings.Contains("/"+p+"/", "/../") || strings.Contains(p, "//") {
				t.Errorf("claims %q", p)
			}
		}
	})
}

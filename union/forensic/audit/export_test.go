package audit

import "github.com/layerfs/layerfs/union"

// Parse reads the texts of package databases and returns the paths that they claim.
func Parse(t *union.Tree, status, sums, diversions string) map[string]claim {
	a := &auditor{im: Image{Tree: t}, owners: newOwners()}
	stanzas([]byte(status), a.apkPackage)
	moved := parseDiversions([]byte(diversions))
	a.md5sums("sh:amd64", []byte(sums), moved)
	stanzas([]byte(status), a.conffiles(moved))
	return a.owners.claims
}

// ParseRPM reads the database of rpm.
func ParseRPM(t *union.Tree, db []byte) (map[string]claim, error) {
	a := &auditor{im: Image{Tree: t}, owners: newOwners()}
	err := a.rpmPackages(db, "var/lib/rpm")
	return a.owners.claims, err
}

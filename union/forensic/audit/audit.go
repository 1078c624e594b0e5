// Package audit looks at a whole image for what an examiner asks first: what runs with more rights than its user, what no package
// brought or somebody changed since, what hides, and what should not have been published.
//
// Metadata is looked at first, for all of the image; content is read only of files that a
// package database has a checksum of, and of small files that no package owns, in which
// secrets are looked for. The image is not changed.
package audit

import (
	"cmp"
	"context"
	"slices"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
)

// The rules, by what a [Finding] calls them.
const (
	Setuid        = "setuid"         // runs as its owner
	Setgid        = "setgid"         // runs with its group
	Capability    = "capability"     // has file capabilities
	Device        = "device"         // a device node
	WorldWritable = "world-writable" // anybody may change it, or what is in it
	OddName       = "odd-name"       // a name that hides itself, or does not print as it is
	OddPlace      = "odd-place"      // a program where data belongs
	Unowned       = "unowned"        // no package has it
	Missing       = "missing"        // a package has it, the image has not
	Changed       = "changed"        // not what its package brought
	Secret        = "secret"         // a key, a token or a password
)

// A Finding is one thing that somebody should look at.
type Finding struct {
	Rule   string
	Path   string // from the root, without a slash at its begin; "" for what is in the config
	Layer  int    // 0 is the base; -1 when no layer has it
	State  string // "visible", "overwritten" or "deleted", of secrets
	Detail string // what exactly, for people
	Files  int    // of Unowned directories: how many files are below
}

// An Image is what is audited.
type Image struct {
	Tree   *union.Tree
	Layers []*layer.Layer // of Tree
	Words  []Words        // of the config: environment, build steps, labels
}

// Words are text of an image's config.
type Words struct {
	Where, Text string // "environment", "PATH=/bin"
	Layer       int    // that a build step made, or -1
}

// A Result is what Run did, beside the findings.
type Result struct {
	Databases  []string // of packages, that were read: "dpkg", "apk", "rpm"
	Unreadable []string // of packages, that are there and were not read, with a reason
	Read       int64    // bytes of content
}

// Options of Run.
type Options struct {
	NoContent bool // read nothing but package databases: no checksums, no secrets in files
}

// Run audits an image and calls found for each finding, rule by rule and in the order of
// paths. It ends with the first error of found, of a read, or with ctx.
func Run(ctx context.Context, im Image, o Options, found func(Finding) error) (Result, error) {
	a := &auditor{im: im}
	if err := a.databases(ctx); err != nil {
		return a.result, err
	}
	a.node("", union.Root)
	a.unowned()
	a.missing()
	a.words()
	if !o.NoContent {
		if err := a.contents(ctx); err != nil {
			return a.result, err
		}
	}
	slices.SortStableFunc(a.list, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(order[x.Rule], order[y.Rule]), cmp.Compare(x.Path, y.Path), cmp.Compare(x.Layer, y.Layer))
	})
	for _, f := range a.list {
		if err := found(f); err != nil {
			return a.result, err
		}
	}
	return a.result, ctx.Err()
}

var order = map[string]int{
	Setuid: 1, Setgid: 2, Capability: 3, Device: 4, WorldWritable: 5, OddName: 6, OddPlace: 7, Missing: 8, Changed: 9, Unowned: 10, Secret: 11,
}

type auditor struct {
	im     Image
	owners owners
	list   []Finding
	result Result
}

// add notes a finding about a node of the tree.
func (a *auditor) add(rule, path string, id union.ID, detail string) {
	l, _ := a.im.Tree.Origin(id)
	a.list = append(a.list, Finding{Rule: rule, Path: path, Layer: l, State: forensic.Visible.String(), Detail: detail})
}

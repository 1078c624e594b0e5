package integration

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/layerfs/layerfs"

// mayImport is the map of the house: which of our packages a package may
// import, itself and its sub-packages for tests apart. Data flows down only.
var mayImport = map[string][]string{
	"cmd/layerfs":           {"fuse", "union", "union/layer", "union/layer/layertest", "union/forensic", "union/forensic/audit", "union/forensic/report", "union/forensic/meta", "cache", "registry", "registry/registrytest", "registry/storage"},
	"fuse":                  {"union"},
	"union":                 {"union/layer"},
	"union/forensic":        {"union/layer"},
	"union/forensic/audit":  {"union", "union/layer", "union/forensic"},
	"union/forensic/meta":   {"union", "union/layer", "union/forensic"},
	"union/forensic/report": {"union", "union/layer", "union/forensic", "union/forensic/audit"},
	"union/layer":           {"union/layer/inflate", "union/layer/ztoc", "cache"},
	"union/layer/inflate":   {},
	"union/layer/ztoc":      {"union/layer/inflate"},
	"union/layer/layertest": {},
	"cache":                 {},
	"registry":              {"registry/hosts", "registry/storage"},
	"registry/hosts":        {},
	"registry/storage":      {},

	"registry/storage/storagetest": {},
	"registry/registrytest":        {},
	"integration":                  {},

	"union/layer/layertest/estargztest":     {},
	"union/layer/layertest/zstdchunkedtest": {},
	"union/layer/layertest/suite": {
		"union/layer", "union/layer/layertest", "union/layer/layertest/estargztest", "union/layer/layertest/zstdchunkedtest",
	},
	"integration/images/estargz": {},
	"integration/bench/proxy":    {"registry/registrytest"}, // its link and its log, in front of any registry
	"integration/bench/union":    {},
}

// mayImportInTests is what a package's tests may use beyond that: images to
// work on, and a registry to get them from.
var mayImportInTests = map[string][]string{
	"cmd/layerfs":           {},
	"fuse":                  {"union/layer", "union/layer/layertest", "cache"},
	"union":                 {"union/layer/layertest", "union/forensic", "cache"},
	"union/forensic":        {"union/layer/layertest", "union/layer/ztoc", "cache"},
	"union/forensic/audit":  {"union/layer/layertest", "cache"},
	"union/forensic/meta":   {"union/layer/layertest", "cache"},
	"union/forensic/report": {"union/layer/layertest", "cache"},
	"union/layer":           {"union/layer/layertest", "union/layer/layertest/suite", "union/layer/layertest/estargztest"},
	"union/layer/layertest": {},
	"registry":              {"registry/registrytest", "registry/storage/storagetest"},
	"registry/storage":      {"registry/storage/storagetest"},
	"registry/registrytest": {"registry"},
	"integration":           {"registry", "registry/registrytest", "registry/storage/storagetest", "union/layer", "union/layer/layertest", "cache"},
}

// onlyIn names the packages that may know a foreign library.
var onlyIn = map[string][]string{
	"github.com/hanwen/go-fuse":              {"fuse"},
	"github.com/google/go-containerregistry": {"registry", "registry/registrytest"},
	"github.com/spf13/pflag":                 {"cmd/layerfs"},
	"github.com/BurntSushi/toml":             {"registry/hosts"},
	"go.etcd.io/bbolt":                       {"registry/storage/storagetest"},
	"github.com/dustin/go-humanize":          {"cmd/layerfs"},
}

func TestImportMap(t *testing.T) {
	eachImport(t, func(file, pkg, path string) {
		test := strings.HasSuffix(file, "_test.go")
		if own, ok := strings.CutPrefix(path, module+"/"); ok {
			if !allowed(pkg, own, test) {
				t.Errorf("%s: package %s must not import %s", file, pkg, own)
			}
			return
		}
		for lib, where := range onlyIn {
			if strings.HasPrefix(path, lib) && !test && !slices.Contains(where, pkg) {
				t.Errorf("%s: %s belongs to %v alone", file, path, where)
			}
		}
	})
}

func allowed(pkg, own string, test bool) bool {
	if slices.Contains(mayImport[pkg], own) {
		return true
	}
	return test && (own == pkg || slices.Contains(mayImportInTests[pkg], own))
}

// TestImportMapIsComplete fails when a package is added without a place in the map.
func TestImportMapIsComplete(t *testing.T) {
	eachImport(t, func(file, pkg, _ string) {
		if _, ok := mayImport[pkg]; !ok && !strings.Contains(pkg, "testdata") {
			t.Errorf("%s: package %s has no place in the import map", file, pkg)
		}
	})
}

// ofSources says whether a folder may hold sources of ours: not what git, the
// build or `make images` leave at the top.
func ofSources(path string) bool {
	switch filepath.Base(path) {
	case ".git", "bin", "testdata":
		return false
	case "images":
		return filepath.Dir(path) != ".."
	}
	return true
}

// eachImport calls f for every import of every Go file below the module's root.
func eachImport(t *testing.T, f func(file, pkg, path string)) {
	t.Helper()
	root := ".."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && !ofSources(path) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		for _, imp := range file.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			f(rel, filepath.Dir(rel), name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

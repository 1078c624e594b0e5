package registrytest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

var errDigest = errors.New("content does not match the digest")

// A manifest is what a tag or a digest of a repository names.
type manifest struct {
	mediaType string
	bytes     []byte
}

// A repo holds manifests, and knows which of the registry's blobs are its own.
type repo struct {
	blobs     map[digest.Digest]bool
	manifests map[digest.Digest]manifest
	tags      map[string]digest.Digest
}

// data is what the registry keeps. Blobs are kept once however many
// repositories have them, which is what a cross-repository mount stands on.
type data struct {
	dir string // of the blobs; "" keeps them in blobs

	mu      sync.Mutex // protects what follows
	blobs   map[digest.Digest][]byte
	repos   map[string]*repo
	uploads map[string]*upload
	last    int // upload number
}

func newData(dir string) *data {
	return &data{dir: dir, blobs: map[digest.Digest][]byte{}, repos: map[string]*repo{}, uploads: map[string]*upload{}}
}

func (d *data) blobFile(dg digest.Digest) string {
	return filepath.Join(d.dir, "blobs", dg.Algorithm().String(), dg.Encoded())
}

// repoLocked makes the repository when it is not there yet.
func (d *data) repoLocked(name string) *repo {
	r := d.repos[name]
	if r == nil {
		r = &repo{blobs: map[digest.Digest]bool{}, manifests: map[digest.Digest]manifest{}, tags: map[string]digest.Digest{}}
		d.repos[name] = r
	}
	return r
}

func (d *data) hasBlob(name string, dg digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.repos[name]
	return r != nil && r.blobs[dg]
}

// mount gives a blob of one repository to another, when it is there.
func (d *data) mount(name, from string, dg digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.repos[from]
	if r == nil || !r.blobs[dg] {
		return false
	}
	d.repoLocked(name).blobs[dg] = true
	return true
}

// A blob is content that can be served in ranges.
type blob interface {
	io.ReadSeeker
	io.Closer
}

type memBlob struct{ *bytes.Reader }

func (memBlob) Close() error { return nil }

// openBlob gives a blob of the repository, or fs.ErrNotExist.
func (d *data) openBlob(name string, dg digest.Digest) (blob, error) {
	if !d.hasBlob(name, dg) {
		return nil, fs.ErrNotExist
	}
	if d.dir != "" {
		return os.Open(d.blobFile(dg))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return memBlob{bytes.NewReader(d.blobs[dg])}, nil
}

func (d *data) removeBlob(name string, dg digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.repos[name]
	if r == nil || !r.blobs[dg] {
		return false
	}
	delete(r.blobs, dg)
	return true
}

// keep makes the content of an upload a blob of the repository, if it is what
// the digest says.
func (d *data) keep(name string, u *upload, dg digest.Digest) error {
	if got := u.digest(dg.Algorithm()); got != dg {
		return fmt.Errorf("%w: %s, not %s", errDigest, got, dg)
	}
	if err := u.publish(d, dg); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.repoLocked(name).blobs[dg] = true
	return nil
}

// putManifest stores a manifest under its digest and, unless ref is one, a tag.
func (d *data) putManifest(name, ref string, m manifest) digest.Digest {
	dg := digest.FromBytes(m.bytes)
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.repoLocked(name)
	if given, err := digest.Parse(ref); err == nil {
		dg = given
	} else {
		r.tags[ref] = dg
	}
	r.manifests[dg] = m
	return dg
}

// manifest finds a manifest by tag or digest.
func (d *data) manifest(name, ref string) (m manifest, dg digest.Digest, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.repos[name]
	if r == nil {
		return manifest{}, "", false
	}
	dg = digest.Digest(ref)
	if tagged, ok := r.tags[ref]; ok {
		dg = tagged
	}
	m, ok = r.manifests[dg]
	return m, dg, ok
}

// removeManifest takes a tag away, or a manifest and all of its tags.
func (d *data) removeManifest(name, ref string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.repos[name]
	if r == nil {
		return false
	}
	if _, ok := r.tags[ref]; ok {
		delete(r.tags, ref)
		return true
	}
	dg := digest.Digest(ref)
	if _, ok := r.manifests[dg]; !ok {
		return false
	}
	delete(r.manifests, dg)
	maps.DeleteFunc(r.tags, func(_ string, to digest.Digest) bool { return to == dg })
	return true
}

// tags lists the tags of a repository, sorted; false when there is none such.
func (d *data) tags(name string) ([]string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.repos[name]
	if r == nil {
		return nil, false
	}
	return slices.Sorted(maps.Keys(r.tags)), true
}

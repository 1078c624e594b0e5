package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/registry/storage"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// isDir tells whether layer i of the manifest is a directory on disk.
func (im *image) isDir(i int) bool { return im.Unpacked != nil && im.Unpacked.Layers[i].Dir != "" }

// openUnpacked opens layer i of the manifest, which is a directory.
func (im *image) openUnpacked(ctx context.Context, e *env, i int) (*layer.Layer, error) {
	info, store := im.Unpacked.Layers[i], im.Unpacked.Store
	o := layer.DirOptions{Digest: im.Manifest.Layers[i].Digest, DotWh: store == nil || store.DotWh, TrustedOnly: store != nil && !store.Rootless, Limits: e.limits.Limits}
	if info.TarSplit != "" && (store.Rootless || !readsTrusted()) {
		var err error
		if o.Opaque, err = im.opaqueDirs(info); err != nil {
			return nil, err
		}
	}
	var err error
	if o.Below, err = im.dirsBelow(i); err != nil {
		return nil, err
	}
	dir, err := im.Unpacked.OpenDir(i)
	if err != nil {
		return nil, err
	}
	l, err := layer.OpenDir(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	noted := e.note("directory", map[string]any{"layer": l.Digest(), "directory": info.Dir, "metadata": l.Identity()})
	return l, noted
}

// opaqueDirs are the opaque directories of a layer by its tar-split.
func (im *image) opaqueDirs(info storage.Layer) (map[string]bool, error) {
	split, f, err := im.Unpacked.Store.OpenTarSplit(info)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return layer.OpaqueDirs(split)
}

// dirsBelow opens the directories below a layer that overlayfs may have written itself, for
// content that only they have. Those of images were unpacked, never mounted for writing.
func (im *image) dirsBelow(i int) (below []*os.File, err error) {
	if im.Unpacked.Store != nil && im.Unpacked.Layers[i].Role == "" {
		return nil, nil
	}
	for j := i - 1; j >= 0; j-- {
		if !im.isDir(j) {
			continue
		}
		f, err := im.Unpacked.OpenDir(j)
		if err != nil {
			return nil, err
		}
		im.files.add(f)
		below = append(below, f)
	}
	return below, nil
}

// openFiles are files that are closed together.
type openFiles struct {
	mu   sync.Mutex
	list []*os.File // protected by mu
}

func (o *openFiles) add(f *os.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, f)
}

// Close closes them; a second call does nothing.
func (o *openFiles) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, f := range o.list {
		errs = append(errs, f.Close())
	}
	o.list = nil
	return errors.Join(errs...)
}

// readsTrusted tells whether this process can read trusted.* attributes: CAP_SYS_ADMIN in
// the first user namespace is what the kernel asks for (fs/xattr.c, xattr_permission); without
// it they look as if they were not there.
func readsTrusted() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295" {
		return false
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// unpackedWarnings are what an examiner has to know about layers on disk.
func (im *image) unpackedWarnings(want span) (list []string) {
	if im.Unpacked == nil {
		return nil
	}
	var blind []string
	seen := slices.ContainsFunc(im.layers, (*layer.Layer).HasMarks)
	for i := want.from - 1; i < want.to; i++ {
		l := im.layers[i-want.from+1]
		for _, d := range l.Defects() {
			list = append(list, fmt.Sprintf("layer %d: /%s: %s", i+1, d.Path, d.Reason))
		}
		if i > 0 && im.isDir(i) && im.Unpacked.Layers[i].TarSplit == "" && im.Unpacked.Layers[i].Role != "init" && !seen {
			blind = append(blind, fmt.Sprint(i+1))
		}
	}
	if len(blind) > 0 && !readsTrusted() {
		list = append(list, fmt.Sprintf("WITHOUT CAP_SYS_ADMIN the marks of opaque directories (trusted.overlay.*) cannot be read: layer %s may show files that it hides; run this as root",
			strings.Join(blind, ", ")))
	}
	return list
}

// warn says on stderr what has to be known about an image; --quiet does not silence it.
func (e *env) warn(im *image) {
	for _, w := range im.warnings {
		fmt.Fprintf(e.stderr, "layerfs: warning: %s: %s\n", safe(im.Ref), safe(w))
	}
}

// verifyUnpacked holds a layer on disk against what its store kept of its tar: the tar-split
// and the diff ID, or the blob that it was unpacked of. unchecked says why it cannot.
func (e *env) verifyUnpacked(ctx context.Context, im *image, i int) (faults []string, unchecked string, err error) {
	info := im.Unpacked.Layers[i]
	if info.TarSplit == "" && info.Blob == "" {
		return nil, "the store keeps nothing to check it against", nil
	}
	dir, err := im.openUnpacked(ctx, e, i)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for _, d := range dir.Defects() {
		faults = append(faults, "/"+d.Path+": "+d.Reason)
	}
	var list []forensic.Difference
	if info.TarSplit != "" {
		list, err = e.compareSplit(ctx, im, info, dir)
	} else {
		list, err = e.compareBlob(ctx, im, info, dir)
	}
	if errors.Is(err, layer.ErrDigest) || errors.Is(err, layer.ErrFormat) {
		return append(faults, err.Error()), "", nil
	}
	for _, d := range list {
		faults = append(faults, d.Path+": "+d.What)
	}
	return faults, "", err
}

// compareSplit makes the layer's tar again.
func (e *env) compareSplit(ctx context.Context, im *image, info storage.Layer, dir *layer.Layer) ([]forensic.Difference, error) {
	split, f, err := im.Unpacked.Store.OpenTarSplit(info)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tar, faults, err := dir.FromSplit(ctx, split, info.DiffID, e.limits.Limits)
	if err != nil {
		return nil, err
	}
	var list []forensic.Difference
	for _, d := range faults {
		list = append(list, forensic.Difference{Path: "/" + d.Path, What: d.Reason})
	}
	more, err := forensic.CompareEntries(ctx, dir, tar, forensic.EntryOptions{Owners: !im.Unpacked.Store.Rootless})
	return append(list, more...), err
}

// compareBlob reads the blob that the layer was unpacked of.
func (e *env) compareBlob(ctx context.Context, im *image, info storage.Layer, dir *layer.Layer) (list []forensic.Difference, err error) {
	d := ocispec.Descriptor{Digest: info.Blob, MediaType: info.BlobType, Size: info.BlobSize}
	err = e.withScratch(func(store *cache.Store) error {
		tar, err := layer.Open(ctx, d, im.Blob(d), store, layer.Options{Limits: e.limits.Limits, DiffID: info.DiffID, Logger: e.log, Whole: true})
		if err != nil {
			return err
		}
		list, err = forensic.CompareUnpacked(ctx, dir, tar, forensic.EntryOptions{Owners: !im.Unpacked.Store.Rootless})
		return errors.Join(err, tar.Close())
	})
	return list, err
}

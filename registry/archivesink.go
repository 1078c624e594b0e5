package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An archiveSink writes an image as one tar, which takes the place of FILE when
// it is complete. It is an OCI image layout; a docker archive has a
// manifest.json more, as "docker save" writes it since version 25.
type archiveSink struct {
	ref   Ref
	f     *tempFile
	off   int64 // where the next file goes
	mtime time.Time
	have  map[digest.Digest]bool
}

func newArchiveSink(r Ref, now time.Time) (sink, error) {
	if r.Transport == transportDockerArchive && r.Tag != "" {
		if _, err := parseName(r.Tag); err != nil {
			return nil, err
		}
	}
	f, err := newTempFile(filepath.Dir(r.Path))
	if err != nil {
		return nil, err
	}
	s := &archiveSink{ref: r, f: f, mtime: now, have: map[digest.Digest]bool{}}
	return s, s.file(ocispec.ImageLayoutFile, []byte(layoutVersion))
}

func (s *archiveSink) close() { s.f.discard() }

// parallel: a tar has one end to write at.
func (s *archiveSink) parallel() int { return 1 }

const tarBlock = 512

// header returns the one block before a file. GNU's format holds any size in it.
func (s *archiveSink) header(name string, size int64) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: s.mtime.Truncate(time.Second), Format: tar.FormatGNU})
	if err == nil && b.Len() != tarBlock {
		err = errors.New("archive: header of more than a block")
	}
	return b.Bytes(), err
}

func (s *archiveSink) append(b []byte) error {
	n, err := s.f.WriteAt(b, s.off)
	s.off += int64(n)
	return err
}

func (s *archiveSink) file(name string, b []byte) error {
	h, err := s.header(name, int64(len(b)))
	if err != nil {
		return err
	}
	b = append(h, b...)
	return s.append(append(b, make([]byte, padding(int64(len(b))))...))
}

func padding(n int64) int64 { return -n & (tarBlock - 1) }

// A tail appends to the archive.
type tail struct{ s *archiveSink }

func (t tail) Write(b []byte) (int, error) { return len(b), t.s.append(b) }

// create leaves room for the header, which it writes when the name and the size
// are known. What failed or is there twice is written over by the next file.
func (s *archiveSink) create(ctx context.Context, _ bool, write blobWriter) (ocispec.Descriptor, error) {
	start := s.off
	s.off += tarBlock
	d, err := write(ctx, tail{s})
	if err == nil {
		err = d.Digest.Validate()
	}
	if err != nil || s.have[d.Digest] {
		s.off = start
		return d, err
	}
	size := s.off - start - tarBlock
	h, err := s.header(blobPath(d.Digest), size)
	if err != nil {
		return d, err
	}
	if _, err := s.f.WriteAt(h, start); err != nil {
		return d, err
	}
	s.have[d.Digest] = true
	return d, s.append(make([]byte, padding(size)))
}

// copy takes foreign layers too where the archive is docker's: it must be
// whole to be loaded.
func (s *archiveSink) copy(ctx context.Context, base *Image, d ocispec.Descriptor, progress func(Progress)) error {
	if IsForeign(d.MediaType) && s.ref.Transport != transportDockerArchive {
		progress(Progress{Blob: d.Digest, State: "skipped", Total: d.Size})
		return nil
	}
	_, err := s.create(ctx, true, func(ctx context.Context, w io.Writer) (ocispec.Descriptor, error) {
		return d, copyBlob(ctx, w, base, d, progress)
	})
	return err
}

func (s *archiveSink) put(ctx context.Context, d ocispec.Descriptor, b []byte) error {
	_, err := s.create(ctx, true, func(_ context.Context, w io.Writer) (ocispec.Descriptor, error) {
		_, err := w.Write(b)
		return d, err
	})
	return err
}

func (s *archiveSink) manifest(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	return s.put(ctx, d, raw)
}

// commit writes what names the image, and moves the archive to its place.
func (s *archiveSink) commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	err := s.put(ctx, d, raw)
	if err == nil {
		err = s.names(d, raw)
	}
	if err == nil {
		err = s.append(make([]byte, 2*tarBlock))
	}
	if err == nil { // what a failed or doubled file left behind
		err = s.f.Truncate(s.off)
	}
	if err != nil {
		return err
	}
	return s.f.publish(s.ref.Path)
}

func (s *archiveSink) names(d ocispec.Descriptor, raw []byte) error {
	index, err := indexWith(nil, d, s.ref.Tag)
	if err != nil {
		return err
	}
	if err := s.file(ocispec.ImageIndexFile, index); err != nil || s.ref.Transport != transportDockerArchive {
		return err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	img := archivedImage{Config: blobPath(m.Config.Digest), RepoTags: []string{}}
	if s.ref.Tag != "" {
		img.RepoTags = append(img.RepoTags, shortName(s.ref.Tag))
	}
	for _, l := range m.Layers {
		img.Layers = append(img.Layers, blobPath(l.Digest))
	}
	b, err := marshal([]archivedImage{img})
	if err != nil {
		return err
	}
	return s.file("manifest.json", b)
}

// shortName adds the tag that docker wants to see, and no registry.
func shortName(name string) string {
	if r, err := parseName(name); err == nil && r.Tag == "latest" && !strings.HasSuffix(name, ":latest") {
		return name + ":latest"
	}
	return name
}

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A foundIndex is the index in which an image was found; of indexes in each other the innermost.
type foundIndex struct {
	desc   ocispec.Descriptor
	raw    []byte
	chosen ocispec.Descriptor // the entry that names the image
}

// IndexName is Name of the index in which the image was found, and "" if it was found without one.
func (im *Image) IndexName() string {
	if im.index == nil {
		return ""
	}
	return im.ref.canonical(im.index.desc.Digest)
}

// sideSubjects are the annotations by which an entry of an index says which other one it is about.
var sideSubjects = []string{"vnd.docker.reference.digest", "com.amazon.soci.image-manifest-digest"}

// replaced is the index with d in the place of the chosen entry. What was about that (its
// attestation, its SOCI index) is left out: it says nothing of d. All other entries stay byte by byte.
func (x *foundIndex) replaced(d ocispec.Descriptor, created string) (raw []byte, mediaType string, err error) {
	o, err := parseRaw(x.raw)
	if err != nil {
		return nil, "", faultf(ErrIntegrity, "index of the base image: %w", err)
	}
	list, err := o.list("manifests")
	if err != nil {
		return nil, "", faultf(ErrIntegrity, "index of the base image: %w", err)
	}
	var keep []json.RawMessage
	done := false
	for _, entry := range list {
		var have ocispec.Descriptor
		if err := json.Unmarshal(entry, &have); err != nil {
			return nil, "", faultf(ErrIntegrity, "index of the base image: %w", err)
		}
		switch {
		case !done && have.Digest == x.chosen.Digest && reflect.DeepEqual(have.Platform, x.chosen.Platform):
			if entry, err = newEntry(entry, d, have.Annotations, created); err != nil {
				return nil, "", err
			}
			done = true
		case x.about(have):
			continue
		}
		keep = append(keep, entry)
	}
	o.setRaw("manifests", rawList(keep))
	o.remove("subject")
	mediaType = x.desc.MediaType
	if mediaType == dockerIndex && d.MediaType != dockerManifest {
		mediaType = ocispec.MediaTypeImageIndex
	}
	err = o.set("mediaType", mediaType)
	return o.bytes(), mediaType, err
}

// about tells whether an entry is beside the chosen one, which no other entry is the same as.
func (x *foundIndex) about(have ocispec.Descriptor) bool {
	for _, key := range sideSubjects {
		if have.Annotations[key] == x.chosen.Digest.String() {
			return true
		}
	}
	return false
}

// newEntry is an entry of an index that means another manifest now: the platform stays, and what is still true.
func newEntry(entry json.RawMessage, d ocispec.Descriptor, annotations map[string]string, created string) (json.RawMessage, error) {
	o, err := parseRaw(entry)
	if err != nil {
		return nil, faultf(ErrIntegrity, "index of the base image: %w", err)
	}
	if err := errors.Join(o.set("mediaType", d.MediaType), o.set("digest", d.Digest), o.set("size", d.Size)); err != nil {
		return nil, err
	}
	o.remove("data")
	o.remove("urls")
	maps.DeleteFunc(annotations, func(k, _ string) bool {
		return k == annotationBaseName || k == annotationBaseDigest || strings.HasPrefix(k, sociAnnotations)
	})
	if annotations[ocispec.AnnotationCreated] != "" {
		annotations[ocispec.AnnotationCreated] = created
	}
	if o.remove("annotations"); len(annotations) > 0 {
		err = o.set("annotations", annotations)
	}
	return o.bytes(), err
}

// copyOthers brings the other images of the base's index to the sink.
func (p *pushing) copyOthers(ctx context.Context, dest Ref) error {
	from := p.from.ref
	if from.Transport == dest.Transport && from.Host == dest.Host && from.Repo == dest.Repo && from.Path == dest.Path && from.Transport != transportOCIArchive {
		return nil // where they are
	}
	var index ocispec.Index
	if err := json.Unmarshal(p.from.index.raw, &index); err != nil {
		return faultf(ErrIntegrity, "index of the base image: %w", err)
	}
	c := &copying{mover: mover{base: p.from, sink: p.sink, report: p.report}}
	seen := map[digest.Digest]bool{p.from.index.chosen.Digest: true}
	for _, e := range index.Manifests {
		if seen[e.Digest] || p.from.index.about(e) {
			continue
		}
		seen[e.Digest] = true
		raw, err := fetchManifest(ctx, p.from.src, e)
		if err == nil {
			_, err = c.collect(ctx, e, raw, 1)
		}
		if err != nil {
			return err
		}
	}
	return c.send(ctx)
}

// commitIndex stores the new manifest, and moves the name to the index that has it.
func (p *pushing) commitIndex(ctx context.Context, d ocispec.Descriptor, raw []byte, created string) (ocispec.Descriptor, error) {
	if err := p.copyOthers(ctx, p.dest); err != nil {
		return d, err
	}
	if err := p.sink.manifest(ctx, d, raw); err != nil {
		return d, err
	}
	raw, mediaType, err := p.from.index.replaced(d, created)
	if err != nil {
		return d, err
	}
	top := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return top, p.sink.commit(ctx, top, raw)
}

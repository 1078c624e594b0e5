package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A referring source can list the manifests whose subject is another one.
type referring interface {
	// referrers returns those with an artifact type. A registry's word for the subject
	// and the type is taken.
	referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error)
}

// maxReferrerPages bounds the pages of one list: a registry with more than that
// attached to one image is out of order.
const maxReferrerPages = 50

// fallbackTag is where the referrers are listed by those who attach them, in registries that have
// no list of their own (distribution-spec, "Referrers Tag Schema").
func fallbackTag(d digest.Digest) string {
	hex := d.Encoded()
	return d.Algorithm().String() + "-" + hex[:min(len(hex), 64)]
}

func (s *remote) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if err := s.cl.connect(ctx); err != nil {
		return nil, err
	}
	u := s.cl.endpoint(s.ref.Repo+"/referrers/"+subject.String(), url.Values{"artifactType": {artifactType}})
	var list []ocispec.Descriptor
	for range maxReferrerPages {
		part, next, err := s.referrerPage(ctx, u)
		if errors.Is(err, errNoReferrers) {
			part, err = s.taggedReferrers(ctx, subject)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, ofType(part, artifactType)...)
		if next == nil {
			break
		}
		u = next
	}
	return list, nil
}

// ofType is also needed where the registry was asked to filter: it need not.
func ofType(list []ocispec.Descriptor, artifactType string) (of []ocispec.Descriptor) {
	for _, d := range list {
		if d.ArtifactType == artifactType {
			of = append(of, d)
		}
	}
	return of
}

// errNoReferrers says that a registry has no list of referrers.
var errNoReferrers = errors.New("no referrers API")

// referrerPage reads one page of the list, and where the next one is; nil after the last.
func (s *remote) referrerPage(ctx context.Context, u *url.URL) (list []ocispec.Descriptor, next *url.URL, err error) {
	err = s.cl.backoff.retry(ctx, s.cl.log, func() error {
		body, loc, err := s.open(ctx, u, http.Header{"Accept": {ocispec.MediaTypeImageIndex}}, new(counter))
		if err != nil {
			return noReferrers(err)
		}
		defer func() { _ = body.Close() }()
		if list, err = readReferrers(body, body.resp.Header); err != nil {
			return err
		}
		next, err = nextPage(loc, body.resp.Header.Get("Link"))
		return err
	})
	return list, next, err
}

// noReferrers tells answers that mean "what is that?" from others.
func noReferrers(err error) error {
	var f *fault
	if !errors.As(err, &f) {
		return err
	}
	switch f.status {
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return &permanent{errNoReferrers}
	}
	return err
}

// readReferrers takes an answer of another type than an index, such as the page of a
// login (Google's registry gives one), for no answer.
func readReferrers(r io.Reader, h http.Header) ([]ocispec.Descriptor, error) {
	if t, _, _ := strings.Cut(h.Get("Content-Type"), ";"); !isIndex(strings.TrimSpace(t)) {
		return nil, &permanent{errNoReferrers}
	}
	b, err := readAll(r, maxManifest)
	if err != nil {
		return nil, err
	}
	return parseReferrers(b)
}

func parseReferrers(b []byte) ([]ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, faultf(ErrIntegrity, "list of referrers: %w", err)
	}
	return index.Manifests, nil
}

// nextPage returns the address in a Link header (RFC 8288) with the relation "next". It must be on
// the host that the page came from.
func nextPage(at *url.URL, link string) (*url.URL, error) {
	target, params, ok := strings.Cut(link, ">")
	if !ok || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
		return nil, nil
	}
	next, err := at.Parse(strings.TrimPrefix(strings.TrimSpace(target), "<"))
	if err != nil || next.Host != at.Host || next.Scheme != at.Scheme {
		return nil, faultf(ErrUnreachable, "%s: a list of referrers goes on at a malformed address", at.Host)
	}
	return next, nil
}

// taggedReferrers reads the list under the fallback tag; none if there is no such tag.
func (s *remote) taggedReferrers(ctx context.Context, subject digest.Digest) ([]ocispec.Descriptor, error) {
	raw, err := s.taggedIndex(ctx, subject)
	if raw == nil || err != nil {
		return nil, err
	}
	return parseReferrers(raw)
}

// taggedIndex is the index under the fallback tag; nil if there is no such tag. Something else
// under it, an image that somebody gave that tag, is an error: no list, and not ours to replace.
func (s *remote) taggedIndex(ctx context.Context, subject digest.Digest) ([]byte, error) {
	at := *s
	at.ref.Tag, at.ref.Digest = fallbackTag(subject), ""
	d, raw, err := at.resolve(ctx)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if kind, err := manifestKind(d.MediaType, raw); err != nil || !isIndex(kind) {
		return nil, faultf(ErrUnsupported, "the tag %s of %s/%s should hold a list of referrers, and holds something else", at.ref.Tag, s.ref.Host, s.ref.Repo).
			withHint("remove the tag, or give it another name")
	}
	return raw, nil
}

func (s *recorded) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if s.inner == nil {
		return nil, errOffline()
	}
	return s.inner.(referring).referrers(ctx, subject, artifactType)
}

// referrers of a layout stand in index.json, or in an index there that has the fallback tag.
func (l *layout) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	b, err := readFile(l.files, ocispec.ImageIndexFile, maxManifest)
	if err != nil {
		return nil, err
	}
	list, err := parseReferrers(b)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if d.Annotations[ocispec.AnnotationRefName] != fallbackTag(subject) {
			continue
		}
		b, err := fetchManifest(ctx, l, d)
		if err != nil {
			return nil, err
		}
		tagged, err := parseReferrers(b)
		if err != nil {
			return nil, err
		}
		return ofType(append(tagged, list...), artifactType), nil
	}
	return ofType(list, artifactType), nil
}

// attach stores a manifest that has a subject, and enters it into the list of the
// subject's referrers where the registry does not do so itself.
func (s *remoteSink) attach(ctx context.Context, d ocispec.Descriptor, raw []byte, subject digest.Digest) error {
	listed, err := s.putManifest(ctx, d.Digest.String(), d, raw)
	if err != nil || listed {
		return err
	}
	return s.tagReferrer(ctx, d, subject)
}

// tagAttempts is how often a list is written again that somebody else wrote at the same
// time: the protocol has no lock.
const tagAttempts = 3

// tagReferrer adds d to the list under the fallback tag.
func (s *remoteSink) tagReferrer(ctx context.Context, d ocispec.Descriptor, subject digest.Digest) error {
	reader := &remote{ref: s.ref, cl: s.cl, scope: s.scope}
	for try := 0; ; try++ {
		raw, err := reader.taggedIndex(ctx, subject)
		if err != nil {
			return err
		}
		raw, listed, err := withReferrer(raw, d)
		if listed || err != nil {
			return err
		}
		if try == tagAttempts {
			break
		}
		index := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		if _, err := s.putManifest(ctx, fallbackTag(subject), index, raw); err != nil {
			return err
		}
	}
	return faultf(ErrUnreachable, "%s: the tag %s does not keep what is written to it", s.cl.host, fallbackTag(subject)).
		withHint("somebody else may be writing to it; try again")
}

// withReferrer is a list of referrers (nil: none so far) with one more; listed tells that it has it
// already. What it says of others, and of itself, stays byte by byte.
func withReferrer(index []byte, d ocispec.Descriptor) (_ []byte, listed bool, err error) {
	if index == nil {
		index, err = marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}})
		if err != nil {
			return nil, false, err
		}
	}
	have, err := parseReferrers(index)
	if err != nil {
		return nil, false, err
	}
	if slices.ContainsFunc(have, func(h ocispec.Descriptor) bool { return h.Digest == d.Digest }) {
		return nil, true, nil
	}
	o, err := parseRaw(index)
	if err != nil {
		return nil, false, faultf(ErrIntegrity, "list of referrers: %w", err)
	}
	list, err := o.list("manifests")
	if err != nil {
		return nil, false, faultf(ErrIntegrity, "list of referrers: %w", err)
	}
	entry, err := marshal(d)
	if err != nil {
		return nil, false, err
	}
	o.setRaw("manifests", rawList(append(list, entry)))
	err = o.set("mediaType", ocispec.MediaTypeImageIndex)
	return o.bytes(), false, err
}

package registrytest

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// referrersPage is how many a registry lists at a time: few, so that clients must
// follow the link to the next page.
const referrersPage = 2

// describe reads of a manifest what a list of referrers needs. What is no JSON has nothing.
func describe(b []byte) (m ocispec.Manifest) {
	_ = json.Unmarshal(b, &m)
	return m
}

// referrers are the manifests of the repository whose subject is to, sorted by digest.
func (d *data) referrers(name string, to digest.Digest) []ocispec.Descriptor {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := []ocispec.Descriptor{}
	r := d.repos[name]
	if r == nil {
		return list
	}
	for dg, m := range r.manifests {
		v := describe(m.bytes)
		if v.Subject == nil || v.Subject.Digest != to {
			continue
		}
		list = append(list, ocispec.Descriptor{MediaType: m.mediaType, Digest: dg, Size: int64(len(m.bytes)),
			ArtifactType: orElse(v.ArtifactType, v.Config.MediaType), Annotations: v.Annotations})
	}
	slices.SortFunc(list, func(a, b ocispec.Descriptor) int { return cmp.Compare(a.Digest, b.Digest) })
	return list
}

// serveReferrers is distribution-spec, "Listing Referrers", in pages.
func (d *data) serveReferrers(w http.ResponseWriter, r *http.Request, t target) *refusal {
	dg, err := digest.Parse(t.ref)
	if err != nil {
		return digestInvalid
	}
	if r.Method != http.MethodGet {
		return unsupported
	}
	list, q := d.referrers(t.repo, dg), r.URL.Query()
	if want := q.Get("artifactType"); want != "" {
		list = slices.DeleteFunc(list, func(d ocispec.Descriptor) bool { return d.ArtifactType != want })
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	from, _ := strconv.Atoi(q.Get("from")) // 0 when it is not there
	from = max(0, min(from, len(list)))
	to := min(from+referrersPage, len(list))
	if to < len(list) {
		q.Set("from", strconv.Itoa(to))
		w.Header().Set("Link", "<"+r.URL.Path+"?"+q.Encode()+`>; rel="next"`)
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	_, _ = w.Write(mustJSON(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list[from:to]})) // the client may have left
	return nil
}

package registrytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest is what distribution-spec says a registry must take at least.
const maxManifest = 4 << 20

// A refusal is an error of the protocol (distribution-spec, "Error Codes").
type refusal struct {
	status  int
	code    string
	message string
}

var (
	nameUnknown     = &refusal{http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry"}
	blobUnknown     = &refusal{http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry"}
	manifestUnknown = &refusal{http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown"}
	uploadUnknown   = &refusal{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry"}
	digestInvalid   = &refusal{http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content"}
	rangeInvalid    = &refusal{http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID", "chunk out of order"}
	unsupported     = &refusal{http.StatusMethodNotAllowed, "UNSUPPORTED", "the operation is unsupported"}
)

func (e *refusal) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	body := map[string]any{"errors": []any{map[string]any{"code": e.code, "message": e.message, "detail": nil}}}
	_ = json.NewEncoder(w).Encode(body) // the client may have left
}

func internal(err error) *refusal {
	return &refusal{http.StatusInternalServerError, "UNKNOWN", err.Error()}
}

// A target is what a path of the protocol names.
type target struct {
	repo string
	kind string // "blobs", "uploads", "manifests", "referrers", "tags"
	ref  string // digest, upload id, tag; "" begins an upload
}

// parsePath takes /v2/NAME/KIND/REF apart from the end, because NAME may have
// slashes, and words like "blobs" in it.
func parsePath(path string) (target, bool) {
	p, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return target{}, false
	}
	if name, ok := strings.CutSuffix(p, "/tags/list"); ok {
		return target{name, "tags", ""}, name != ""
	}
	p, ref := cutLast(p)
	name, kind := cutLast(p)
	if kind == "uploads" && strings.HasSuffix(name, "/blobs") {
		name = strings.TrimSuffix(name, "/blobs")
		return target{name, kind, ref}, name != ""
	}
	if ref == "uploads" && kind == "blobs" { // POST without the last slash
		return target{name, ref, ""}, name != ""
	}
	return target{name, kind, ref}, name != "" && ref != "" && (kind == "blobs" || kind == "manifests" || kind == "referrers")
}

func cutLast(p string) (before, last string) {
	i := strings.LastIndexByte(p, '/')
	return p[:max(i, 0)], p[i+1:]
}

// handler serves the protocol.
func (d *data) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
			w.WriteHeader(http.StatusOK)
			return
		}
		t, ok := parsePath(r.URL.Path)
		if !ok {
			http.NotFound(w, r)
			return
		}
		if e := d.serve(w, r, t); e != nil {
			e.ServeHTTP(w, r)
		}
	})
}

func (d *data) serve(w http.ResponseWriter, r *http.Request, t target) *refusal {
	switch t.kind {
	case "blobs":
		return d.serveBlob(w, r, t)
	case "uploads":
		return d.serveUpload(w, r, t)
	case "manifests":
		return d.serveManifest(w, r, t)
	case "referrers":
		return d.serveReferrers(w, r, t)
	}
	return d.serveTags(w, r, t)
}

func (d *data) serveBlob(w http.ResponseWriter, r *http.Request, t target) *refusal {
	dg, err := digest.Parse(t.ref)
	if err != nil {
		return digestInvalid
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		b, err := d.openBlob(t.repo, dg)
		if err != nil {
			return blobUnknown
		}
		defer b.Close()
		h := w.Header()
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Docker-Content-Digest", dg.String())
		h.Set("Etag", `"`+dg.String()+`"`)
		http.ServeContent(w, r, "", time.Time{}, b) // ranges, and their errors
		return nil
	case http.MethodDelete:
		if !d.removeBlob(t.repo, dg) {
			return blobUnknown
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return unsupported
}

func (d *data) serveTags(w http.ResponseWriter, r *http.Request, t target) *refusal {
	if r.Method != http.MethodGet {
		return unsupported
	}
	tags, ok := d.tags(t.repo)
	if !ok {
		return nameUnknown
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"name": t.repo, "tags": tags}) // the client may have left
	return nil
}

func (d *data) serveManifest(w http.ResponseWriter, r *http.Request, t target) *refusal {
	switch r.Method {
	case http.MethodPut:
		return d.receiveManifest(w, r, t)
	case http.MethodDelete:
		if !d.removeManifest(t.repo, t.ref) {
			return manifestUnknown
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	case http.MethodGet, http.MethodHead:
		m, dg, ok := d.manifest(t.repo, t.ref)
		if !ok {
			return manifestUnknown
		}
		h := w.Header()
		h.Set("Content-Type", m.mediaType)
		h.Set("Content-Length", fmt.Sprint(len(m.bytes)))
		h.Set("Docker-Content-Digest", dg.String())
		if r.Method == http.MethodGet {
			_, _ = w.Write(m.bytes) // the client may have left
		}
		return nil
	}
	return unsupported
}

func (d *data) receiveManifest(w http.ResponseWriter, r *http.Request, t target) *refusal {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if tooBig := new(http.MaxBytesError); errors.As(err, &tooBig) {
		return &refusal{http.StatusRequestEntityTooLarge, "SIZE_INVALID", err.Error()}
	}
	if err != nil {
		return internal(err)
	}
	if dg, err := digest.Parse(t.ref); err == nil && dg != dg.Algorithm().FromBytes(b) {
		return digestInvalid
	}
	if e := d.checkManifest(t.repo, b); e != nil {
		return e
	}
	dg := d.putManifest(t.repo, t.ref, manifest{r.Header.Get("Content-Type"), b})
	if subject := describe(b).Subject; subject != nil {
		w.Header().Set("OCI-Subject", subject.Digest.String())
	}
	w.Header().Set("Docker-Content-Digest", dg.String())
	w.Header().Set("Location", "/v2/"+t.repo+"/manifests/"+dg.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// checkManifest refuses a manifest that names what the repository has not: what
// distribution, Docker Hub and most others do.
func (d *data) checkManifest(repo string, b []byte) *refusal {
	var m struct {
		ocispec.Manifest
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return &refusal{http.StatusBadRequest, "MANIFEST_INVALID", err.Error()}
	}
	for _, l := range m.Layers {
		if len(l.URLs) == 0 && !d.hasBlob(repo, l.Digest) {
			return &refusal{http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry: " + l.Digest.String()}
		}
	}
	if c := m.Config.Digest; c != "" && !d.hasBlob(repo, c) {
		return &refusal{http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "config unknown to registry: " + c.String()}
	}
	for _, c := range m.Manifests {
		if _, _, ok := d.manifest(repo, c.Digest.String()); !ok {
			return &refusal{http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "manifest unknown to registry: " + c.Digest.String()}
		}
	}
	return nil
}

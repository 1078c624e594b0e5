package registrytest

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
)

// serveUpload is the protocol of distribution-spec, "Pushing blobs": POST opens
// (or mounts, or takes the whole blob), PATCH appends, PUT ends, GET asks how far
// it got, DELETE gives up.
func (d *data) serveUpload(w http.ResponseWriter, r *http.Request, t target) *refusal {
	if r.Method == http.MethodPost && t.ref == "" {
		return d.openUpload(w, r, t)
	}
	u, ok := d.upload(t.repo, t.ref)
	if !ok {
		return uploadUnknown
	}
	switch r.Method {
	case http.MethodPatch:
		return d.patchUpload(w, r, t, u)
	case http.MethodPut:
		return d.closeUpload(w, r, t, u)
	case http.MethodGet:
		uploadState(w, t, u, http.StatusNoContent)
		return nil
	case http.MethodDelete:
		d.end(t.ref)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return unsupported
}

func (d *data) openUpload(w http.ResponseWriter, r *http.Request, t target) *refusal {
	q := r.URL.Query()
	if dg, err := digest.Parse(q.Get("mount")); err == nil && d.mount(t.repo, q.Get("from"), dg) {
		blobCreated(w, t.repo, dg)
		return nil
	}
	id, u, err := d.begin(t.repo)
	if err != nil {
		return internal(err)
	}
	t.ref = id
	if q.Has("digest") {
		return d.closeUpload(w, r, t, u)
	}
	uploadState(w, t, u, http.StatusAccepted)
	return nil
}

func (d *data) patchUpload(w http.ResponseWriter, r *http.Request, t target, u *upload) *refusal {
	if cr := r.Header.Get("Content-Range"); cr != "" {
		var first, last int64
		if _, err := fmt.Sscanf(strings.TrimPrefix(cr, "bytes "), "%d-%d", &first, &last); err != nil || first != u.length() {
			return rangeInvalid
		}
	}
	if err := u.append(r.Body); err != nil {
		return internal(err)
	}
	uploadState(w, t, u, http.StatusAccepted)
	return nil
}

// closeUpload takes the last bytes and makes a blob of all, or throws all away. A
// body that breaks off is a part of the upload, which goes on.
func (d *data) closeUpload(w http.ResponseWriter, r *http.Request, t target, u *upload) *refusal {
	dg, err := digest.Parse(r.URL.Query().Get("digest"))
	if err == nil {
		if err := u.append(r.Body); err != nil {
			return internal(err)
		}
	}
	defer d.end(t.ref)
	if err != nil {
		return digestInvalid
	}
	switch err := d.keep(t.repo, u, dg); {
	case errors.Is(err, errDigest):
		return digestInvalid
	case err != nil:
		return internal(err)
	}
	blobCreated(w, t.repo, dg)
	return nil
}

// uploadState tells where to go on. Range is inclusive, so that an empty upload
// is "0-0", as distribution has it.
func uploadState(w http.ResponseWriter, t target, u *upload, status int) {
	w.Header().Set("Location", "/v2/"+t.repo+"/blobs/uploads/"+t.ref)
	w.Header().Set("Docker-Upload-UUID", t.ref)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(u.length()-1, 0)))
	w.WriteHeader(status)
}

func blobCreated(w http.ResponseWriter, repo string, dg digest.Digest) {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+dg.String())
	w.Header().Set("Docker-Content-Digest", dg.String())
	w.WriteHeader(http.StatusCreated)
}

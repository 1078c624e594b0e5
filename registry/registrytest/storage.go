package registrytest

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"
)

// RedirectBlobs sends readers of blobs to a second server, as registries before
// an object store do. It has what this handler has, and it answers 400 to a
// request that comes with an Authorization header, as S3 does. It is a Fault, to
// be called by Use alone.
func (s *Server) RedirectBlobs(next http.Handler) http.Handler {
	storage := s.storageOf(next)
	return On(Blobs, redirectTo(storage, func() string { return "X-Amz-Signature=0" }))(next)
}

// SignedBlobs is RedirectBlobs with addresses that are good for so long. After that the
// storage answers 403, as S3 does; to who comes without the Referer of the redirect
// it answers 401, as some content networks do.
func (s *Server) SignedBlobs(life time.Duration) Fault {
	return func(next http.Handler) http.Handler {
		storage := s.storageOf(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			until, err := strconv.ParseInt(r.FormValue("expires"), 10, 64)
			switch {
			case r.Referer() == "":
				http.Error(w, "Referer is missing", http.StatusUnauthorized)
			case err != nil || time.Now().After(time.UnixMicro(until)):
				http.Error(w, "AccessDenied: Request has expired", http.StatusForbidden)
			default:
				next.ServeHTTP(w, r)
			}
		}))
		sign := func() string { return "expires=" + strconv.FormatInt(time.Now().Add(life).UnixMicro(), 10) }
		return On(Blobs, redirectTo(storage, sign))(next)
	}
}

func (s *Server) storageOf(next http.Handler) *httptest.Server {
	storage := s.listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			http.Error(w, "InvalidArgument: only one auth mechanism allowed", http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	}), s.http.TLS != nil, nil)
	s.storage = append(s.storage, storage)
	return storage
}

func redirectTo(storage *httptest.Server, query func() string) Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, storage.URL+r.URL.Path+"?"+query(), http.StatusTemporaryRedirect)
		})
	}
}

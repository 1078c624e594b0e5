package registry

import (
	"context"
	"net/http"
	"sync"
)

// A firstRequest is a transport for the question by which a registry is met ("GET /v2/",
// distribution specification, "Determining Support"). It asks for something of
// use in its place and keeps the answer: a 401 says the same of any path, and so does what
// is no 401.
type firstRequest struct {
	inner  http.RoundTripper
	ctx    context.Context // of the answer, which outlives the question
	path   string
	query  string
	header http.Header

	mu      sync.Mutex
	answers map[string]*http.Response // 200s by scheme: both may be tried; protected by mu
}

func (f *firstRequest) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(f.ctx) // who loses the race between schemes ends with the answer
	out.URL.Path, out.URL.RawQuery, out.Header = f.path, f.query, f.header.Clone()
	out.Header.Set("Accept-Encoding", "identity")
	resp, err := f.inner.RoundTrip(out)
	switch {
	case err != nil:
		return resp, err
	case resp.StatusCode == http.StatusOK:
		f.keep(req.URL.Scheme, resp)
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode/100 == 3:
		discard(resp) // it is asked for again, by who explains it or goes where it points
	default:
		return resp, nil
	}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Proto: resp.Proto, Body: http.NoBody, Header: http.Header{}, Request: req}, nil
}

func (f *firstRequest) keep(scheme string, resp *http.Response) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.answers[scheme]; old != nil {
		_ = old.Body.Close()
	}
	f.answers[scheme] = resp
}

// answer returns the one that came by a scheme, or nil, and drops the others.
func (f *firstRequest) answer(scheme string) *http.Response {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s, resp := range f.answers {
		if s != scheme {
			_ = resp.Body.Close()
		}
	}
	resp := f.answers[scheme]
	f.answers = map[string]*http.Response{}
	return resp
}

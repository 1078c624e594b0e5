package registrytest

import (
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// forward passes everything on to a registry elsewhere. The name that the client used
// stays in the Host header, so that the addresses of uploads lead back here.
func forward(to *url.URL) http.Handler {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true // bodies are counted as they are
	t.MaxIdleConnsPerHost = 64
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		Transport: t,
		ErrorLog:  log.New(io.Discard, "", 0), // clients that leave
	}
}

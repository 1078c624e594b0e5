// Command proxy stands before a registry on loopback and makes it seem far away: one link that all requests share, a round trip before each answer and each connection; and it counts.
//
//	proxy -to HOST:PORT
//
// prints two addresses: that of the registry as it is seen from far, and that of
// its controls:
//
//	GET /link?mbit=100&rtt=20ms   shapes the link; mbit=0 lifts the limit
//	GET /reset                    sets the counters to zero
//	GET /counters                 requests, bytes received, bytes sent
//	GET /log                      one line a request: method, path, range, status, bytes sent
package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

func main() {
	to := flag.String("to", "", "the registry, HOST:PORT")
	flag.Parse()
	if err := run(*to); err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

func run(to string) error {
	s := registrytest.New(registrytest.Options{})
	defer s.Close()
	far := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	far.FlushInterval = -1 // bytes go on as they come
	s.Use(func(http.Handler) http.Handler { return far })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(s.Host(), l.Addr())
	return http.Serve(l, controls(s))
}

func controls(s *registrytest.Server) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/link", func(w http.ResponseWriter, r *http.Request) {
		mbit, err1 := strconv.ParseInt(r.FormValue("mbit"), 10, 32)
		rtt, err2 := time.ParseDuration(r.FormValue("rtt"))
		if err1 != nil || err2 != nil {
			http.Error(w, "want mbit=100&rtt=20ms", http.StatusBadRequest)
			return
		}
		s.Throttle(mbit*1e6/8, rtt)
	})
	mux.HandleFunc("/reset", func(http.ResponseWriter, *http.Request) { s.Reset() })
	mux.HandleFunc("/counters", func(w http.ResponseWriter, _ *http.Request) {
		c := s.Total("", "")
		fmt.Fprintln(w, c.Requests, c.In, c.Out)
	})
	mux.HandleFunc("/log", func(w http.ResponseWriter, _ *http.Request) {
		for _, r := range s.Log() {
			fmt.Fprintln(w, r.Method, r.Path, r.Range, r.Status, r.Out)
		}
	})
	return mux
}

// Command proxy stands in front of a registry, makes it seem far away and counts
// what crosses it, for the benchmarks.
//
//	proxy [-listen ADDR] http://REGISTRY
//
// It prints the address that clients use in place of REGISTRY and, on a second line,
// the address of its controls, which is neither slowed nor counted:
//
//	GET /counters         requests, connections, bytes of bodies to (sent) and from (received) the registry
//	DELETE /counters      begin anew
//	GET /log              the requests, a line each: milliseconds since the first, connection, status, bytes, method, path, range
//	PUT /link?mbit=N&rtt=D  N Mbit/s in each direction for all bodies together, and a round trip of D ("20ms"); 0 lifts a limit
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address of the controls")
	flag.Parse()
	if err := run(*listen, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

func run(listen, registry string) error {
	to, err := url.Parse(registry)
	if err != nil {
		return err
	}
	if to.Host == "" {
		return errors.New("usage: proxy [-listen ADDR] http://REGISTRY")
	}
	s := registrytest.New(registrytest.Options{Upstream: to})
	defer s.Close()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s\n", s.Host(), l.Addr())
	return http.Serve(l, controls(s))
}

func controls(s *registrytest.Server) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /counters", func(w http.ResponseWriter, _ *http.Request) {
		c := s.Total("", "")
		_ = json.NewEncoder(w).Encode(map[string]int64{ // the client may have left
			"requests": int64(c.Requests), "connections": int64(c.Connections), "sent": c.In, "received": c.Out,
		})
	})
	mux.HandleFunc("DELETE /counters", func(http.ResponseWriter, *http.Request) { s.Reset() })
	mux.HandleFunc("GET /log", func(w http.ResponseWriter, _ *http.Request) { printLog(w, s.Log()) })
	mux.HandleFunc("PUT /link", func(w http.ResponseWriter, r *http.Request) {
		rate, rtt, err := parseLink(r.FormValue("mbit"), r.FormValue("rtt"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.Throttle(rate, rtt)
	})
	return mux
}

// parseLink returns the rate in bytes a second and the round-trip time.
func parseLink(mbit, rtt string) (rate int64, d time.Duration, err error) {
	n, err := strconv.ParseFloat(cmp.Or(mbit, "0"), 64)
	if err == nil {
		d, err = time.ParseDuration(cmp.Or(rtt, "0"))
	}
	if err == nil && (n < 0 || d < 0) {
		err = errors.New("mbit and rtt are not negative")
	}
	return int64(n * 1e6 / 8), d, err
}

func printLog(w http.ResponseWriter, log []registrytest.Request) {
	for _, r := range log {
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%s\t%s\t%s\n",
			r.Start.Sub(log[0].Start).Milliseconds(), r.Conn, r.Status, r.Out, r.Method, r.Path, r.Range)
	}
}

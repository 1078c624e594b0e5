package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/layerfs/layerfs/fuse"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"
)

var evidenceCommand = command{
	name: "evidence", args: "verify FILE", short: "Check the chain of an evidence log",
	long: `
"layerfs mount --evidence FILE" writes a line of JSON for every request, every check of a
digest, and for mount and unmount; with --evidence-files also for every file that is
opened. Each line holds the SHA-256 of the line before:
what was changed, taken out or put in breaks the chain. Write the last hash down:
with it, nothing can be cut off at the end unseen.

Exit code 6: the chain is broken; the first line that does not fit is named.`,
	setup: func(flags *pflag.FlagSet) runFunc {
		asJSON := flags.Bool("json", false, "one JSON document")
		return func(_ context.Context, e *env, args []string) error {
			if len(args) != 2 || args[0] != "verify" {
				return usageError("want: layerfs evidence verify FILE")
			}
			return e.verifyEvidence(args[1], *asJSON)
		}
	},
}

func (e *env) verifyEvidence(path string, asJSON bool) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &exitError{exitNotFound, err}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := forensic.VerifyEvidence(f)
	if err != nil {
		return &exitError{exitIntegrity, fmt.Errorf("%s: %w", path, err)}
	}
	if s.Lines == 0 {
		return &exitError{exitIntegrity, fmt.Errorf("%s: no lines", path)}
	}
	if asJSON {
		return writeJSONLine(e.stdout, map[string]any{"lines": s.Lines, "first": s.First, "last": s.Last, "sha256": s.Head})
	}
	_, err = fmt.Fprintf(e.stdout, "ok  %d lines, %s to %s; the last has the SHA-256\n%s\n", s.Lines, localTime(s.First), localTime(s.Last), s.Head)
	return err
}

// startEvidence opens the log that a mount was told to write, and begins it.
func (e *env) startEvidence(p *mountPlan) (stop func(error) error, err error) {
	if p.evidence == "" {
		return func(err error) error { return err }, nil
	}
	log, err := forensic.OpenEvidence(p.evidence)
	if errors.Is(err, forensic.ErrEvidence) {
		err = &exitError{exitIntegrity, err}
	}
	if err != nil {
		return nil, err
	}
	e.evidence = log
	host, _ := os.Hostname()
	begun := log.Add("begin", map[string]any{
		"layerfs": version, "host": host, "uid": os.Geteuid(), "pid": os.Getpid(), "image": p.image, "mountpoint": p.dir,
		"forensic": p.forensic, "index": p.index, "offline": e.offline, "root": e.root,
	})
	return func(err error) error {
		end := map[string]any{"error": errorText(err)}
		return errors.Join(err, log.Add("end", end), log.Close())
	}, errors.Join(begun, log.Sync())
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// note adds a line to the evidence log, if there is one.
func (e *env) note(event string, data map[string]any) error {
	if e.evidence == nil {
		return nil
	}
	return e.evidence.Add(event, data)
}

// noteImage says what image is mounted: whatever its tag was, from here on it is this digest.
func (s *server) noteImage() error {
	var layers []digest.Digest
	for _, d := range s.im.Manifest.Layers {
		layers = append(layers, d.Digest)
	}
	return s.e.note("image", map[string]any{
		"ref": s.im.Ref, "name": s.im.Name, "manifest": s.im.Desc.Digest, "config": s.im.Manifest.Config.Digest, "layers": layers,
	})
}

// noteMount says that the mount is there, or that it is no more, and waits for the disk.
func (s *server) noteMount(event string) error {
	if s.e.evidence == nil {
		return nil
	}
	requests, bytes := s.im.fetched()
	err := s.e.note(event, map[string]any{"mountpoint": s.plan.dir, "options": s.plan.flags, "requests": requests, "bytes": bytes})
	return errors.Join(err, s.e.evidence.Sync())
}

// noteOpened returns what is told of every file that is opened. Of hard links that have one inode it has the first name.
func (s *server) noteOpened() func(fuse.Opening) error {
	if !s.plan.evidenceFiles {
		return nil
	}
	return func(o fuse.Opening) error {
		data := map[string]any{"uid": o.UID, "gid": o.GID, "pid": o.PID}
		if t := s.fs.Tree(); t.Has(o.ID) {
			lay, _ := t.Origin(o.ID)
			data["path"], data["layer"] = forensic.Printable("/"+t.Path(o.ID)), s.plan.span.first()+lay+1
		} else {
			data["node"] = o.ID // of the folder that --meta adds
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", o.PID)); err == nil {
			data["command"] = strings.TrimSuffix(string(b), "\n")
		}
		return s.e.note("open", data)
	}
}

// checked returns what a layer tells its checks to.
func (e *env) checked(d digest.Digest) func(layer.Check) {
	if e.evidence == nil {
		return nil
	}
	return func(c layer.Check) {
		data := map[string]any{"layer": d, "what": c.What, "ok": c.Err == nil}
		if c.Digest != "" {
			data["digest"] = c.Digest
		}
		if c.N > 0 {
			data["offset"], data["bytes"] = c.Off, c.N
		}
		if c.Err != nil {
			data["error"] = c.Err.Error()
		}
		if err := e.note("check", data); err != nil {
			e.log.Error("evidence", "err", err) // the next request fails
		}
	}
}

// source returns where a layer's bytes come from, with a line in the log for each range.
func (e *env) source(d digest.Digest, r layer.Ranger) layer.Ranger {
	r = e.budget.source(r)
	if e.evidence == nil {
		return r
	}
	return notedRanger{e, d, r}
}

type notedRanger struct {
	e     *env
	layer digest.Digest
	layer.Ranger
}

func (r notedRanger) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := r.e.note("read", map[string]any{"layer": r.layer, "offset": off, "bytes": n}); err != nil {
		return nil, err
	}
	return r.Ranger.ReadRange(ctx, off, n)
}

// noteRequests has a line for each HTTP request, written when its answer has been read.
func (e *env) noteRequests() func(http.RoundTripper) http.RoundTripper {
	if e.evidence == nil {
		return nil
	}
	return func(inner http.RoundTripper) http.RoundTripper { return notedTransport{e, inner} }
}

type notedTransport struct {
	e     *env
	inner http.RoundTripper
}

func (t notedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	data := map[string]any{"method": req.Method, "url": publicURL(req.URL)}
	if r := req.Header.Get("Range"); r != "" {
		data["range"] = r
	}
	resp, err := t.inner.RoundTrip(req)
	if err != nil {
		data["error"] = err.Error()
		return nil, errors.Join(err, t.e.note("request", data))
	}
	data["status"] = resp.StatusCode
	resp.Body = &notedBody{ReadCloser: resp.Body, end: func(n int64, err error) error {
		if data["bytes"] = n; err != nil && err != io.EOF {
			data["error"] = err.Error()
		}
		return t.e.note("request", data)
	}}
	return resp, nil
}

// publicURL is a URL without what may be a secret: user and password, and the values of the
// query, which sign addresses of storage.
func publicURL(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if names := slices.Sorted(maps.Keys(u.Query())); len(names) > 0 {
		return c.String() + "?" + strings.Join(names, "=…&") + "=…"
	}
	return c.String()
}

// A notedBody calls end once, at its end.
type notedBody struct {
	io.ReadCloser
	n    int64
	once sync.Once
	end  func(n int64, err error) error
}

func (b *notedBody) Read(p []byte) (n int, err error) {
	n, err = b.ReadCloser.Read(p)
	b.n += int64(n)
	if err != nil {
		b.once.Do(func() {
			if noteErr := b.end(b.n, err); noteErr != nil {
				err = noteErr
			}
		})
	}
	return n, err
}

func (b *notedBody) Close() (err error) {
	b.once.Do(func() { err = b.end(b.n, nil) })
	return errors.Join(err, b.ReadCloser.Close())
}

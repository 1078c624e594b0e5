package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/layerfs/layerfs/union/layer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A liveStatus is what a server says of itself on its socket.
type liveStatus struct {
	Fetched   int64         `json:"fetched"`             // bytes of the layers' blobs, by this server
	Requests  int64         `json:"requests"`            // by this server
	MaxFetch  int64         `json:"max_fetch,omitempty"` // what the mount may fetch, see --max-fetch; 0: no limit
	Total     int64         `json:"total"`               // bytes of the layers' blobs
	Open      int           `json:"open"`
	Sandbox   []string      `json:"sandbox"`                       // what of no_new_privs, seccomp, capabilities is in force
	LayerInfo []layerStatus `json:"layer_status"`                  // the base first
	Warnings  []string      `json:"warnings,omitempty"`            // what may not be shown as it is, or not be what the registry has by now
	Host      string        `json:"registry_host,omitempty"`       // that last had what was asked for: the registry or a mirror of it
	Away      *time.Time    `json:"registry_away_since,omitempty"` // the registry does not answer; nil: it does, as far as anybody has asked
}

// A layerStatus is how one layer is read, and what it has cost so far.
type layerStatus struct {
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
	Lazy      bool   `json:"lazy"`          // content is fetched when it is read
	Why       string `json:"why,omitempty"` // when not lazy: why
	Index     string `json:"index"`         // where the tree came from: see layer.Status
	// Verified is what the content is held against. "blob": the digest of the blob and that
	// of its tar, before anything of it was used; what is fetched again later, against
	// digests made then. "none": a directory on disk, which "layerfs verify" can check. "chunks": each chunk by itself when it is fetched, against digests
	// that the manifest vouches for.
	Verified string `json:"verified"`
	Size     int64  `json:"total"`    // bytes of the blob
	Fetched  int64  `json:"fetched"`  // of them, by this server
	Requests int64  `json:"requests"` // by this server
	Content  int64  `json:"content"`  // bytes of the files
	Cached   int64  `json:"cached"`   // of them, in the cache
	Complete bool   `json:"complete"` // all of them are
}

func statusOf(l *layer.Layer, d ocispec.Descriptor) layerStatus {
	n := l.Status()
	s := layerStatus{
		Digest: d.Digest.String(), MediaType: d.MediaType, Lazy: n.Lazy, Index: n.Index, Why: n.Why, Verified: "chunks",
		Size: n.Total, Fetched: n.Fetched, Requests: n.Requests, Complete: n.Complete,
	}
	s.Cached, s.Content = l.Present()
	switch n.Index {
	case "tar":
		s.Verified = "blob"
	case "dir":
		s.Verified = "none"
	}
	if !n.Lazy {
		s.Why = cmp.Or(n.Why, "read whole by an earlier mount")
	}
	return s
}

func (s *server) status() liveStatus {
	im := s.image()
	requests, bytes := im.fetched()
	st := liveStatus{Fetched: bytes, Requests: requests, Total: im.size(), MaxFetch: s.plan.maxFetch, Warnings: im.warnings, Host: im.AnsweredBy()}
	if away := im.AwaySince(); !away.IsZero() {
		st.Away = &away
	}
	if in := s.inSandbox.Load(); in != nil {
		st.Sandbox = *in
	}
	if s.mounted.Load() {
		st.Open = s.fuse.OpenFiles()
	}
	for i, l := range im.layers {
		st.LayerInfo = append(st.LayerInfo, statusOf(l, im.descs[i]))
	}
	return st
}

// summary is what a mount says once, in a line: which layers are lazy, why others are
// not, and what it has cost.
func (s *server) summary() string {
	st := s.status()
	lazy, whys := 0, map[string]int{}
	for _, l := range st.LayerInfo {
		if l.Lazy {
			lazy++
		} else {
			whys[l.Why]++
		}
	}
	line := fmt.Sprintf("%s: %d layers, %d lazy", s.plan.image, len(st.LayerInfo), lazy)
	var others []string
	for why, n := range whys {
		others = append(others, fmt.Sprintf("%d not (%s)", n, why))
	}
	slices.Sort(others)
	line = strings.Join(append([]string{line}, others...), ", ")
	return fmt.Sprintf("%s; fetched %s of %s in %d requests", line, size(st.Fetched, false), size(st.Total, false), st.Requests)
}

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/layerfs/layerfs/registry"
	"github.com/layerfs/layerfs/union/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/term"
)

// A progress shows how layers arrive or leave: one line each, rewritten in place on
// a terminal; elsewhere a plain line when a layer begins or is there; nothing with --quiet.
type progress struct {
	w    io.Writer
	tty  bool
	off  bool
	cols int

	mu    sync.Mutex
	rows  []progressRow         // protected by mu
	blobs map[digest.Digest]int // protected by mu; the rows of blob
	lines int                   // protected by mu; drawn so far on the terminal
	drawn time.Time             // protected by mu
}

type progressRow struct {
	name        string
	state       string
	done, total int64 // bytes; total is 0 while nobody knows
	begun       time.Time
}

// redraw is how often a terminal is written to.
const redraw = 100 * time.Millisecond

func (e *env) newProgress() *progress {
	p := &progress{w: e.stderr, off: e.quiet, cols: 80}
	if f, ok := e.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.tty = true
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 { // 0: the terminal does not know
			p.cols = w
		}
	}
	return p
}

// layer takes up news of one layer that arrives.
func (p *progress) layer(i, n int, d ocispec.Descriptor, now layer.Progress) {
	if p.off {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rows == nil {
		p.rows = make([]progressRow, n)
	}
	p.showLocked(i, progressRow{name: shortDigest(d.Digest.Encoded()), state: now.State, done: now.Done, total: now.Total})
}

// blob takes up news of one blob that leaves.
func (p *progress) blob(now registry.Progress) {
	if p.off {
		return
	}
	name := "new layer"
	if now.Blob != "" {
		name = shortDigest(now.Blob.Encoded())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i, ok := p.blobs[now.Blob]
	if first, unnamed := p.blobs[""]; !ok && unnamed && now.State == "done" {
		i, ok = first, true // the new layer has a digest now
	}
	if !ok {
		i = len(p.rows)
		p.rows = append(p.rows, progressRow{})
	}
	if p.blobs == nil {
		p.blobs = map[digest.Digest]int{}
	}
	p.blobs[now.Blob] = i
	p.showLocked(i, progressRow{name: name, state: now.State, done: now.Done, total: now.Total})
}

func (p *progress) showLocked(i int, now progressRow) {
	r := &p.rows[i]
	changed := r.state != now.state
	if now.begun = r.begun; r.name == "" {
		now.begun = time.Now()
	}
	*r = now
	switch {
	case p.tty && (changed || time.Since(p.drawn) > redraw):
		p.drawLocked()
	case !p.tty && changed && !silentStates[now.state]:
		fmt.Fprintf(p.w, "%s: %s\n", r.name, r.text())
	}
}

// silentStates are those not worth a line where lines cannot be rewritten.
var silentStates = map[string]bool{"waiting": true, "index": true, "cached": true}

func (p *progress) drawLocked() {
	var b strings.Builder
	if p.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.lines) // up to the first line
	}
	p.lines = 0
	for i := range p.rows {
		if r := &p.rows[i]; r.name != "" {
			line := []rune(fmt.Sprintf("%s: %s", r.name, r.bar()))
			b.WriteString("\r" + string(line[:min(len(line), p.cols-1)]) + "\x1b[K\n")
			p.lines++
		}
	}
	p.drawn = time.Now()
	_, _ = io.WriteString(p.w, b.String())
}

// done draws the last state, once: what is printed next stands below it.
func (p *progress) done() {
	if p.off || !p.tty {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lines > 0 {
		p.drawLocked()
	}
	p.rows, p.blobs, p.lines = nil, nil, 0
}

func (r *progressRow) text() string {
	switch {
	case r.state == "done" && r.done > 0:
		return fmt.Sprintf("done, %s at %s/s", size(r.done, false), size(r.rate(), false))
	case moving[r.state] && r.total > 0:
		return r.state + " " + size(r.total, false)
	}
	return r.state
}

// moving are the states in which bytes are under way.
var moving = map[string]bool{"fetching": true, "uploading": true}

// rate is in bytes a second since the row began.
func (r *progressRow) rate() int64 {
	return int64(float64(r.done) / max(time.Since(r.begun).Seconds(), 0.001))
}

const barWidth = 24

func (r *progressRow) bar() string {
	switch {
	case moving[r.state] && r.total > 0:
		full := int(min(r.done, r.total) * barWidth / r.total)
		return fmt.Sprintf("%s [%s%s] %s/%s %s/s", r.state, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
			size(r.done, false), size(r.total, false), size(r.rate(), false))
	case moving[r.state]:
		return fmt.Sprintf("%s %s %s/s", r.state, size(r.done, false), size(r.rate(), false))
	}
	return r.text()
}

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/layerfs/layerfs/union/layer"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/term"
)

// A progress shows how layers arrive: one line each, rewritten in place on a
// terminal; elsewhere a plain line when a layer begins or is there; nothing with --quiet.
type progress struct {
	w    io.Writer
	tty  bool
	off  bool
	cols int

	mu    sync.Mutex
	rows  []progressRow // protected by mu
	lines int           // protected by mu; drawn so far on the terminal
	drawn time.Time     // protected by mu
}

type progressRow struct {
	name  string
	p     layer.Progress
	begun time.Time
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

// layer takes up news of one layer.
func (p *progress) layer(i, n int, d ocispec.Descriptor, now layer.Progress) {
	if p.off {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rows == nil {
		p.rows = make([]progressRow, n)
	}
	r := &p.rows[i]
	changed := r.p.State != now.State
	if r.name == "" {
		r.name, r.begun = shortDigest(d.Digest.Encoded()), time.Now()
	}
	r.p = now
	switch {
	case p.tty && (changed || time.Since(p.drawn) > redraw):
		p.drawLocked()
	case !p.tty && changed && plainStates[now.State]:
		fmt.Fprintf(p.w, "%s: %s\n", r.name, r.text())
	}
}

// plainStates are those worth a line where lines cannot be rewritten.
var plainStates = map[string]bool{"fetching": true, "ready": true}

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
	p.rows, p.lines = nil, 0
}

func (r *progressRow) text() string {
	switch r.p.State {
	case "fetching":
		return "fetching " + size(r.p.Total, false)
	case "ready":
		return "ready"
	}
	return r.p.State
}

const barWidth = 24

func (r *progressRow) bar() string {
	if r.p.State != "fetching" || r.p.Total <= 0 {
		return r.text()
	}
	full := int(min(r.p.Done, r.p.Total) * barWidth / r.p.Total)
	rate := float64(r.p.Done) / max(time.Since(r.begun).Seconds(), 0.001)
	return fmt.Sprintf("fetching [%s%s] %s/%s %s/s", strings.Repeat("=", full), strings.Repeat(" ", barWidth-full),
		size(r.p.Done, false), size(r.p.Total, false), size(int64(rate), false))
}

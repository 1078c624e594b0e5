package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/layerfs/layerfs/registry/hosts"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A mirrored source is an image that several hosts have: mirrors, and the registry itself.
//
// They are asked in the order of the configuration, each with its own credentials, certificates and
// redirects. Who fails is asked after all others for a while, which grows; who lacks a blob, for
// this blob; and whose bytes were wrong is not asked for them again while another host has not been.
type mirrored struct {
	hosts   []*mirror
	outage  *outage // of all of them
	backoff backoff // between rounds, in which each was asked once
	log     *slog.Logger
	last    atomic.Pointer[string] // host that answered
}

// A mirror is one host of a mirrored image: of the registry's own it is no different.
type mirror struct {
	*remote
	can hosts.Abilities

	mu     sync.Mutex
	fails  int       // in a row; protected by mu
	failed time.Time // the last time; protected by mu
	until  time.Time // it rests; protected by mu
}

// How long a host that failed is not asked before the others: soon again at first, for
// most failures are short, then seldom enough for its timeouts not to be felt.
const (
	minRest = 2 * time.Second
	maxRest = 5 * time.Minute
	// mirrorTimeout is until a response starts when there are others to ask. A mirror that has to fetch
	// a blob first may take longer; it has it the next time.
	mirrorTimeout = 10 * time.Second
)

func newMirrored(list []hosts.Host, r Ref, o Options) (*mirrored, error) {
	m := &mirrored{outage: newOutage(o.Wait, r.Host, o.logger()), backoff: defaultBackoff, log: o.logger()}
	for _, at := range list {
		rm, err := newRemoteAt(at, r, o)
		if err != nil {
			return nil, err
		}
		rm.cl.outage, rm.cl.backoff.once, rm.cl.patient = m.outage, true, mirrorTimeout
		m.hosts = append(m.hosts, &mirror{remote: rm, can: at.Can})
	}
	return m, nil
}

func (m *mirrored) close() (err error) {
	for _, h := range m.hosts {
		err = errors.Join(err, h.close())
	}
	return err
}

func (m *mirrored) state() (*outage, string) {
	if host := m.last.Load(); host != nil {
		return m.outage, *host
	}
	return m.outage, ""
}

// order returns the hosts that can do something, those that rest behind the others.
func (m *mirrored) order(can hosts.Abilities) []*mirror {
	var ready, resting []*mirror
	for _, h := range m.hosts {
		switch {
		case h.can&can == 0:
		case h.ready(time.Now()):
			ready = append(ready, h)
		default:
			resting = append(resting, h)
		}
	}
	return append(ready, resting...)
}

// ready tells whether a host is to be asked in its turn. Of those who ask when its rest is over, one hears
// yes: his failure is enough for all.
func (h *mirror) ready(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fails == 0 {
		return true
	}
	if now.Before(h.until) {
		return false
	}
	h.until = now.Add(restAfter(h.fails))
	return true
}

func restAfter(fails int) time.Duration { return min(minRest<<min(fails-1, 10), maxRest) }

// fail takes note of an error of a host that was asked at a time, if it says something of the host and not only
// of what it was asked for. Those who asked together count once.
func (m *mirrored) fail(ctx context.Context, h *mirror, asked time.Time, err error) {
	if ctx.Err() != nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrIntegrity) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if asked.Before(h.failed) {
		return
	}
	h.fails++
	h.failed = time.Now()
	h.until = h.failed.Add(restAfter(h.fails))
	level := slog.LevelWarn
	if h.fails > 1 {
		level = slog.LevelDebug
	}
	m.log.Log(ctx, level, "a host fails, and is asked behind the others", "host", h.cl.host, "for", restAfter(h.fails), "error", err)
}

// serve ends what is held against a host.
func (m *mirrored) serve(h *mirror) {
	m.last.Store(&h.cl.host)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fails > 0 {
		m.log.Info("a host that failed answers again", "host", h.cl.host)
	}
	h.fails = 0
}

// ask calls f with one host after the other until one has the answer, and all over again after a pause while that may help.
func (m *mirrored) ask(ctx context.Context, can hosts.Abilities, f func(*mirror) error) error {
	return m.backoff.retry(ctx, m.log, func() error {
		var errs []error
		for _, h := range m.order(can) {
			asked := time.Now()
			err := f(h)
			if err == nil {
				m.serve(h)
				return nil
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			m.fail(ctx, h, asked, err)
			m.log.Debug("asked", "host", h.cl.host, "error", err)
			errs = append(errs, &saidBy{h.cl.host, err})
		}
		return worth(errs)
	})
}

// A saidBy is an error of one of several hosts.
type saidBy struct {
	host string
	error
}

func (e *saidBy) Unwrap() error { return e.error }

// worth is the error of a round that says most: that a host may have it later before that one has it wrong,
// and otherwise what the last one said, which is the registry itself. What the others said stands behind it.
func worth(errs []error) error {
	if len(errs) == 0 {
		return faultf(ErrNotFound, "no host may be asked for that")
	}
	most := mostTelling(errs)
	var others []string
	for i, err := range errs {
		if by := new(saidBy); i != most && errors.As(err, &by) {
			others = append(others, by.host+": "+by.Error())
		}
	}
	if len(others) == 0 {
		return errs[most]
	}
	return fmt.Errorf("%w (also asked: %s)", errs[most], strings.Join(others, "; "))
}

func mostTelling(errs []error) int {
	ranks := []func(error) bool{
		func(err error) bool { return away(err) && temporary(err) },
		away,
		func(err error) bool { return errors.Is(err, ErrIntegrity) },
	}
	for _, is := range ranks {
		for i := len(errs) - 1; i >= 0; i-- {
			if is(errs[i]) {
				return i
			}
		}
	}
	return len(errs) - 1
}

func (m *mirrored) resolve(ctx context.Context) (d ocispec.Descriptor, raw []byte, err error) {
	can := hosts.Resolve
	if m.hosts[0].ref.Digest != "" {
		can = hosts.Pull
	}
	err = m.ask(ctx, can, func(h *mirror) error {
		var err error
		d, raw, err = h.resolveOnce(ctx)
		return err
	})
	return d, raw, err
}

// manifest returns a manifest that was verified, for another host may have the right one.
func (m *mirrored) manifest(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	var raw []byte
	err := m.ask(ctx, hosts.Pull, func(h *mirror) error {
		body, err := h.getManifest(ctx, d.Digest.String())
		if err != nil {
			return err
		}
		defer func() { _ = body.Close() }()
		if raw, err = readAll(body, maxManifest); err != nil {
			return err
		}
		if err = verify(d.Digest, raw); err != nil {
			m.log.Warn("wrong bytes", "host", h.cl.host, "manifest", d.Digest, "error", err)
		}
		return err
	})
	return io.NopCloser(bytes.NewReader(raw)), err
}

// referrers are those that the first host with any has: a mirror that knows of none may not keep them.
func (m *mirrored) referrers(ctx context.Context, subject digest.Digest, artifactType string) (list []ocispec.Descriptor, err error) {
	answered := false
	err = m.ask(ctx, hosts.Resolve, func(h *mirror) error {
		var err error
		if list, err = h.referrers(ctx, subject, artifactType); err != nil {
			return err
		}
		answered = true
		if len(list) == 0 {
			return &fault{kind: ErrNotFound, text: h.cl.host + ": no referrers", status: http.StatusNotFound}
		}
		return nil
	})
	if answered && errors.Is(err, ErrNotFound) {
		err = nil
	}
	return list, err
}

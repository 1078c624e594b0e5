package registry

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/layerfs/layerfs/registry/hosts"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A mirroredBlob is a blob that several hosts may have.
type mirroredBlob struct {
	src   *mirrored
	desc  ocispec.Descriptor
	count *counter
	on    map[*mirror]*blobOn
}

// A blobOn is a blob on one host.
type blobOn struct {
	*remoteBlob

	mu    sync.Mutex
	lacks time.Time // until when the host is believed not to have it; protected by mu
	wrong time.Time // until when its bytes are believed to be wrong; protected by mu
}

const (
	// lackTime is how long a host that lacks a blob is asked for it after the others. One that fetches what it
	// is asked for has it by then.
	lackTime = time.Minute
	// wrongTime is how long a host whose bytes were wrong is not asked for them again: somebody has to mend it.
	wrongTime = 10 * time.Minute
)

func (m *mirrored) blob(d ocispec.Descriptor, c *counter) ranger {
	b := &mirroredBlob{src: m, desc: d, count: c, on: map[*mirror]*blobOn{}}
	for _, h := range m.hosts {
		if h.can&hosts.Pull != 0 {
			b.on[h] = &blobOn{remoteBlob: h.remoteBlob(d, c)}
		}
	}
	return b
}

func (b *mirroredBlob) close() {
	for _, on := range b.on {
		on.close()
	}
}

func (b *mirroredBlob) readRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r := &mirrorRead{b: b, ctx: ctx, begun: off, w: &waiter{o: b.src.outage, b: b.src.backoff}}
	r.resumer = resumer{open: r.openNext, pause: r.pauseOrNext, off: off, left: n}
	r.round = b.order()
	if err := r.start(); err != nil {
		return nil, err
	}
	return r, nil
}

// order returns the hosts to ask, the likely ones first, without those whose bytes are wrong.
func (b *mirroredBlob) order() []*mirror {
	now := time.Now()
	var lacking []*mirror
	list := slices.DeleteFunc(b.src.order(hosts.Pull), func(h *mirror) bool {
		on := b.on[h]
		if on.isWrong(now) {
			return true
		}
		on.mu.Lock()
		defer on.mu.Unlock()
		if now.Before(on.lacks) {
			lacking = append(lacking, h)
			return true
		}
		return false
	})
	return append(list, lacking...)
}

// doubted takes note that the bytes of one of these hosts were wrong, and tells whether there is another to ask.
// Where there is none, none is held guilty any more: the next read begins with all of them.
func (b *mirroredBlob) doubted(from []*mirror, off int64) (other bool) {
	for _, h := range from {
		if b.on[h].blame() {
			b.src.log.Warn("wrong bytes: another host is asked for them", "instead", h.cl.host, "blob", b.desc.Digest, "offset", off)
			break // if others were asked too, they are next
		}
	}
	now := time.Now()
	for _, on := range b.on {
		if !on.isWrong(now) {
			return true
		}
	}
	for _, on := range b.on {
		on.mu.Lock()
		on.wrong = time.Time{}
		on.mu.Unlock()
	}
	return false
}

func (on *blobOn) isWrong(now time.Time) bool {
	on.mu.Lock()
	defer on.mu.Unlock()
	return now.Before(on.wrong)
}

// blame tells whether that is news.
func (on *blobOn) blame() bool {
	on.mu.Lock()
	defer on.mu.Unlock()
	now := time.Now()
	news := !now.Before(on.wrong)
	on.wrong = now.Add(wrongTime)
	return news
}

func (on *blobOn) isMissing() {
	on.mu.Lock()
	defer on.mu.Unlock()
	on.lacks = time.Now().Add(lackTime)
}

// A mirrorRead reads a range from one host, and goes on at another where that one ends.
type mirrorRead struct {
	resumer
	b   *mirroredBlob
	ctx context.Context
	w   *waiter

	begun  int64     // offset of the first byte
	round  []*mirror // to be asked yet, before a pause
	rounds int       // that have failed since the last progress
	errs   []error   // of this round

	cur   *mirror   // is read from
	asked time.Time // when
	from  []*mirror // bytes came from
}

// openNext asks the next host.
func (r *mirrorRead) openNext(off, n int64) (io.ReadCloser, error) {
	if len(r.round) == 0 {
		r.cur = nil
		return nil, &permanent{faultf(ErrIntegrity, "no host has the right bytes")}
	}
	r.cur, r.asked = r.round[0], time.Now()
	r.round = r.round[1:]
	rc, err := r.b.on[r.cur].attempt(r.ctx, off, n)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(r.from, r.cur) {
		r.from = append(r.from, r.cur)
	}
	return rc, nil
}

// pauseOrNext is called when a host failed: the next one is asked at once, and after the last one there is a pause.
func (r *mirrorRead) pauseOrNext(try int, err error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	if try == 0 {
		r.errs, r.rounds = nil, 0
		r.round = slices.DeleteFunc(r.b.order(), func(h *mirror) bool { return h == r.cur })
	}
	r.note(err)
	if len(r.round) > 0 {
		return nil
	}
	err = worth(r.errs)
	if err := r.w.pause(r.ctx, r.rounds, err); err != nil {
		return err
	}
	r.rounds++
	r.errs, r.round = nil, r.b.order()
	return nil
}

// note takes note of what an error says of its host.
func (r *mirrorRead) note(err error) {
	if r.cur == nil {
		r.errs = append(r.errs, err)
		return
	}
	r.errs = append(r.errs, &saidBy{r.cur.cl.host, err})
	r.b.src.log.Debug("read", "host", r.cur.cl.host, "blob", r.b.desc.Digest, "error", err)
	switch {
	case errors.Is(err, ErrNotFound):
		r.b.on[r.cur].isMissing()
	case errors.Is(err, ErrIntegrity):
		r.b.doubted([]*mirror{r.cur}, r.off)
	default:
		r.b.src.fail(r.ctx, r.cur, r.asked, err)
	}
}

func (r *mirrorRead) Read(p []byte) (int, error) {
	n, err := r.resumer.Read(p)
	if n > 0 && r.left == 0 {
		r.b.src.serve(r.cur)
	}
	return n, err
}

// Doubt is a doubter's.
func (r *mirrorRead) Doubt() (other bool) { return r.b.doubted(r.from, r.begun) }

package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// A Unit is what is there or not as a whole. Sum is the SHA-256 of its bytes
// (uncompressed), which put compares. The units of a pack are contiguous, sorted, not
// empty, and cover it from offset 0 to its size.
type Unit struct {
	Off, Len int64
	Sum      [sha256.Size]byte
	// Vouched: the Fill has verified the bytes itself, by a digest of what they were
	// decoded from. Sum is not compared then; it still tells one layout from another, so that
	// what one index vouched for is never taken for what another one did.
	Vouched bool
}

// UnitSize is the largest unit of a pack that is written as a whole: what a first read
// must read to check a CRC.
const UnitSize = 64 << 10

// A Fill fetches units first … last (inclusive, a run of missing ones) and calls put for
// each, in any order and from any goroutine until it returns; it may put others, read
// ahead. put verifies the sum (its error then wraps ErrCorrupt), keeps the unit and wakes
// who waits for it; it does not keep b. ctx is the store's, not a caller's: it ends when the
// pack or the store is closed, and the Fill must return soon after.
type Fill func(ctx context.Context, first, last int, put func(unit int, b []byte) error) error

// A Pack is the bytes of one layer. Several may stand on the same file, in this process
// and in others; what one of them fills, all can read. Its methods may be called by
// several goroutines.
type Pack struct {
	c      *content
	closed atomic.Bool
}

// Pack opens the lazily filled pack of d, and makes an empty one where there is none, or
// one that was cut into other units. The units are kept, and must not change. The caller
// closes the pack.
func (s *Store) Pack(d digest.Digest, units []Unit) (*Pack, error) {
	ends, err := checkUnits(units)
	if err != nil {
		return nil, fmt.Errorf("open pack %s: %w", d, err)
	}
	c, err := s.acquire(d, func(dir string) (*content, error) { return s.openLazy(d, dir, units, ends) })
	if err != nil {
		return nil, fmt.Errorf("open pack %s: %w", d, err)
	}
	return &Pack{c: c}, nil
}

// Complete opens the pack of d if all of it is there, whoever made it; otherwise the
// error is fs.ErrNotExist. The caller closes the pack, and calls Ensure before he reads,
// with a nil Fill: bytes that changed on the disk are ErrCorrupt, and the pack is then no
// longer complete for who opens it next.
func (s *Store) Complete(d digest.Digest) (*Pack, error) {
	c, err := s.acquire(d, func(dir string) (*content, error) { return s.openComplete(d, dir) })
	if err != nil {
		return nil, fmt.Errorf("open complete pack %s: %w", d, err)
	}
	return &Pack{c: c}, nil
}

// Ensure makes n bytes at off readable; what lies beyond the end is ignored. Each missing
// unit is fetched by one call of one caller's Fill however many callers wait for it, and
// a failure reaches all of them; nothing of it is remembered, the next Ensure tries again. A
// caller leaves when ctx ends, and the Fill goes on for the others. The first Ensure of a
// unit in a process reads it back and checks its CRC. When the disk refuses a unit it is
// readable from memory, for a while: see [Pack.Read].
func (p *Pack) Ensure(ctx context.Context, off, n int64, fill Fill) error {
	c := p.c
	if c.unchecked.Load() == 0 && off >= 0 && n >= 0 {
		return nil
	}
	first, last, err := c.span(off, n)
	if err == nil && p.closed.Load() {
		err = fs.ErrClosed
	}
	for err == nil && first <= last && c.is(first, checked) {
		first++
	}
	if err == nil && first <= last {
		err = c.ensure(ctx, first, last, fill)
	}
	if err != nil {
		return fmt.Errorf("pack %s: %w", c.d, err)
	}
	return nil
}

// Has reports whether Ensure of these bytes would fetch nothing (unless the disk
// damaged them).
func (p *Pack) Has(off, n int64) bool {
	c := p.c
	first, last, err := c.span(off, n)
	if err != nil {
		return false
	}
	for i := first; i <= last; i++ {
		if c.is(i, unknown) && !c.over.has(i) && !c.appeared(i) {
			return false
		}
	}
	return true
}

// Unit returns where the unit that holds the byte at off begins and ends; off lies in the pack.
func (p *Pack) Unit(off int64) (start, end int64) {
	i := p.c.unitAt(off)
	return p.c.start(i), p.c.ends[i]
}

// ReadAt is a pread of bytes that Ensure has made readable, with the rules of io.ReaderAt.
// It fails where they are not there, also when they have been evicted since: Read tries again.
func (p *Pack) ReadAt(b []byte, off int64) (int, error) { return p.c.readAt(b, off) }

// Read is Ensure and ReadAt in one: it tries again where bytes were evicted, or the disk refused
// them and memory dropped them, between the two, and at last keeps them from being evicted
// while it fetches and reads. The rules are those of io.ReaderAt.
func (p *Pack) Read(ctx context.Context, b []byte, off int64, fill Fill) (n int, err error) {
	for round := range maxRounds {
		if round == patience {
			defer p.c.holdSpan(off, int64(len(b)))()
		}
		if err := p.Ensure(ctx, off, int64(len(b)), fill); err != nil {
			return 0, err
		}
		n, err = p.ReadAt(b, off)
		if !errors.Is(err, errGone) {
			break
		}
	}
	return n, err
}

// Size returns the number of bytes of the pack.
func (p *Pack) Size() int64 { return p.c.size }

// Present returns how many bytes are there, as far as this process has seen.
func (p *Pack) Present() int64 { return p.c.present.Load() }

// IsComplete reports whether all bytes are there, as far as this process has seen.
func (p *Pack) IsComplete() bool { return p.c.complete() }

// Refresh looks what other processes have evicted, so that Has, Present and IsComplete tell the truth of now.
func (p *Pack) Refresh() { p.c.renewAll() }

// Close ends the use of the pack. The last one to close it in this process ends its fills
// and waits for them to return; the disk is waited for in the background. A second Close does nothing.
func (p *Pack) Close() error {
	if !p.closed.Swap(true) {
		p.c.s.release(p.c)
	}
	return nil
}

package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// A flight is one unit on its way, whoever waits for it.
type flight struct {
	done chan struct{}
	err  error // set before done is closed
}

var errLeftOut = errors.New("fill returned without the unit")

// maxRounds is how often ensure looks again: a unit may have been evicted, or pushed out of memory,
// while it waited for another.
const maxRounds = 4

// patience is how often a reader lets others evict what it wanted to read.
const patience = 2

// ensure makes units first … last readable.
func (c *content) ensure(ctx context.Context, first, last int, fill Fill) error {
	for round := 0; ; round++ {
		missing := c.missing(first, last)
		if len(missing) == 0 {
			return nil
		}
		if err := c.hopeless(missing[0], round, fill); err != nil {
			return err
		}
		if round == patience {
			defer c.holdSpan(c.start(first), c.ends[last]-c.start(first))()
		}
		flights, err := c.launch(missing, fill)
		if err != nil {
			return err
		}
		if err := wait(ctx, flights); err != nil {
			return err
		}
	}
}

func (c *content) missing(first, last int) (units []int) {
	for i := first; i <= last; i++ {
		if !c.there(i) {
			units = append(units, i)
		}
	}
	return units
}

// hopeless says why there is no point in fetching unit i (again).
func (c *content) hopeless(i, round int, fill Fill) error {
	if fill == nil {
		return fmt.Errorf("unit %d is not there and cannot be fetched: %w", i, ErrCorrupt)
	}
	if round < maxRounds {
		return nil
	}
	if err := c.over.why(); err != nil {
		return fmt.Errorf("unit %d: more than memory may hold, and the disk refuses: %w", i, err)
	}
	return fmt.Errorf("unit %d is damaged again and again: %w", i, ErrCorrupt)
}

// launch starts a fill for every run of units that nobody fetches yet, and returns what
// to wait for.
func (c *content) launch(units []int, fill Fill) ([]*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil, fs.ErrClosed
	}
	var waits []*flight
	var run []int // consecutive units
	for _, i := range units {
		if fl := c.flights[i]; fl != nil {
			waits = append(waits, fl)
			continue
		}
		if c.is(i, checked) || c.over.has(i) {
			continue // arrived since we looked
		}
		fl := &flight{done: make(chan struct{})}
		c.flights[i] = fl
		waits = append(waits, fl)
		if len(run) > 0 && run[len(run)-1] != i-1 {
			c.flyLocked(run, fill)
			run = nil
		}
		run = append(run, i)
	}
	c.flyLocked(run, fill)
	return waits, nil
}

func (c *content) flyLocked(run []int, fill Fill) {
	if len(run) == 0 {
		return
	}
	first := run[0]
	flights := make([]*flight, len(run))
	for k, i := range run {
		flights[k] = c.flights[i]
	}
	c.fills.Go(func() {
		err := fill(c.ctx, first, first+len(flights)-1, c.put)
		c.land(first, flights, err)
	})
}

// arrived wakes who waits for unit i.
func (c *content) arrived(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fl := c.flights[i]; fl != nil {
		delete(c.flights, i)
		close(fl.done)
	}
}

// land ends the flights of a fill that returned. Those that put ended already are no
// longer in the map, or another one is there in their place.
func (c *content) land(first int, flights []*flight, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ctx.Err() != nil:
		err = fs.ErrClosed // a Canceled here would look like the caller's own
	case err == nil:
		err = errLeftOut
	}
	for k, fl := range flights {
		if i := first + k; c.flights[i] == fl {
			delete(c.flights, i)
			fl.err = fmt.Errorf("fill unit %d: %w", i, err)
			close(fl.done)
		}
	}
	c.idleLocked()
}

// wait returns when all flights have ended, one failed, or the caller must leave.
func wait(ctx context.Context, flights []*flight) error {
	for _, fl := range flights {
		select {
		case <-fl.done:
			if fl.err != nil {
				return fl.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

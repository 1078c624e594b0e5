package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/dustin/go-humanize"
	"github.com/layerfs/layerfs/union/layer"
)

// errBudget says that a mount has fetched what it may. A read gets EIO: read(2) knows no
// EDQUOT, and programs take that for a full disk.
var errBudget = errors.New("--max-fetch is reached")

// A budget is what a mount may fetch of its layers, in bytes, over all its servers and with what they
// fetch in the background. A nil budget has no end. It is safe for concurrent use.
type budget struct {
	max  int64
	file string // where a later server finds what was spent
	log  *slog.Logger

	mu    sync.Mutex
	spent int64 // protected by mu
	saved int64 // protected by mu; stands in file, spent at least
	told  bool  // protected by mu
}

// budgetFile lies beside the state of a mount.
const budgetFile = "fetched"

// parseBudget reads --max-fetch; "" is no limit.
func parseBudget(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n < 1 || n > 1<<62 {
		return 0, usageError("--max-fetch " + text + ": want a size such as 2GB")
	}
	return int64(n), nil
}

// newBudget is the budget of a mount whose state is in dir; a later server goes on with what the earlier ones have spent.
func newBudget(maxFetch int64, dir string, later bool, log *slog.Logger) (*budget, error) {
	if maxFetch == 0 {
		return nil, nil
	}
	b := &budget{max: maxFetch, file: filepath.Join(dir, budgetFile), log: log}
	if !later {
		return b, nil
	}
	text, err := os.ReadFile(b.file)
	if err == nil {
		b.spent, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	}
	if err != nil {
		return nil, fmt.Errorf("read what the mount has fetched: %w", err)
	}
	b.saved = b.spent
	return b, nil
}

// take reserves n bytes, or says that there are not so many.
func (b *budget) take(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.max-b.spent {
		if !b.told {
			b.told = true
			b.log.Warn("the mount has fetched what --max-fetch allows; what is not in the cache cannot be read", "max_fetch", b.max, "fetched", b.spent)
		}
		return &exitError{exitLimit, fmt.Errorf("%w: %d of %d bytes are fetched, and these would be %d more; mount again with a larger one", errBudget, b.spent, b.max, n)}
	}
	if b.spent += n; b.spent <= b.saved {
		return nil
	}
	return b.saveLocked()
}

// saveLocked writes down a little more than was spent, so that not every request writes.
// Before there is a mount there is no directory for it, and nobody who would ask.
func (b *budget) saveLocked() error {
	const some = 100
	b.saved = min(b.max, b.spent+b.max/some)
	err := os.WriteFile(b.file, []byte(strconv.FormatInt(b.saved, 10)), 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// save is called when the mount is there.
func (b *budget) save() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.saveLocked()
}

// source has what is read of r count.
func (b *budget) source(r layer.Ranger) layer.Ranger {
	if b == nil {
		return r
	}
	return budgetRanger{b, r}
}

type budgetRanger struct {
	budget *budget
	layer.Ranger
}

func (r budgetRanger) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := r.budget.take(n); err != nil {
		return nil, err
	}
	return r.Ranger.ReadRange(ctx, off, n)
}

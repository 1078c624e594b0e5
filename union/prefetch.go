package union

import (
	"context"
	"syscall"

	"github.com/layerfs/layerfs/union/layer"
	"golang.org/x/sync/errgroup"
)

const (
	// prefetchAtOnce is how many runs of layers are fetched at a time: enough to fill
	// a link whose round trip is as long as a run, and few enough that a read,
	// which fetches for itself what is not on its way, keeps a share of it.
	prefetchAtOnce = 3
	// prefetchBatch bytes of files, in the order of the profile, are fetched in the order of
	// the blobs: neighbours in one request, without the last files coming before the first.
	prefetchBatch = 8 << 20
)

// Prefetch fetches what a profile lists, in its order but for what lies side by side
// in a layer. What the image does not have, or the cache does, costs nothing. Symlinks are not followed.
func (t *Tree) Prefetch(ctx context.Context, p Profile) error {
	for files := p.Files; len(files) > 0; {
		var batch []ProfileFile
		batch, files = t.cutBatch(files)
		if err := t.fetchBatch(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) cutBatch(files []ProfileFile) (batch, rest []ProfileFile) {
	var sum int64
	for i := range files {
		if sum >= prefetchBatch {
			return files[:i], files[i:]
		}
		sum += t.wanted(&files[i])
	}
	return files, nil
}

// wanted is how many bytes a profile wants of a file.
func (t *Tree) wanted(f *ProfileFile) (n int64) {
	if id, ok := t.regular(f.Path); ok && f.Ranges == nil {
		return t.Size(id)
	}
	for _, r := range f.Ranges {
		n += r.N
	}
	return n
}

func (t *Tree) regular(path string) (ID, bool) {
	id, err := t.Resolve(path)
	return id, err == nil && t.Mode(id)&syscall.S_IFMT == syscall.S_IFREG
}

func (t *Tree) fetchBatch(ctx context.Context, files []ProfileFile) error {
	b := batch{tree: t, parts: make([][]layer.Part, len(t.layers))}
	for _, f := range files {
		if id, ok := t.regular(f.Path); ok {
			b.add(id, f.Ranges)
		}
	}
	return b.fetch(ctx)
}

// A batch is parts of files that are fetched together.
type batch struct {
	tree  *Tree
	parts [][]layer.Part // by layer
	order []int          // of the layers, by the first file
}

// add adds a regular file, or ranges of it.
func (b *batch) add(id ID, ranges []layer.Range) {
	lay, entry := b.tree.Origin(id)
	if b.parts[lay] == nil {
		b.order = append(b.order, lay)
	}
	b.parts[lay] = append(b.parts[lay], layer.Part{ID: entry, Ranges: ranges})
}

func (b *batch) fetch(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(prefetchAtOnce)
	for _, lay := range b.order {
		l := b.tree.layers[lay]
		for _, run := range l.Missing(b.parts[lay]) {
			g.Go(func() error { return l.FetchRun(ctx, run) })
		}
	}
	return g.Wait()
}

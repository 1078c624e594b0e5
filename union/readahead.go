package union

import (
	"context"
	"sync/atomic"

	"github.com/layerfs/layerfs/union/layer"
)

// aheadBatches is how many batches of a read-ahead are fetched before somebody reads
// them: the next one while one is read, and one for links that are faster than the reader.
const aheadBatches = 2

// A readAhead fetches files while those before them are read, in batches of
// prefetchBatch bytes. What cannot be fetched is the reader's to find out.
type readAhead struct {
	tree    *Tree
	batches [][]ID
	begins  map[ID]int64 // the batch that begins with a file
	pos     atomic.Int64 // the batch that is read
	moved   chan struct{}
	done    chan struct{}
	cancel  func()
}

// readAhead begins at once; files come in the order in which they will be read. The caller stops it.
func (t *Tree) readAhead(ctx context.Context, files []ID) *readAhead {
	r := &readAhead{tree: t, batches: t.cutFiles(files), begins: map[ID]int64{}, moved: make(chan struct{}, 1), done: make(chan struct{})}
	for i, b := range r.batches {
		r.begins[b[0]] = int64(i)
	}
	ctx, r.cancel = context.WithCancel(ctx)
	go r.run(ctx)
	return r
}

func (r *readAhead) run(ctx context.Context) {
	defer close(r.done)
	for i, files := range r.batches {
		for int64(i) > r.pos.Load()+aheadBatches {
			select {
			case <-r.moved:
			case <-ctx.Done():
				return
			}
		}
		if int64(i) >= r.pos.Load() { // else the reader was faster
			_ = r.tree.fetchFiles(ctx, files)
		}
	}
}

// at says which file is read now.
func (r *readAhead) at(id ID) {
	i, ok := r.begins[id]
	if !ok {
		return
	}
	r.pos.Store(i)
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

func (r *readAhead) stop() {
	r.cancel()
	<-r.done
}

func (t *Tree) cutFiles(files []ID) (batches [][]ID) {
	first, sum := 0, int64(0)
	for i, id := range files {
		if sum >= prefetchBatch {
			batches = append(batches, files[first:i])
			first, sum = i, 0
		}
		sum += t.Size(id)
	}
	if first < len(files) {
		batches = append(batches, files[first:])
	}
	return batches
}

// fetchFiles fetches whole files. One that is larger than a batch comes as its reader goes on.
func (t *Tree) fetchFiles(ctx context.Context, files []ID) error {
	b := batch{tree: t, parts: make([][]layer.Part, len(t.layers))}
	for _, id := range files {
		if t.Size(id) <= prefetchBatch {
			b.add(id, nil)
		}
	}
	return b.fetch(ctx)
}

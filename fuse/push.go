package fuse

import (
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// Who lists a directory often reads what is in it next, and a read of a small
// file costs a round trip for a few pages. A pusher puts the content of small
// files into the kernel's page cache after a listing (FUSE_NOTIFY_STORE), for a
// third of that cost and beside the reader. Only a tree that cannot change is
// pushed from, each file once in the life of a mount, and only bytes that are
// in the cache already: nothing is fetched for it.
type pusher struct {
	tree   *union.Tree
	rec    *union.Recorder
	server *gofuse.Server
	queue  chan batch
	stop   chan struct{}
	pushed []atomic.Uint64 // a bit for each node
}

// A batch is the small files of one answer to a listing.
type batch struct {
	ids []union.ID
	at  time.Time
}

const (
	// pushMax is the size of the largest file that is pushed: larger ones gain
	// nothing, since read-ahead fetches them in few requests.
	pushMax = 64 << 10
	// pushDelay is how long a listing's answer takes to reach the kernel's tables, and
	// pushPatience how long on a busy machine. A node that is not there yet cannot be
	// pushed to.
	pushDelay    = 200 * time.Microsecond
	pushPatience = 50 * time.Millisecond
	// pushQueue batches wait at most; what comes then is not pushed.
	pushQueue = 1024
)

func newPusher(fs *union.FS, server *gofuse.Server) *pusher {
	tree := fs.Tree()
	p := &pusher{tree: tree, rec: fs.Recorder(), server: server, queue: make(chan batch, pushQueue), stop: make(chan struct{})}
	p.pushed = make([]atomic.Uint64, tree.Len()/64+1)
	go p.run()
	return p
}

// wants tells whether a node is worth a push, and takes note that it gets one.
func (p *pusher) wants(id union.ID, a *union.Attr) bool {
	if a.Type() != unix.S_IFREG || a.Size == 0 || a.Size > pushMax {
		return false
	}
	bit := uint64(1) << (id % 64)
	return p.pushed[id/64].Or(bit)&bit == 0
}

// add queues files; it never waits.
func (p *pusher) add(ids []union.ID) {
	if p == nil || len(ids) == 0 {
		return
	}
	select {
	case p.queue <- batch{ids, time.Now()}:
	default:
	}
}

func (p *pusher) run() {
	buf := make([]byte, pushMax)
	for {
		select {
		case <-p.stop:
			return
		case b := <-p.queue:
			time.Sleep(pushDelay - time.Since(b.at))
			wait := pushDelay
			for _, id := range b.ids {
				for !p.push(id, buf) && wait < pushPatience {
					time.Sleep(wait)
					wait *= 4
				}
			}
		}
	}
}

// push is a favour: what goes wrong is left to the read that may follow. It reports false
// when the kernel does not know the node, or not yet.
func (p *pusher) push(id union.ID, buf []byte) bool {
	if !p.tree.Cached(id) {
		return true
	}
	n, err := p.tree.ReadAt(newCall(p.stop), id, buf, 0)
	if err != nil || n == 0 {
		return true
	}
	status := p.server.InodeNotifyStoreCache(uint64(id), 0, buf[:n])
	if status.Ok() {
		p.rec.Pushed(id) // its reads will not be seen here
	}
	return status != gofuse.ENOENT
}

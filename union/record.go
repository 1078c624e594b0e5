package union

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/layerfs/layerfs/union/layer"
)

// A Recorder notes which lower files are read while an image starts, and makes
// a Profile of it.
//
// It listens for recordTime from the first read on. A start reads a small part
// of an image; whoever reads more than a quarter of it in that time (tar, grep
// -r, a virus scanner) is not starting, and the profile stays what it was.
// What is read for other reasons than a reader's (prefetch, the page cache) is
// not noted.
type Recorder struct {
	tree *Tree
	old  Profile
	live atomic.Pointer[recording] // nil: listens no more
}

// recording is what was noted so far.
type recording struct {
	parts  []atomic.Uint64 // of each node, by ID-1: a bit for each part of the file that was read
	pushed []atomic.Uint64 // a bit for each node, by ID: its content was given to the kernel, and its reads are not seen
	news   chan struct{}   // holds one: something was noted since the last look

	mu      sync.Mutex
	order   []ID          // protected by mu; in the order of the first read
	bytes   int64         // protected by mu; of the parts
	scan    bool          // protected by mu; more was read than a start reads
	scanned chan struct{} // closed when scan is set
}

const (
	// recordTime is how long a start may take, over a slow link too. A later read
	// belongs to the work, which is another one every time.
	recordTime = time.Minute
	// recordFiles bounds the profile: 20 000 files are a record of 2 MB.
	recordFiles = 20_000
	// recordScan: reading more than one part in so many of the image's bytes or
	// names is no start, unless it is of no more than recordFew files (an image may
	// hold a single program).
	recordScan = 4
	recordFew  = 64
	// maxUnread is how many starts in a row may leave a file out before it drops out.
	maxUnread = 5
	// glance: a run that reads less than one part in so many of the profile's files
	// is no start of the whole (a look at one file), and says nothing of the others.
	glance = 8
	// partsOf is how many parts of a file are told apart: the bits of a word.
	partsOf = 64
	// minPart is the smallest part: the reads of the kernel are no smaller where it reads ahead.
	minPart = 128 << 10
)

// NewRecorder makes a recorder whose profile continues an old one. FS.Record attaches it.
func NewRecorder(t *Tree, old Profile) *Recorder {
	r := &Recorder{tree: t, old: old}
	r.live.Store(&recording{
		parts: make([]atomic.Uint64, t.Len()), pushed: make([]atomic.Uint64, t.Len()/64+1),
		news: make(chan struct{}, 1), scanned: make(chan struct{}),
	})
	return r
}

// partSize is the size of the parts of a file.
func partSize(size int64) int64 {
	return max(minPart, (size+partsOf-1)/partsOf)
}

// note takes note of a read of a lower regular file. A nil Recorder takes none.
// Where nothing is new it costs two atomic loads.
func (r *Recorder) note(id ID, off int64, n int) {
	if r == nil || n <= 0 {
		return
	}
	rec := r.live.Load()
	if rec == nil {
		return
	}
	part := partSize(r.tree.Size(id))
	first, last := off/part, min((off+int64(n)-1)/part, partsOf-1)
	parts := ^uint64(0) << first & (^uint64(0) >> (partsOf - 1 - last))
	if rec.parts[id-1].Load()&parts != parts {
		rec.add(r.tree, id, parts)
	}
}

// add is the slow side of note.
func (rec *recording) add(t *Tree, id ID, parts uint64) {
	before := rec.parts[id-1].Or(parts)
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if before == 0 && len(rec.order) < recordFiles {
		rec.order = append(rec.order, id)
	}
	size := t.Size(id)
	rec.bytes += min(int64(bits.OnesCount64(parts&^before))*partSize(size), size)
	many := len(rec.order) > t.Len()/recordScan || rec.bytes > t.size/recordScan
	if !rec.scan && many && len(rec.order) > recordFew {
		rec.scan = true
		close(rec.scanned)
	}
	select {
	case rec.news <- struct{}{}:
	default:
	}
}

// stop ends the listening: what is read from now on is of another image.
func (r *Recorder) stop() {
	if r != nil {
		r.live.Store(nil)
	}
}

// Pushed says that the kernel was given all of a file before anybody asked: it
// will not ask, and nobody knows whether the file is read.
func (r *Recorder) Pushed(id ID) {
	if r == nil {
		return
	}
	if rec := r.live.Load(); rec != nil {
		rec.pushed[id/64].Or(1 << (id % 64))
	}
}

// Run listens until the start is over or ctx ends, and has the profile saved
// from time to time: soon after the first read, later at longer intervals, and at
// the end. save is called from here alone.
func (r *Recorder) Run(ctx context.Context, save func(Profile)) {
	defer r.live.Store(nil)
	rec := r.live.Load()
	if rec == nil {
		return // stopped
	}
	var over <-chan time.Time
	saved := false
	for pause := time.Second; ; pause *= 2 {
		fresh, ended := rec.wait(ctx, over, 0)
		if !fresh {
			return
		}
		if over == nil {
			over = time.After(recordTime)
		}
		if !ended {
			_, ended = rec.wait(ctx, over, pause)
		}
		p, ok := r.profile(rec)
		if ok {
			save(p)
		} else if saved {
			save(r.old) // what was saved was the beginning of a scan
		}
		if saved = true; !ok || ended {
			return
		}
	}
}

// wait waits for a pause, or without one for something new, and tells whether there is
// something new, and whether it is time to stop.
func (rec *recording) wait(ctx context.Context, over <-chan time.Time, pause time.Duration) (fresh, ended bool) {
	news, timer := rec.news, (<-chan time.Time)(nil)
	if pause > 0 {
		news, timer = nil, time.After(pause)
	}
	select {
	case <-news:
		return true, false
	case <-timer:
		return false, false
	case <-rec.scanned:
	case <-over:
	case <-ctx.Done():
	}
	select {
	case <-rec.news:
		return true, true
	default:
		return false, true
	}
}

// profile is the old profile continued by what was noted; ok is false after a scan.
func (r *Recorder) profile(rec *recording) (p Profile, ok bool) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.scan {
		return p, false
	}
	read := map[string]bool{}
	for _, id := range rec.order {
		f := ProfileFile{Path: r.tree.Path(id), Ranges: rangesOf(rec.parts[id-1].Load(), r.tree.Size(id))}
		read[f.Path] = true
		p.Files = append(p.Files, f)
	}
	counts := len(rec.order)*glance >= len(r.old.Files)
	for _, f := range r.old.Files {
		if read[f.Path] || len(p.Files) == recordFiles {
			continue
		}
		if counts && !rec.wasPushed(r.tree, f.Path) {
			f.Unread++
		}
		if f.Unread < maxUnread {
			p.Files = append(p.Files, f)
		}
	}
	return p, true
}

func (rec *recording) wasPushed(t *Tree, path string) bool {
	id, err := t.Resolve(path)
	return err == nil && rec.pushed[id/64].Load()&(1<<(id%64)) != 0
}

// rangesOf are the parts of a file as ranges; nil when that is the whole file.
func rangesOf(parts uint64, size int64) (list []layer.Range) {
	part := partSize(size)
	for i := range int64(partsOf) {
		off := i * part
		if off >= size || parts&(1<<i) == 0 {
			continue
		}
		n := min(part, size-off)
		if k := len(list) - 1; k >= 0 && list[k].Off+list[k].N == off {
			list[k].N += n
			continue
		}
		list = append(list, layer.Range{Off: off, N: n})
	}
	if len(list) == 1 && list[0] == (layer.Range{N: size}) {
		return nil
	}
	return list
}

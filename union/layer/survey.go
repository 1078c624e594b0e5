package layer

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"math"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/layerfs/layerfs/union/layer/inflate"
)

// A survey finds the sections of a blob while it is read whole. The decoder says where
// they begin; the bytes of the blob come behind it, to be hashed, on a goroutine of
// their own, because the decoder has no time for that.
type survey struct {
	mu    sync.Mutex
	list  []section // protected by mu until the stream has ended; by out
	begun int       // protected by mu; how many of list store has seen

	// Of the goroutine that hashes.
	now     int // the section at hand
	at      int64
	hash    hash.Hash
	before  byte                 // the one at at-1
	head    []byte               // what the section begins with
	windows []inflate.Checkpoint // of the sections, until they are packed
	thin    inflate.Thinner
	packer  *zstd.Encoder
}

const (
	// lookahead is more than a decoder has read beyond where it stands (inflate: 128 KiB).
	lookahead = 256 << 10
	// headSize is what must be seen of a section to tell which bytes of its window are
	// needed: 32 KiB of output hardly ever come from more.
	headSize = 48 << 10
)

func newSurvey() (*survey, error) {
	packer, err := newWindowPacker()
	if err != nil {
		return nil, err
	}
	return &survey{list: make([]section, 1), windows: make([]inflate.Checkpoint, 1), hash: sha256.New(), packer: packer}, nil
}

// begin is called by the decoder: a section begins at c, behind those that began before.
func (v *survey) begin(c inflate.Checkpoint) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list = append(v.list, section{in: c.In, out: c.Out, bits: c.Bits})
	v.windows = append(v.windows, c)
}

// nextCut returns where the first section behind offset out of the tar begins, as far as
// is known. Calls come with rising offsets.
func (v *survey) nextCut(out int64) int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.begun < len(v.list) && v.list[v.begun].out <= out {
		v.begun++
	}
	if v.begun == len(v.list) {
		return math.MaxInt64
	}
	return v.list[v.begun].out
}

// follow hashes the buffers that the decoder has let go of, and passes them on to free. One
// is held back until the decoder is lookahead beyond it, so that the sections that begin
// in it are known.
func (v *survey) follow(spent <-chan []byte, free chan<- []byte) {
	var held [][]byte
	behind := 0
	for b := range spent {
		held = append(held, b)
		behind += len(b)
		for behind-len(held[0]) >= lookahead {
			behind -= len(held[0])
			v.feed(held[0])
			free <- held[0]
			held = held[1:]
		}
	}
	for _, b := range held {
		v.feed(b)
		free <- b
	}
	v.close()
}

func (v *survey) feed(b []byte) {
	for len(b) > 0 {
		n := len(b)
		if next := v.nextStart(); next-v.at < int64(n) {
			n = int(max(next-v.at, 0))
		}
		if n == 0 {
			v.close()
			v.open()
			continue
		}
		v.take(b[:n])
		v.at += int64(n)
		b = b[n:]
	}
}

// nextStart is the first byte that the next section has for itself.
func (v *survey) nextStart() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.now+1 < len(v.list) {
		return v.list[v.now+1].in
	}
	return math.MaxInt64
}

func (v *survey) take(b []byte) {
	v.hash.Write(b)
	v.head = append(v.head, b[:min(len(b), headSize-len(v.head))]...)
	v.before = b[len(b)-1]
}

// close completes the section at hand, which ends here.
func (v *survey) close() {
	v.mu.Lock()
	c := v.windows[v.now]
	v.windows[v.now].Window = nil
	v.mu.Unlock()
	var window []byte
	if len(c.Window) > 0 {
		v.thin.Thin(c, v.head)                                  // not thinned, it is only longer
		window = bytes.Clone(v.packer.EncodeAll(c.Window, nil)) // the encoder makes room for more than it needs
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &v.list[v.now] // only now: the decoder may have moved the list
	s.end, s.window = v.at, window
	v.hash.Sum(s.sum[:0])
}

// open begins the next section, which may share the byte before.
func (v *survey) open() {
	v.hash.Reset()
	v.head = v.head[:0]
	v.now++
	v.mu.Lock()
	shares := v.list[v.now].bits > 0
	v.mu.Unlock()
	if shares {
		v.take([]byte{v.before})
	}
}

// sections returns those of a tar of size bytes, once the stream has ended; none if they
// are of no use.
func (v *survey) sections(size int64) []section {
	for n := len(v.list); n > 0 && v.list[n-1].out >= size; n-- {
		v.list = v.list[:n-1] // nothing comes out of it
	}
	for i := range v.list {
		if s := &v.list[i]; s.end-s.start() > maxSection {
			return nil
		}
	}
	return v.list
}

package layer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/layerfs/layerfs/cache"
	"github.com/layerfs/layerfs/union/layer/inflate"
)

// A section is a run of the blob of a plain tar layer, compressed or not, that can be
// decoded by itself (SOCI calls it a span): it begins at a checkpoint of the
// decoder and ends where the next one begins.
type section struct {
	in     int64             // the first byte of the blob that is needed whole
	end    int64             // one behind its last byte
	out    int64             // where its bytes begin in the tar
	bits   uint8             // of gzip: how many bits of the byte before in belong to it
	window []byte            // of gzip: the window, see packWindow; empty at the start of a member
	sum    [sha256.Size]byte // of bytes start() … end of the blob
}

// start is the first byte of the blob that the section needs, be it in part.
func (s *section) start() int64 {
	if s.bits > 0 {
		return s.in - 1
	}
	return s.in
}

const (
	// sectionSize is the least that comes out of a section but the last: what a random read
	// costs. The windows of half of it would take twice as much; thinned, those of this size
	// and the tree are 0.6 to 0.95 % of Debian's layers.
	sectionSize = 1 << 20
	// maxSection is the longest section that is of use: it is held in memory while its
	// digest is computed. A blob with a longer one is read whole again when its pack is gone.
	maxSection = 64 << 20
)

// sections are the pieces of a layer whose tree came from the tar itself. The pack is
// the tar. What makes their bytes right is the digest of what they are decoded from.
type sections struct {
	coding *compression
	list   []section
	size   int64 // of the tar
	unit   []cache.Unit
	first  []int // the first unit of each section, and the number of units
	idle   sync.Pool
}

// newSections needs at least one section, and no unit of x's that belongs to two.
func newSections(x *index, units []cache.Unit) *sections {
	s := &sections{coding: x.coding, list: x.sections, size: x.size, unit: units}
	for i, u := range units {
		if k := len(s.first); k < len(s.list) && u.Off == s.list[k].out {
			s.first = append(s.first, i)
		}
	}
	s.first = append(s.first, len(units))
	return s
}

// units are those of a pack that is the tar of these sections.
func (x *index) units() []cache.Unit {
	cuts := make([]int64, len(x.sections))
	for i := range x.sections {
		cuts[i] = x.sections[i].out
	}
	units, seal := cache.Units(x.size, cuts), x.seal()
	for i := range units {
		units[i].Sum = seal
	}
	return units
}

func (s *sections) count() int                  { return len(s.list) }
func (s *sections) bounds(i int) (int64, int64) { return s.list[i].start(), s.list[i].end }
func (s *sections) joined(int) bool             { return false } // there is none much shorter than another
func (s *sections) units(i int) (int, int)      { return s.first[i], s.first[i+1] - 1 }

// read decodes on all cores: the sections do not need one another.
func (s *sections) read(body io.Reader, first, last int, put putUnit) error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	var before byte // the one that two sections may share
	at := s.list[first].start()
	for i := first; i <= last; i++ {
		d := s.decoder()
		b := d.room(s.list[i].end - s.list[i].start())
		shared := copy(b, []byte{before}[:at-s.list[i].start()])
		if _, err := io.ReadFull(body, b[shared:]); err != nil {
			return errors.Join(g.Wait(), unexpected(err))
		}
		before, at = b[len(b)-1], s.list[i].end
		g.Go(func() error {
			defer s.idle.Put(d)
			if err := s.decode(d, i, put); err != nil {
				return fmt.Errorf("%w: bytes %d to %d of the blob: %w", ErrDigest, s.list[i].start(), s.list[i].end, err)
			}
			return nil
		})
	}
	return g.Wait()
}

var errSum = errors.New("they are not those of the index")

// decode verifies section i, which is in d, and puts the units that come out of it.
func (s *sections) decode(d *sectionDecoder, i int, put putUnit) error {
	if sum := sha256.Sum256(d.packed); sum != s.list[i].sum {
		return fmt.Errorf("%w: sha256:%x, not sha256:%x", errSum, sum, s.list[i].sum)
	}
	r, err := s.coding.resume(d, &s.list[i])
	if err != nil {
		return err
	}
	first, last := s.units(i)
	for u := first; u <= last; u++ {
		b := d.unit[:s.unit[u].Len]
		if _, err := io.ReadFull(r, b); err != nil {
			return unexpected(err)
		}
		if err := put(u, b); err != nil {
			return err
		}
	}
	return nil
}

// A sectionDecoder is memory for one section at a time.
type sectionDecoder struct {
	packed []byte
	unit   []byte
	window []byte
	gzip   inflate.Reader
	zstd   *zstd.Decoder // nil until it is needed; also for windows
}

func (s *sections) decoder() *sectionDecoder {
	if d, ok := s.idle.Get().(*sectionDecoder); ok {
		return d
	}
	return &sectionDecoder{unit: make([]byte, cache.UnitSize)}
}

// room is where n bytes of the blob go.
func (d *sectionDecoder) room(n int64) []byte {
	if int64(cap(d.packed)) < n {
		d.packed = make([]byte, n)
	}
	d.packed = d.packed[:n]
	return d.packed
}

func (d *sectionDecoder) unzstd() (*zstd.Decoder, error) {
	var err error
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	}
	return d.zstd, err
}

// resumeGzip goes on at a checkpoint; the first section begins with a member's header.
func resumeGzip(d *sectionDecoder, s *section) (io.Reader, error) {
	if s.in == 0 {
		d.gzip.Reset(bytes.NewReader(d.packed), inflate.Options{})
		return &d.gzip, nil
	}
	c := inflate.Checkpoint{In: s.in, Bits: s.bits, Out: s.out}
	if len(s.window) > 0 {
		z, err := d.unzstd()
		if err != nil {
			return nil, err
		}
		if d.window, err = z.DecodeAll(s.window, d.window[:0]); err != nil {
			return nil, fmt.Errorf("window: %w", err)
		}
		c.Window = d.window
	}
	return &d.gzip, d.gzip.Resume(bytes.NewReader(d.packed), c, false)
}

// resumeZstd begins with a frame.
func resumeZstd(d *sectionDecoder, _ *section) (io.Reader, error) {
	z, err := d.unzstd()
	if err != nil {
		return nil, err
	}
	return z, z.Reset(bytes.NewReader(d.packed))
}

func resumeTar(d *sectionDecoder, _ *section) (io.Reader, error) {
	return bytes.NewReader(d.packed), nil
}

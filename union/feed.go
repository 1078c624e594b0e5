package union

import (
	"errors"
	"io"
)

// A feed hands what is written to a reader in another goroutine, without
// copying it: a Write returns when all of p was read or skipped. The reader may
// skip forward by Seek, which archive/tar uses to pass over content.
type feed struct {
	blocks chan []byte
	taken  chan struct{} // the last block was used up
	gone   chan struct{} // closed when the reader wants no more

	// of the reader
	block []byte
	holds bool // a block that taken was not told of
	off   int64
}

var errNoReader = errors.New("the reader has gone")

func newFeed() *feed {
	return &feed{blocks: make(chan []byte), taken: make(chan struct{}), gone: make(chan struct{})}
}

func (f *feed) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	select {
	case f.blocks <- p:
	case <-f.gone:
		return 0, errNoReader
	}
	select {
	case <-f.taken:
		return len(p), nil
	case <-f.gone:
		return 0, errNoReader
	}
}

// end is what the writer calls last: the reader sees io.EOF.
func (f *feed) end() { close(f.blocks) }

// leave is what the reader calls last.
func (f *feed) leave() { close(f.gone) }

// fill waits for a block when the last one is used up.
func (f *feed) fill() error {
	if len(f.block) > 0 {
		return nil
	}
	if f.holds {
		f.holds = false
		f.taken <- struct{}{}
	}
	block, ok := <-f.blocks
	if !ok {
		return io.EOF
	}
	f.block, f.holds = block, true
	return nil
}

func (f *feed) advance(n int) {
	f.block, f.off = f.block[n:], f.off+int64(n)
}

func (f *feed) Read(p []byte) (int, error) {
	if err := f.fill(); err != nil {
		return 0, err
	}
	n := copy(p, f.block)
	f.advance(n)
	return n, nil
}

var errSeek = errors.New("a feed goes forward only")

// Seek knows io.SeekCurrent, forward.
func (f *feed) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 {
		return 0, errSeek
	}
	for n > 0 {
		if err := f.fill(); err == io.EOF {
			return f.off, io.ErrUnexpectedEOF
		}
		k := int(min(n, int64(len(f.block))))
		f.advance(k)
		n -= int64(k)
	}
	return f.off, nil
}

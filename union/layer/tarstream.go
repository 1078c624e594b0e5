package layer

import "io"

const blockSize = 512

// A tarStream is the uncompressed bytes of a layer on their way through the tar
// parser, which needs few of them: bodies are passed over, never copied.
type tarStream struct {
	next func() ([]byte, error) // the next bytes, valid until the next call; never empty without an error
	buf  []byte
	off  int64          // of buf in the stream
	tap  func(b []byte) // gets all bytes in their order, as they are passed; may be nil
}

func (s *tarStream) more() error {
	if len(s.buf) > 0 {
		return nil
	}
	b, err := s.next()
	s.buf = b
	return err
}

func (s *tarStream) advance(n int) {
	if s.tap != nil {
		s.tap(s.buf[:n])
	}
	s.buf = s.buf[n:]
	s.off += int64(n)
}

// Read is io.Reader's.
func (s *tarStream) Read(p []byte) (int, error) {
	if err := s.more(); err != nil {
		return 0, err
	}
	n := copy(p, s.buf)
	s.advance(n)
	return n, nil
}

// skip passes over n bytes; the error is io.ErrUnexpectedEOF when there are fewer.
func (s *tarStream) skip(n int64) error {
	for n > 0 {
		if err := s.more(); err != nil {
			return unexpected(err)
		}
		k := min(n, int64(len(s.buf)))
		s.advance(int(k))
		n -= k
	}
	return nil
}

// drain passes over all that is left.
func (s *tarStream) drain() error {
	for {
		switch err := s.more(); err {
		case nil:
			s.advance(len(s.buf))
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// unexpected makes the end of a stream an error.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// tarStreamOf reads from r.
func tarStreamOf(r io.Reader) *tarStream {
	buf := make([]byte, 64<<10)
	return &tarStream{next: func() ([]byte, error) {
		n, err := r.Read(buf)
		for n == 0 && err == nil {
			n, err = r.Read(buf)
		}
		if n > 0 {
			err = nil // it comes again
		}
		return buf[:n], err
	}}
}

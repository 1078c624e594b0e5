package forensic

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrEvidence says that an evidence log is not as it was written.
var ErrEvidence = errors.New("the evidence log is broken")

// An evidenceLine is one line of an evidence log. Each holds the SHA-256 of the line before,
// without its newline, so that a line that is changed, taken out or put in breaks the chain
// at the next; what is cut off at the end shows when the last hash was written down elsewhere.
type evidenceLine struct {
	Seq   int64           `json:"seq"`  // from 1
	Time  time.Time       `json:"time"` // UTC
	Prev  string          `json:"prev"` // of the first line: 64 zeros
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data,omitempty"`
}

var noLine = strings.Repeat("0", 2*sha256.Size)

// An Evidence is an evidence log that is being written. It is safe for concurrent use.
type Evidence struct {
	mu  sync.Mutex
	f   *os.File // protected by mu
	sum EvidenceSummary
	err error // protected by mu; the first: after it nothing is written
}

// An EvidenceSummary is what a log holds.
type EvidenceSummary struct {
	Lines       int64
	First, Last time.Time
	Head        string // SHA-256 of the last line
}

// OpenEvidence opens an evidence log for appending, with mode 0600, or makes it. A log that
// is there is verified first, and gone on with; errors wrap ErrEvidence when it is broken.
// One process at a time has it.
func OpenEvidence(path string) (*Evidence, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open evidence log: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("open evidence log %s: another process writes it: %w", path, err), f.Close())
	}
	sum, err := VerifyEvidence(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open evidence log %s: %w; keep it as it is, and name another file", path, err), f.Close())
	}
	return &Evidence{f: f, sum: sum}, nil
}

// Add appends a line. The first error stays: a log with a gap is none.
func (e *Evidence) Add(event string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("evidence log: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	l := evidenceLine{Seq: e.sum.Lines + 1, Time: time.Now().UTC(), Prev: e.sum.head(), Event: event, Data: b}
	if b, err = json.Marshal(l); err == nil {
		_, err = e.f.Write(append(b, '\n'))
	}
	if err != nil {
		e.err = fmt.Errorf("evidence log: %w", err)
		return e.err
	}
	e.sum.add(l, b)
	return nil
}

// Sync waits until all lines are on the disk.
func (e *Evidence) Sync() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(e.err, e.f.Sync())
}

// Close syncs and closes the log.
func (e *Evidence) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(e.f.Sync(), e.f.Close())
}

// Summary is what the log holds now.
func (e *Evidence) Summary() EvidenceSummary {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sum
}

func (s *EvidenceSummary) head() string {
	if s.Lines == 0 {
		return noLine
	}
	return s.Head
}

func (s *EvidenceSummary) add(l evidenceLine, raw []byte) {
	if s.Lines++; s.Lines == 1 {
		s.First = l.Time
	}
	h := sha256.Sum256(raw)
	s.Last, s.Head = l.Time, hex.EncodeToString(h[:])
}

// maxEvidenceLine is the longest line that is read: ours have some hundred bytes, and at
// most a URL.
const maxEvidenceLine = 1 << 20

// VerifyEvidence reads a log to its end. Errors wrap ErrEvidence and name the first line
// that does not fit; the summary is that of the lines before it.
func VerifyEvidence(r io.Reader) (s EvidenceSummary, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		raw, err := readLine(in)
		if err == io.EOF {
			return s, nil
		}
		if err == nil {
			err = s.follow(raw)
		}
		if err != nil {
			return s, fmt.Errorf("%w: line %d: %w", ErrEvidence, s.Lines+1, err)
		}
	}
}

// readLine returns a line without its newline, or io.EOF when there is none.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if line = append(line, part...); len(line) > maxEvidenceLine {
			return nil, errors.New("it is too long")
		}
		switch {
		case err == bufio.ErrBufferFull:
		case err == io.EOF && len(line) > 0:
			return nil, errors.New("it was cut off")
		case err != nil:
			return nil, err
		default:
			return bytes.TrimSuffix(line, []byte("\n")), nil
		}
	}
}

// follow checks that a line follows those before it.
func (s *EvidenceSummary) follow(raw []byte) error {
	var l evidenceLine
	if err := json.Unmarshal(raw, &l); err != nil {
		return err
	}
	switch {
	case l.Prev != s.head() && s.Lines == 0:
		return errors.New("it is not the first of a log: lines before it are missing")
	case l.Prev != s.head():
		return fmt.Errorf("the line before it has the SHA-256 %s, not %s: one of both was changed, or lines between them are missing", s.head(), l.Prev)
	case l.Seq != s.Lines+1:
		return fmt.Errorf("it has the number %d", l.Seq)
	}
	s.add(l, raw)
	return nil
}

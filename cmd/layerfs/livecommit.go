package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/layerfs/layerfs/union"
)

// A commit of a live mount is a point in time: the server, through which all
// writes go, marks it and writes the tar. On the socket: a commitAnswer, and if
// there are changes the tar in frames (a length of 4 bytes, big endian, and so
// many bytes; length 0 ends it) and one commitAnswer more. They are one line of JSON each.
type commitAnswer struct {
	Marked  bool             `json:"marked"` // false from a server that knows nothing of this
	Changed bool             `json:"changed,omitempty"`
	Result  *union.TarResult `json:"result,omitempty"`
	Error   string           `json:"error,omitempty"`
	Code    int              `json:"code,omitempty"` // exit code that Error has
}

func (a *commitAnswer) setError(err error) {
	if err != nil {
		a.Error, a.Code = message(err), exitCode(err)
	}
}

func (a *commitAnswer) err() error {
	if a.Error == "" {
		return nil
	}
	return &exitError{a.Code, errors.New(a.Error)}
}

// answerCommit is the server's side. The moment ends when the client goes.
func (s *server) answerCommit(ctx context.Context, c net.Conn, q controlRequest) {
	_ = c.SetDeadline(time.Time{})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	requests := awaitGoOn(c, cancel)
	begun := time.Now()
	m, a := s.mark(ctx, q.Tar.Squash)
	if m != nil {
		defer m.Close()
		s.e.log.Info("commit: marked", "took", time.Since(begun))
	}
	out := json.NewEncoder(c)
	if out.Encode(a) != nil || a.Error != "" {
		return
	}
	if m != nil {
		s.sendLayer(ctx, c, out, m, q.Tar)
	}
	if q.GoOn {
		s.answerGoOn(ctx, m, requests, out)
	}
}

// sendLayer writes the tar, and what came of it.
func (s *server) sendLayer(ctx context.Context, c net.Conn, out *json.Encoder, m *union.Moment, o union.TarOptions) {
	w := bufio.NewWriterSize(&frameWriter{c}, maxFrame)
	result, err := m.WriteTar(ctx, w, o)
	if err != nil {
		s.e.log.Error("commit", "err", err)
	} else {
		err = w.Flush()
	}
	last := commitAnswer{Marked: true, Result: &result}
	last.setError(err)
	if _, err := c.Write(make([]byte, 4)); err == nil {
		_ = out.Encode(last)
	}
}

// mark marks the moment if there is anything to commit, or anyway; a is what to answer.
func (s *server) mark(ctx context.Context, anyway bool) (m *union.Moment, a commitAnswer) {
	a.Marked = true
	changed, err := s.fs.Changed(ctx)
	if err == nil && (changed || anyway) {
		m, err = s.markSoon(ctx)
	}
	if errors.Is(err, union.ErrMarked) {
		err = fmt.Errorf("%s: %w; wait for it, or end it", s.plan.dir, err)
	}
	a.setError(err)
	a.Changed = m != nil
	return m, a
}

// markSoon waits a little for another commit to end: its client may just have been killed.
func (s *server) markSoon(ctx context.Context) (*union.Moment, error) {
	for begun := time.Now(); ; {
		m, err := s.fs.Mark(ctx)
		if !errors.Is(err, union.ErrMarked) || time.Since(begun) > controlPatience {
			return m, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// maxFrame is the largest frame.
const maxFrame = 1 << 20

type frameWriter struct{ w io.Writer }

func (f *frameWriter) Write(p []byte) (done int, err error) {
	for len(p) > 0 {
		n := min(len(p), maxFrame)
		var head [4]byte
		binary.BigEndian.PutUint32(head[:], uint32(n))
		if _, err := f.w.Write(head[:]); err != nil {
			return done, err
		}
		k, err := f.w.Write(p[:n])
		if done += k; err != nil {
			return done, err
		}
		p = p[n:]
	}
	return done, nil
}

// A liveCommit is the client's side.
type liveCommit struct {
	conn net.Conn
	in   *bufio.Reader
	goOn bool // more is said after the layer
}

// startLiveCommit has the server mark the moment. changed is false, and there is
// no commit, when nothing was written since the mount began.
//
// With goOn the commit is there in any case, and stays open until its connection is closed.
func startLiveCommit(dir string, o union.TarOptions, goOn bool) (l *liveCommit, changed bool, err error) {
	c, err := dialControl(dir, controlRequest{Do: "commit", Tar: o, GoOn: goOn})
	if err != nil {
		return nil, false, fmt.Errorf("ask the server of the mount: %w", err)
	}
	_ = c.SetDeadline(time.Time{}) // to look for changes takes as long as it takes
	l = &liveCommit{c, bufio.NewReaderSize(c, 256<<10), goOn}
	a, err := l.answer()
	if err != nil || !a.Changed && !goOn {
		return nil, false, errors.Join(err, c.Close())
	}
	return l, a.Changed, nil
}

func (l *liveCommit) answer() (a commitAnswer, err error) {
	line, err := l.in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	switch {
	case err != nil:
		return a, fmt.Errorf("the server of the mount broke off: %w", err)
	case !a.Marked:
		return a, errors.New("the server of the mount is of another version; unmount, and commit what is kept of the mountpoint")
	}
	return a, a.err()
}

// writeTar passes the tar on, and closes the connection unless more is to be said.
func (l *liveCommit) writeTar(ctx context.Context, w io.Writer) (result union.TarResult, err error) {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	defer stop()
	if !l.goOn {
		defer func() { _ = l.conn.Close() }()
	}
	buf := make([]byte, 256<<10) // each is handed to the compressor by itself
	for {
		var head [4]byte
		if _, err := io.ReadFull(l.in, head[:]); err != nil {
			return result, fmt.Errorf("the server of the mount broke off: %w", err)
		}
		n := int64(binary.BigEndian.Uint32(head[:]))
		if n == 0 {
			break
		}
		if err := copyFrame(w, l.in, n, buf); err != nil {
			return result, fmt.Errorf("take the layer from the server of the mount: %w", err)
		}
	}
	a, err := l.answer()
	if a.Result != nil {
		result = *a.Result
	}
	return result, err
}

func copyFrame(w io.Writer, r io.Reader, n int64, buf []byte) error {
	k, err := io.CopyBuffer(w, io.LimitReader(r, n), buf)
	if err == nil && k < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

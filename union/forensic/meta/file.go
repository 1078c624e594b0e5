package meta

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"syscall"

	"github.com/layerfs/layerfs/union"
)

// files are the states of the files that somebody has looked up. The kernel
// keeps a node's pages and size; so every state is a node of its own, and its name is asked
// for at each open.
type files struct {
	mu     sync.Mutex
	last   uint32              // protected by mu; begins anywhere: a server before this one has given numbers too
	states map[union.ID]*state // protected by mu
	latest []union.ID          // protected by mu; of each file, 0: none
}

type state struct {
	data []byte
	refs uint64
}

func (s *files) init(n int) {
	s.last, s.states, s.latest = rand.Uint32(), map[union.ID]*state{}, make([]union.ID, n)
}

// look is the node of what file i holds now.
func (s *files) look(i int, x File) (union.ID, error) {
	b, err := x.Data()
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.latest[i]
	if st := s.states[id]; st != nil && bytes.Equal(st.data, b) {
		st.refs++
		return id, nil
	}
	s.last++
	id = node{fileNode, uint32(i), s.last}.id()
	s.states[id], s.latest[i] = &state{b, 1}, id
	return id, nil
}

func (s *files) forget(id union.ID, refs uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[id]; st != nil {
		if st.refs -= min(refs, st.refs); st.refs == 0 {
			delete(s.states, id)
		}
	}
}

func (s *files) get(id union.ID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[id]; st != nil {
		return st.data, nil
	}
	return nil, syscall.ESTALE
}

func (s *files) size(id union.ID) (int64, error) {
	b, err := s.get(id)
	return int64(len(b)), err
}

func (s *files) readAt(id union.ID, p []byte, off int64) (int, error) {
	b, err := s.get(id)
	if err != nil || off >= int64(len(b)) {
		return 0, err
	}
	return copy(p, b[off:]), nil
}

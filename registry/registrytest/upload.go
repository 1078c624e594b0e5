package registrytest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
)

// An upload collects the bytes of a blob to be, in memory or in a file.
type upload struct {
	repo string

	mu    sync.Mutex // protects what follows: one chunk at a time
	size  int64
	sum   digest.Digester // of the canonical algorithm, in passing
	mem   bytes.Buffer
	file  *os.File // nil: in memory
	ended bool
}

// begin opens an upload and gives its id.
func (d *data) begin(repo string) (string, *upload, error) {
	u := &upload{repo: repo, sum: digest.Canonical.Digester()}
	if d.dir != "" {
		if err := os.MkdirAll(filepath.Join(d.dir, "uploads"), 0o700); err != nil {
			return "", nil, err
		}
		f, err := os.CreateTemp(filepath.Join(d.dir, "uploads"), "blob")
		if err != nil {
			return "", nil, err
		}
		u.file = f
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last++
	id := fmt.Sprintf("%08x", d.last)
	d.uploads[id] = u
	return id, u, nil
}

// upload finds an upload of the repository.
func (d *data) upload(repo, id string) (*upload, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.uploads[id]
	return u, u != nil && u.repo == repo
}

// OpenUploads is the number of uploads that were begun, and neither closed nor given up.
func (s *Server) OpenUploads() int {
	s.data.mu.Lock()
	defer s.data.mu.Unlock()
	return len(s.data.uploads)
}

// end forgets an upload and what it holds.
func (d *data) end(id string) {
	d.mu.Lock()
	u := d.uploads[id]
	delete(d.uploads, id)
	d.mu.Unlock()
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ended = true
	if u.file != nil {
		_ = u.file.Close()           // what was written is thrown away, or under its own name
		_ = os.Remove(u.file.Name()) // gone already when it was published
	}
}

// append adds what r has. What came before an error stays, as in a real registry.
func (u *upload) append(r io.Reader) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return fmt.Errorf("append to upload: %w", os.ErrClosed)
	}
	var w io.Writer = &u.mem
	if u.file != nil {
		w = u.file
	}
	n, err := io.Copy(io.MultiWriter(w, u.sum.Hash()), r)
	u.size += n
	return err
}

func (u *upload) length() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

// digest of what is there; "" when it cannot be read.
func (u *upload) digest(a digest.Algorithm) digest.Digest {
	u.mu.Lock()
	defer u.mu.Unlock()
	if a == digest.Canonical {
		return u.sum.Digest()
	}
	if u.file == nil {
		return a.FromBytes(u.mem.Bytes())
	}
	d, err := a.FromReader(io.NewSectionReader(u.file, 0, u.size))
	if err != nil {
		return ""
	}
	return d
}

// publish hands the bytes over to the store under their digest.
func (u *upload) publish(d *data, dg digest.Digest) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.file == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.blobs[dg] = u.mem.Bytes()
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(d.blobFile(dg)), 0o700); err != nil {
		return err
	}
	return os.Rename(u.file.Name(), d.blobFile(dg))
}

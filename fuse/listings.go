package fuse

import (
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"sync"
)

// A position in a listing counts the names before it, and belongs to one
// listing: names that come and go move it. So the names of every listing under way are
// written to a file, for a server that has to go on with it. It only has to
// survive the process and is not synced. A nil *listings keeps nothing.
type listings struct {
	mu  sync.Mutex
	f   *os.File
	end int64 // protected by mu
	had map[uint64][]string
	log *slog.Logger
}

const (
	// listingsMax is how far the file may grow before it begins anew, once no directory is open.
	listingsMax = 1 << 20
	// listingMax bounds what is read of one listing: a directory of four million names.
	listingMax = 256 << 20
)

// newListings reads what an earlier server left.
func newListings(f *os.File, log *slog.Logger) *listings {
	if f == nil {
		return nil
	}
	l := &listings{f: f, log: log}
	st, err := f.Stat()
	if err != nil {
		log.Warn("listings are not kept", slog.Any("error", err))
		return nil
	}
	l.had, l.end = readListings(io.NewSectionReader(f, 0, st.Size()))
	return l
}

// keep writes down a listing that begins; idle tells that no other is under way.
func (l *listings) keep(fh uint64, names []string, idle bool) {
	if l == nil {
		return
	}
	b := appendListing(nil, fh, names)
	l.mu.Lock()
	defer l.mu.Unlock()
	if idle && l.end > listingsMax && len(l.had) == 0 && l.f.Truncate(0) == nil {
		l.end = 0
	}
	if _, err := l.f.WriteAt(b, l.end); err != nil {
		l.log.Warn("a listing is not kept", slog.Any("error", err))
		return
	}
	l.end += int64(len(b))
}

// of is a listing that an earlier server began.
func (l *listings) of(fh uint64) []string {
	if l == nil {
		return nil
	}
	return l.had[fh]
}

// appendListing is the form in the file: handle, length of the rest, names that end with a zero byte.
func appendListing(b []byte, fh uint64, names []string) []byte {
	size := 0
	for _, name := range names {
		size += len(name) + 1
	}
	b = binary.LittleEndian.AppendUint64(b, fh)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	for _, name := range names {
		b = append(append(b, name...), 0)
	}
	return b
}

// readListings reads up to the first record that is not whole, and tells where it begins.
func readListings(r io.Reader) (had map[uint64][]string, end int64) {
	had = map[uint64][]string{}
	var head [12]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return had, end
		}
		size := binary.LittleEndian.Uint32(head[8:])
		if size > listingMax {
			return had, end
		}
		body, err := io.ReadAll(io.LimitReader(r, int64(size)))
		if err != nil || len(body) != int(size) || size > 0 && body[size-1] != 0 {
			return had, end
		}
		had[binary.LittleEndian.Uint64(head[:])] = splitNames(body)
		end += int64(len(head)) + int64(size)
	}
}

func splitNames(b []byte) []string {
	names := []string{}
	begin := 0
	for i, c := range b {
		if c == 0 {
			names = append(names, string(b[begin:i]))
			begin = i + 1
		}
	}
	return names
}

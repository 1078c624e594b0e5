// Package cache keeps verified bytes on the local disk. It knows digests, units and files; it knows nothing of images, tar or registries.
//
// A [Store] is a directory that several processes may use at once. For every
// layer it holds a [Pack] (the unpacked bytes, a sparse file, and a map of the
// units that are there) and an index (opaque to this package). Small named
// records (manifests, configs, tag → digest) live beside them.
//
// Nothing unverified can be read back: a unit counts as there only after its
// sum matched, a whole pack only after [Writer.Commit].
//
// # On disk
//
//	DIR/lock                        the door: flock'ed for the moment files appear or disappear
//	DIR/layers/<alg>/<hex>/pack     data, map, regions, header (format.go); a shared flock says "in use"
//	DIR/layers/<alg>/<hex>/index    sealed bytes (seal.go)
//	DIR/layers/<alg>/<hex>/pinned   empty: the layer is evicted last
//	DIR/records/<sha256 of name>    sealed bytes
//	DIR/locks/<alg>-<hex>           what [Store.Lock] locks
//	DIR/tmp/*                       files not published yet, each with a shared flock of its writer
//	DIR/evict                       flock'ed by who makes room
//
// Nothing in it is reached through a symbolic link. Who opens the store must have made sure that the directory is his own.
//
// The modification time of a layer's directory is the time it was last used.
//
// # Crashes
//
// Every file proves itself: records and indexes by a checksum, units by the
// CRC-32C in the map, the map by the header. So nothing here waits for the
// disk before it may be used: a file is renamed to its place at once, and
// reaches the disk in the background ([Store.Close] waits for it). What a kill
// leaves behind is valid, because data is written before its mark and both are
// in the page cache. What a power loss leaves behind may not be; the header
// therefore holds the boot id and is marked clean only after an fsync, and a
// pack of another boot that is not clean is thrown away.
//
// # Size
//
// Who writes keeps the directory below [Options.MaxBytes]: evict.go says how. Packs are evicted
// by regions of 1 MiB, while others read them: region.go has the protocol.
//
// # Locks
//
// In a process: budget.mu; the door; region.mu; a stripe of a content; content.writing;
// content.mu. Store.mu and overlay.mu are held alone. Between processes: the file evict; the door; then a pack's flock, which is
// taken exclusively only behind the door, or the byte of a region. No lock is held while a [Fill] runs, but for
// a region that a reader holds whose bytes were evicted twice: it is only kept from evictions.
package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	// The digest algorithms that names may use.
	_ "crypto/sha256"
	_ "crypto/sha512"

	"github.com/opencontainers/go-digest"
)

var (
	// ErrCorrupt says that bytes do not have the sum they must have: those given to put,
	// or those on the disk where nobody can fetch them again.
	ErrCorrupt = errors.New("corrupt")
	// ErrInUse says that a process has the pack open.
	ErrInUse = errors.New("in use")
)

// Options of a [Store].
type Options struct {
	// MaxBytes is what the directory may take on the disk; 0 is no limit. Who writes evicts
	// what was used least recently, also of packs that are in use. Where that does not make room
	// enough, units stay in memory for a while, and only what cannot be had in parts goes beyond it.
	MaxBytes int64
	// Logger gets one line per handled error; nil discards.
	Logger *slog.Logger
}

// A Store is a cache directory. Its methods may be called by several goroutines, and
// several processes may have the same directory open.
type Store struct {
	dir  string
	max  int64
	log  *slog.Logger
	boot bootID
	disk disk
	door *door

	budget budget

	// ctx is what fills run under; it ends with Close.
	ctx    context.Context
	cancel context.CancelFunc
	// bg counts the work that goes on behind the caller's back: fsync, GC.
	bg sync.WaitGroup

	mu   sync.Mutex
	open map[digest.Digest]*content // protected by mu; the packs this process has open
	// closing holds the packs that were closed and are still on their way to the disk.
	closing map[*content]chan struct{} // protected by mu
}

// Open opens the store in dir, which is created (mode 0700) where it is missing, and
// removes what dead processes left in it. The caller closes it.
func Open(dir string, o Options) (*Store, error) {
	for _, d := range []string{"", "layers", "records", "locks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("open cache: %w", err)
		}
	}
	dr, err := openDoor(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	s := &Store{dir: dir, max: o.MaxBytes, log: o.Logger, boot: currentBoot(), disk: osDisk{}, door: dr,
		open: map[digest.Digest]*content{}, closing: map[*content]chan struct{}{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if _, err := s.sweep(); err != nil {
		s.log.Warn("sweep cache", "dir", dir, "err", err)
	}
	return s, nil
}

// Close ends the fills that still run, waits until everything published is on the disk,
// and leaves the directory to others. Packs must be closed before.
func (s *Store) Close() error {
	s.cancel()
	s.bg.Wait()
	return s.door.close()
}

// layerDir is where the pack and the index of d live.
func (s *Store) layerDir(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d, err)
	}
	return filepath.Join(s.dir, "layers", d.Algorithm().String(), d.Encoded()), nil
}

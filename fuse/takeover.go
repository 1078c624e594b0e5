package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A Connection is what of a mount outlives its server: the kernel's side of it
// stays as long as some process has the descriptor open. A new server on it
// goes on where the last one ended, and gets the requests again that had no
// answer (FUSE_NOTIFY_RESEND of linux/fuse.h, since Linux 6.9).
//
// It works without a state of ours that would have to be saved, because all
// that the kernel holds of us says by itself what it stands for: a node's
// number (union.ID) and a file's handle (handleOf). A request that comes again
// may have been carried out: see resent.
type Connection struct {
	FD         int    `json:"-"`          // of /dev/fuse
	Hello      []byte `json:"hello"`      // the kernel's INIT request, which comes once in the life of a mount
	Generation uint64 `json:"generation"` // servers that were there before; set by who starts them
}

// Survives tells whether the kernel sends requests again. Where it does not,
// those under way when a server dies would wait for ever.
func (c *Connection) Survives() bool {
	const initExt = 1 << 30          // FUSE_INIT_EXT: there are flags2
	const hasResend = 1 << (39 - 32) // FUSE_HAS_RESEND
	if len(c.Hello) < headerSize+20 {
		return false
	}
	init := c.Hello[headerSize:] // struct fuse_init_in: major, minor, max_readahead, flags, flags2
	flags, flags2 := binary.NativeEndian.Uint32(init[12:]), binary.NativeEndian.Uint32(init[16:])
	return flags&initExt != 0 && flags2&hasResend != 0
}

// headerSize is that of struct fuse_in_header.
const headerSize = 40

// Alive tells whether the mount is still there: the descriptor of one that has gone has an error for poll(2).
func (c *Connection) Alive() bool {
	p := []unix.PollFd{{Fd: int32(c.FD)}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
}

// resend asks the kernel for the requests that were read and not answered.
func (c *Connection) resend() error {
	b := make([]byte, 16) // struct fuse_out_header: len, error (for a notice: its code), unique 0
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], uint32(-gofuse.NOTIFY_RESEND))
	_, err := unix.Write(c.FD, b)
	if err == unix.ENODEV || err == unix.EPERM { // unmounted: reading will say so
		return nil
	}
	return err
}

// Pause lets no request begin any more, and waits for those under way, at most
// for a while: a read may be waiting for a registry, and can come again. The
// process must end after it, and another server go on.
func (s *Server) Pause() {
	const (
		atMost = 2 * time.Second
		toTell = 20 * time.Millisecond // for the answer to a request that has just been carried out
	)
	done := make(chan struct{})
	go func() {
		s.core.gate.Lock()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(atMost):
	}
	time.Sleep(toTell)
}

// resentBit marks a request that comes for the second time (FUSE_UNIQUE_RESEND).
const resentBit = 1 << 63

// resent tells whether a request comes again because the server that got it
// first died before it answered, so that it may have been carried out.
//
// Nothing needs to be written down to find out. While the kernel waits for the
// answer to a change of names it holds the directory's lock, and it has looked
// the names up before under that lock: it asks to make only what is not there,
// and to remove only what is. So an EEXIST for a name that is to be made, or an
// ENOENT for one that is to go, can only be our own doing.
func resent(in *gofuse.InHeader) bool { return in.Unique&resentBit != 0 }

// greet makes the library's server. It insists on an INIT request, so it gets
// one on a socket: the kernel's, or the one that the kernel sent to the first
// server of this connection, whose answer is then thrown away. After that the
// connection takes the socket's place. c.FD stays the caller's.
func greet(fs gofuse.RawFileSystem, c *Connection, p *gofuse.MountOptions) (*gofuse.Server, error) {
	fresh := len(c.Hello) == 0
	if fresh {
		if err := c.readHello(); err != nil {
			return nil, err
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	if _, err := unix.Write(pair[0], c.Hello); err != nil {
		return nil, errors.Join(fmt.Errorf("pass on INIT: %w", err), unix.Close(pair[1]))
	}
	server, err := gofuse.NewServer(fs, "/dev/fd/"+strconv.Itoa(pair[1]), p) // owns pair[1]
	if err != nil {
		return nil, err
	}
	if fresh {
		if err := passAnswer(pair[0], c.FD); err != nil {
			return nil, err
		}
	}
	if err := unix.Dup3(c.FD, pair[1], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("put the connection in place: %w", err)
	}
	return server, nil
}

// helloMax is larger than any INIT request; a read below 8192 bytes is EINVAL (FUSE_MIN_READ_BUFFER).
const helloMax = 64 << 10

func (c *Connection) readHello() error {
	b := make([]byte, helloMax)
	for {
		n, err := unix.Read(c.FD, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read INIT: %w", err)
		}
		c.Hello = b[:n:n]
		return nil
	}
}

func passAnswer(from, to int) error {
	b := make([]byte, helloMax)
	n, err := unix.Read(from, b)
	if err == nil {
		_, err = unix.Write(to, b[:n])
	}
	if err != nil {
		return fmt.Errorf("answer INIT: %w", err)
	}
	return nil
}

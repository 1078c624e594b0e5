package fuse

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/layerfs/layerfs/union"
)

// errnoOf is the one place where an error becomes what a system call returns.
//
// A DataError comes first and is EIO whatever it wraps: its chain may hold the
// ENOENT of a cache file or the ECONNREFUSED of a socket, and a process must
// not take the state of a registry for the state of a file. After it the first
// errno of the chain decides, then the errors of the standard library that have
// one meaning. A caller who left is EINTR (call.status sees that before). Anything else is EIO: the machinery
// broke, not the tree.
func errnoOf(err error) syscall.Errno {
	var data *union.DataError
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &data):
		return syscall.EIO
	case errors.As(err, &errno):
		return kernelErrno(errno)
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, fs.ErrExist):
		return syscall.EEXIST
	case errors.Is(err, fs.ErrPermission):
		return syscall.EPERM
	case errors.Is(err, fs.ErrInvalid):
		return syscall.EINVAL
	case errors.Is(err, errors.ErrUnsupported):
		return syscall.EOPNOTSUPP
	}
	return syscall.EIO
}

// maxErrno is the last error number the kernel takes from a server (fuse_dev_do_write in fs/fuse/dev.c).
const maxErrno = 511

// kernelErrno keeps numbers from the kernel that would not do as a reply. ENOSYS
// would switch the operation off for the whole mount (fuse_conn.no_* in fs/fuse/fuse_i.h).
func kernelErrno(e syscall.Errno) syscall.Errno {
	switch {
	case e == syscall.ENOSYS:
		return syscall.EOPNOTSUPP
	case e > maxErrno:
		return syscall.EIO
	}
	return e
}

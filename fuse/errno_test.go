package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"github.com/layerfs/layerfs/union"
)

func TestErrno(t *testing.T) {
	data := func(err error) error { return &union.DataError{Path: "a", Err: err} }
	for _, tt := range []struct {
		name string
		err  error
		want syscall.Errno
	}{
		{"nil", nil, 0},
		{"errno", syscall.ENOTEMPTY, syscall.ENOTEMPTY},
		{"wrapped errno", fmt.Errorf("copy up: %w", syscall.ENOSPC), syscall.ENOSPC},
		{"path error", &os.PathError{Op: "open", Err: syscall.EDQUOT}, syscall.EDQUOT},
		{"data", data(errors.New("no route")), syscall.EIO},
		{"data with ENOENT below", data(fmt.Errorf("open cache: %w", syscall.ENOENT)), syscall.EIO},
		{"data with fs.ErrNotExist below", data(fs.ErrNotExist), syscall.EIO},
		{"data with ECONNREFUSED below", fmt.Errorf("read: %w", data(syscall.ECONNREFUSED)), syscall.EIO},
		{"data joined after an errno", errors.Join(syscall.ENOENT, data(errors.New("x"))), syscall.EIO},
		{"left", fmt.Errorf("wait: %w", context.Canceled), syscall.EINTR},
		{"too late", context.DeadlineExceeded, syscall.ETIMEDOUT},
		{"not there", fs.ErrNotExist, syscall.ENOENT},
		{"there", fs.ErrExist, syscall.EEXIST},
		{"forbidden", fs.ErrPermission, syscall.EPERM},
		{"invalid", fs.ErrInvalid, syscall.EINVAL},
		{"unsupported", errors.ErrUnsupported, syscall.EOPNOTSUPP},
		{"unknown", errors.New("what"), syscall.EIO},
		{"sticky in the kernel", syscall.ENOSYS, syscall.EOPNOTSUPP},
		{"beyond what the kernel takes", syscall.Errno(512), syscall.EIO},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := errnoOf(tt.err); got != tt.want {
				t.Errorf("errnoOf(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}

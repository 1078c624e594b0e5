package cache

import (
	"io"
	"os"
	"syscall"
)

// oNoFollow refuses a symbolic link: whoever put it there wants something else to be written.
const oNoFollow = syscall.O_NOFOLLOW

// A file is what the store needs of one: *os.File, or in tests one that fails.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Writer
	io.Closer
	Truncate(size int64) error
	Sync() error
	Stat() (os.FileInfo, error)
	Name() string
	Fd() uintptr
}

// A disk is how the store reaches the file system for what may fail when that is full or broken.
type disk interface {
	// temp creates a file of mode 0600 with a new name in dir.
	temp(dir string) (file, error)
	// open opens a file for reading and writing; a symbolic link is not followed.
	open(path string) (file, error)
	readFile(path string) ([]byte, error)
	rename(from, to string) error
	// sync brings the names in a directory to the disk.
	sync(dir string) error
}

type osDisk struct{}

func (osDisk) temp(dir string) (file, error) { return asFile(os.CreateTemp(dir, "new-")) }

func (osDisk) open(path string) (file, error) {
	return asFile(os.OpenFile(path, os.O_RDWR|oNoFollow, 0))
}

func (d osDisk) readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|oNoFollow, 0)
	if err != nil {
		return nil, err
	}
	defer letGo(f)
	return io.ReadAll(f)
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer letGo(f)
	return f.Sync()
}

// asFile keeps a nil *os.File from becoming a file that is not nil.
func asFile(f *os.File, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Union makes the files that union.sh works on, and does its operations, each
// timed from within: the start of a process is in no number.
//
//	union make DIR            the layers DIR/1 to DIR/5
//	union OPERATION ROOT      does it in the mount ROOT and prints the seconds
package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dirs     = 500
	perDir   = 100 // files of a directory, over all layers
	layers   = 5
	smallIn  = 100 // the directories whose files have 4 to 16 KiB; those of the others some bytes
	created  = 20000
	bigSize  = 1 << 30
	newSize  = 512 << 20
	randoms  = 100000
	ioSize   = 128 << 10
	pageSize = 4 << 10
)

// operations do not say what they did: one that did nothing fails.
var operations = map[string]func(root string) error{
	"walk":   func(root string) error { return wantFiles(walk(root + "/tree")) },
	"small":  readSmall,
	"seq":    func(root string) error { return sequential(root + "/big1") },
	"random": func(root string) error { return random(root + "/big1") },
	"write":  write,
	"create": create,
	"delete": remove,
	"rmtree": func(root string) error { return wantFiles(removeTree(root + "/tree")) },
	"append": appendByte,
	"trunc":  truncate,
	"rename": func(root string) error { return unix.Rename(root+"/tree", root+"/moved") },
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "union:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("two arguments wanted, got %q", args)
	}
	if args[0] == "make" {
		return makeLayers(args[1])
	}
	op, ok := operations[args[0]]
	if !ok {
		return fmt.Errorf("unknown operation %q", args[0])
	}
	start := time.Now()
	if err := op(args[1]); err != nil {
		return fmt.Errorf("%s in %s: %w", args[0], args[1], err)
	}
	fmt.Printf("%.6f\n", time.Since(start).Seconds())
	return nil
}

func treeFile(root string, dir, i int) string {
	return filepath.Join(root, "tree", fmt.Sprintf("d%03d", dir), fmt.Sprintf("file%02d", i))
}

// makeLayers spreads every directory's files over all layers.
func makeLayers(root string) error {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, 16<<10)
	for d := range dirs {
		for l := range layers {
			if err := os.MkdirAll(filepath.Dir(treeFile(layer(root, l), d, 0)), 0o755); err != nil {
				return err
			}
		}
		for i := range perDir {
			n := 200
			if d < smallIn {
				n = 4<<10 + (d*perDir+i)*7919%(12<<10)
			}
			_, _ = r.Read(b[:n])
			if err := os.WriteFile(treeFile(layer(root, i%layers), d, i), b[:n], 0o644); err != nil {
				return err
			}
		}
	}
	for i := 1; i <= 2; i++ {
		if err := makeBig(filepath.Join(layer(root, 0), "big"+strconv.Itoa(i)), r); err != nil {
			return err
		}
	}
	return nil
}

func layer(root string, l int) string { return filepath.Join(root, strconv.Itoa(l+1)) }

func makeBig(name string, r *rand.ChaCha8) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for range bigSize / len(b) {
		_, _ = r.Read(b)
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return f.Close()
}

func wantFiles(n int, err error) error {
	if err == nil && n != dirs*perDir {
		err = fmt.Errorf("%d files, not %d", n, dirs*perDir)
	}
	return err
}

// names lists a directory as getdents64(2) does.
func names(fd int) ([]string, error) {
	var all []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if n <= 0 || err != nil {
			return all, err
		}
		_, _, all = unix.ParseDirent(buf[:n], -1, all)
	}
}

// each opens a directory and calls visit with every entry and its attributes.
func each(at int, name string, visit func(fd int, name string, st *unix.Stat_t) error) error {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	all, err := names(fd)
	if err != nil {
		return err
	}
	for _, n := range all {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if err := visit(fd, n, &st); err != nil {
			return err
		}
	}
	return nil
}

func isDir(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// walk does the system calls of find(1) with -size.
func walk(root string) (files int, err error) {
	var visit func(int, string, *unix.Stat_t) error
	visit = func(fd int, name string, st *unix.Stat_t) error {
		if isDir(st) {
			return each(fd, name, visit)
		}
		files++
		return nil
	}
	return files, each(unix.AT_FDCWD, root, visit)
}

// removeTree does those of rm -rf.
func removeTree(root string) (files int, err error) {
	var visit func(int, string, *unix.Stat_t) error
	visit = func(fd int, name string, st *unix.Stat_t) error {
		if !isDir(st) {
			files++
			return unix.Unlinkat(fd, name, 0)
		}
		if err := each(fd, name, visit); err != nil {
			return err
		}
		return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
	}
	if err := each(unix.AT_FDCWD, root, visit); err != nil {
		return files, err
	}
	return files, unix.Rmdir(root)
}

// pass calls f with a file that it opens and closes.
func pass(name string, flags int, f func(fd int) error) error {
	fd, err := unix.Open(name, flags, 0o644)
	if err != nil {
		return err
	}
	err = f(fd)
	if closed := unix.Close(fd); err == nil {
		err = closed
	}
	return err
}

func readSmall(root string) error {
	buf := make([]byte, ioSize)
	for d := range smallIn {
		for i := range perDir {
			if err := pass(treeFile(root, d, i), unix.O_RDONLY, func(fd int) error { return readAll(fd, buf, 4<<10) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// readAll reads to the end, which must not come before so many bytes.
func readAll(fd int, buf []byte, least int) error {
	total := 0
	for {
		n, err := unix.Read(fd, buf)
		total += n
		if err != nil {
			return err
		}
		if n == 0 && total < least {
			return fmt.Errorf("%d bytes read, fewer than %d", total, least)
		}
		if n == 0 {
			return nil
		}
	}
}

func sequential(name string) error {
	return pass(name, unix.O_RDONLY, func(fd int) error { return readAll(fd, make([]byte, ioSize), bigSize) })
}

func random(name string) error {
	r := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, pageSize)
	return pass(name, unix.O_RDONLY, func(fd int) error {
		for range randoms {
			if _, err := unix.Pread(fd, buf, r.Int64N(bigSize/pageSize)*pageSize); err != nil {
				return err
			}
		}
		return nil
	})
}

func write(root string) error {
	buf := make([]byte, ioSize)
	return pass(root+"/written", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, func(fd int) error {
		for range newSize / ioSize {
			if n, err := unix.Write(fd, buf); err != nil || n != ioSize {
				return fmt.Errorf("%d bytes written: %w", n, err)
			}
		}
		return nil
	})
}

func newFile(root string, i int) string { return fmt.Sprintf("%s/new/f%05d", root, i) }

func create(root string) error {
	if err := unix.Mkdir(root+"/new", 0o755); err != nil {
		return err
	}
	for i := range created {
		if err := pass(newFile(root, i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, func(int) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

func remove(root string) error {
	for i := range created {
		if err := unix.Unlink(newFile(root, i)); err != nil {
			return err
		}
	}
	return nil
}

func appendByte(root string) error {
	return pass(root+"/big1", unix.O_WRONLY|unix.O_APPEND, func(fd int) error {
		_, err := unix.Write(fd, []byte{1})
		return err
	})
}

func truncate(root string) error {
	return pass(root+"/big2", unix.O_WRONLY|unix.O_TRUNC, func(int) error { return nil })
}

package cache

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// crashDir is the environment variable that makes the test binary a filler: a process
// that fills a pack until it is killed.
const crashDir = "CACHE_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		fillUntilKilled(dir)
	}
	if dir := os.Getenv(evictDir); dir != "" {
		readUntilKilled(dir)
	}
	os.Exit(m.Run())
}

func crashBlob() *blob { return evenBlob(100, 400, 20000) }

// fillUntilKilled prints a line when the first unit is there and goes on until somebody kills it.
func fillUntilKilled(dir string) {
	b := crashBlob()
	s, err := Open(dir, Options{})
	if err != nil {
		panic(err)
	}
	p, err := s.Pack(b.d, b.units)
	if err != nil {
		panic(err)
	}
	for i := 0; ; i = (i + 1) % len(b.units) {
		if err := p.Ensure(context.Background(), b.units[i].Off, 1, b.fill); err != nil {
			panic(err)
		}
		if i == 0 {
			_, _ = os.Stdout.WriteString("filling\n")
		}
	}
}

// startFiller returns when the other process has a unit. It is killed at the end.
func startFiller(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestKill(t *testing.T) {
	b := crashBlob()
	for _, after := range []time.Duration{0, 2 * time.Millisecond, 5 * time.Millisecond} {
		dir := t.TempDir()
		cmd := startFiller(t, dir)
		s := openStore(t, dir, Options{})
		if err := s.Remove(b.d); !errors.Is(err, ErrInUse) {
			t.Errorf("Remove while another process fills: %v", err)
		}
		time.Sleep(after)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		p := openPack(t, s, b)
		kept := p.Present()
		if kept == 0 {
			t.Error("nothing survived")
		}
		b.check(t, p, 0, p.Size(), b.fill)
		if got := int64(len(b.units)) - b.filled(); got*20000 != kept {
			t.Errorf("%d bytes were marked, %d units of 20000 were valid", kept, got)
		}
		for i := range b.fills {
			b.fills[i].Store(0)
		}
		t.Logf("%d of %d bytes survived", kept, p.Size())
	}
}

// TestSharedByProcesses: what another process fills is seen here without a fetch.
func TestSharedByProcesses(t *testing.T) {
	dir := t.TempDir()
	b := crashBlob()
	s := openStore(t, dir, Options{})
	p := openPack(t, s, b)
	startFiller(t, dir)
	deadline := time.Now().Add(20 * time.Second)
	for !p.Has(0, p.Size()) {
		if time.Now().After(deadline) {
			t.Fatal("the other process's units never appeared")
		}
		time.Sleep(time.Millisecond)
	}
	b.check(t, p, 0, p.Size(), noFill)
}

func TestCallerLeaves(t *testing.T) {
	b := evenBlob(101, 4, 1000)
	s := openStore(t, t.TempDir(), Options{})
	p := openPack(t, s, b)
	started, release := make(chan struct{}), make(chan struct{})
	slow := func(ctx context.Context, first, last int, put func(int, []byte) error) error {
		close(started)
		<-release
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return b.fill(ctx, first, last, put)
	}
	ctx, leave := context.WithCancel(t.Context())
	first, second := make(chan error), make(chan error)
	go func() { first <- p.Ensure(ctx, 0, 4000, slow) }()
	<-started
	go func() { second <- p.Ensure(context.Background(), 2000, 10, noFill) }()
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller who left got %v", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the caller who stayed got %v", err)
	}
	b.check(t, p, 0, 4000, noFill)
}

// TestCloseEndsFills: the last Close of a pack returns only when no fill runs, and the
// waiting callers learn that the pack was closed, not that they were cancelled.
func TestCloseEndsFills(t *testing.T) {
	b := evenBlob(102, 1, 1000)
	s := openStore(t, t.TempDir(), Options{})
	p, q := openPack(t, s, b), openPack(t, s, b)
	started := make(chan struct{})
	ended := false
	hang := func(ctx context.Context, _, _ int, _ func(int, []byte) error) error {
		close(started)
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond)
		ended = true
		return ctx.Err()
	}
	waiter := make(chan error)
	go func() { waiter <- p.Ensure(context.Background(), 0, 1, hang) }()
	<-started
	letGo(q)
	letGo(q) // the second does nothing: p still holds
	select {
	case err := <-waiter:
		t.Fatalf("the fill ended with the wrong pack: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	closed := make(chan struct{})
	go func() {
		letGo(p)
		close(closed)
	}()
	if err := <-waiter; !errors.Is(err, fs.ErrClosed) || errors.Is(err, context.Canceled) {
		t.Errorf("the waiting caller got %v", err)
	}
	<-closed
	if !ended {
		t.Error("Close returned before the fill")
	}
	if err := p.Ensure(t.Context(), 0, 1, b.fill); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Ensure after Close: %v", err)
	}
}

// TestBoot: a pack of another boot is kept only when it was brought to the disk.
func TestBoot(t *testing.T) {
	other := bootID{1, 2, 3}
	open := func(t *testing.T, dir string, boot bootID) *Store {
		s := openStore(t, dir, Options{})
		s.boot = boot
		return s
	}
	for _, c := range []struct {
		name   string
		settle bool // close everything before the restart
		boot   bootID
		kept   bool
	}{
		{"power loss", false, other, false},
		{"same boot", false, currentBoot(), true},
		{"clean restart", true, other, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, currentBoot())
			b := evenBlob(103, 5, 3000)
			p := openPack(t, s, b)
			b.check(t, p, 0, 6000, b.fill)
			if c.settle {
				letGo(p)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			q := openPack(t, open(t, dir, c.boot), b)
			if got := q.Present(); (got == 6000) != c.kept || (got == 0) == c.kept {
				t.Errorf("%d bytes kept", got)
			}
		})
	}
}

// TestUncleanAgain: a fill after a clean close makes the pack unclean again.
func TestUncleanAgain(t *testing.T) {
	dir := t.TempDir()
	b := evenBlob(104, 5, 3000)
	s := openStore(t, dir, Options{})
	p := openPack(t, s, b)
	b.check(t, p, 0, 6000, b.fill)
	letGo(p)
	s.bg.Wait()
	if h := readHeader(t, packPath(s, b.d)); !h.clean {
		t.Fatal("closed and not clean")
	}
	p = openPack(t, s, b)
	b.check(t, p, 0, 6000, noFill)
	if h := readHeader(t, packPath(s, b.d)); !h.clean {
		t.Fatal("reading made it unclean")
	}
	b.check(t, p, 0, 9000, b.fill)
	if h := readHeader(t, packPath(s, b.d)); h.clean || h.boot != s.boot {
		t.Fatal("filled and clean")
	}
	if err := p.c.settle(); err != nil {
		t.Fatal(err)
	}
	if h := readHeader(t, packPath(s, b.d)); !h.clean {
		t.Fatal("alone, quiet and not clean")
	}
}

// TestSettleNotAlone: while another store has an incomplete pack open, nobody marks it.
func TestSettleNotAlone(t *testing.T) {
	dir := t.TempDir()
	b := evenBlob(105, 2, 3000)
	s, r := openStore(t, dir, Options{}), openStore(t, dir, Options{})
	p, q := openPack(t, s, b), openPack(t, r, b)
	b.check(t, p, 0, 3000, b.fill)
	letGo(p)
	s.bg.Wait()
	if readHeader(t, packPath(s, b.d)).clean {
		t.Fatal("clean although another one may write")
	}
	b.check(t, q, 0, 3000, noFill)
	letGo(q)
	r.bg.Wait()
	if !readHeader(t, packPath(s, b.d)).clean {
		t.Fatal("the last one left it unclean")
	}
}

func readHeader(t *testing.T, path string) header {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHeader(b[len(b)-blockSize:], int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// fullDisk mounts a tiny tmpfs, puts a store there and fills it up but for free bytes.
func fullDisk(t *testing.T, free int) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("needs to mount a tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error("unmount:", err)
		}
	})
	s := openStore(t, filepath.Join(dir, "cache"), Options{})
	junk, err := os.Create(filepath.Join(dir, "junk"))
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(junk)
	for err == nil {
		_, err = junk.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	st, err := junk.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := junk.Truncate(st.Size() - int64(free)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFullDisk(t *testing.T) {
	for name, free := range map[string]int{"no room for units": 300 << 10, "no room at all": 0} {
		t.Run(name, func(t *testing.T) {
			b := evenBlob(106, 30, 40000)
			s := fullDisk(t, free)
			p := openPack(t, s, b)
			p.c.over.limit = 200000
			for round := range 3 {
				for i, u := range b.units {
					b.check(t, p, u.Off, u.Len, b.fill)
					if t.Failed() {
						t.Fatalf("round %d, unit %d", round, i)
					}
				}
			}
			b.check(t, p, 1160000, 40000, noFill) // still in memory
			err := p.Ensure(t.Context(), 0, int64(len(b.data)), b.fill)
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("more than memory may hold: %v", err)
			}
			if err := os.Remove(filepath.Join(filepath.Dir(s.dir), "junk")); err != nil {
				t.Fatal(err)
			}
			if free > 0 {
				b.check(t, p, 0, int64(len(b.data)), b.fill) // there is room again
			}
		})
	}
}

func TestFullDiskWriter(t *testing.T) {
	b := evenBlob(107, 30, 40000)
	s := fullDisk(t, 100<<10)
	w, err := s.Create(b.d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b.data); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Write: %v", err)
	}
	if _, err := w.Commit(nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Commit: %v", err)
	}
	if list, _ := os.ReadDir(filepath.Join(s.dir, "tmp")); len(list) != 0 {
		t.Errorf("left behind: %v", list)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	d := digest.FromString("locked")
	s, r := openStore(t, dir, Options{}), openStore(t, dir, Options{})
	unlock, err := s.Lock(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []*Store{s, r} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := other.Lock(ctx, d)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("locked twice: %v", err)
		}
	}
	if other, err := r.Lock(t.Context(), digest.FromString("another")); err != nil {
		t.Error(err)
	} else {
		other()
	}
	got := make(chan error)
	go func() {
		again, err := r.Lock(context.Background(), d)
		if err == nil {
			again()
		}
		got <- err
	}()
	unlock()
	unlock() // does nothing
	if err := <-got; err != nil {
		t.Error(err)
	}
	if _, err := s.GC(1 << 40); err != nil {
		t.Error(err)
	}
	if list, _ := os.ReadDir(filepath.Join(dir, "locks")); len(list) != 0 {
		t.Errorf("GC left %v", list)
	}
	if _, err := s.Lock(t.Context(), "../x"); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("a path was taken for a digest: %v", err)
	}
}

// TestNotQuiet: what is written between the fsync and the mark prevents the mark.
func TestNotQuiet(t *testing.T) {
	b := evenBlob(108, 3, 3000)
	s := openStore(t, t.TempDir(), Options{})
	p := openPack(t, s, b)
	b.check(t, p, 0, 3000, b.fill)
	seen := p.c.writes.Load()
	b.check(t, p, 3000, 3000, b.fill)
	for _, c := range []struct {
		seen int64
		done bool
	}{{seen, false}, {p.c.writes.Load(), true}} {
		if done, err := p.c.markClean(c.seen); err != nil || done != c.done {
			t.Errorf("markClean(%d) = %v, %v", c.seen, done, err)
		}
		if readHeader(t, packPath(s, b.d)).clean != c.done {
			t.Errorf("clean is not %v", c.done)
		}
	}
}

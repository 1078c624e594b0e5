package cache

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"
)

var stressTime = flag.Duration("stress", 2*time.Second, "how long TestEvictStress goes on")

// evictDir is the environment variable that makes the test binary a reader under a bound.
const evictDir = "CACHE_TEST_EVICT_DIR"

const stressBound = 6 << 20

func stressBlobs() []*blob {
	return []*blob{regionBlob(520), evenBlob(521, 90, 70001), evenBlob(522, 700, 6000)}
}

// readUntilKilled reads at random, and ends with an error as soon as a byte is wrong.
func readUntilKilled(dir string) {
	seed, err := strconv.ParseUint(os.Getenv(evictDir+"_SEED"), 10, 64)
	if err != nil {
		panic(err)
	}
	s, err := Open(dir, Options{MaxBytes: stressBound})
	if err != nil {
		panic(err)
	}
	blobs := stressBlobs()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			for {
				if err := boundSession(r, s, blobs[r.IntN(len(blobs))]); err != nil {
					fmt.Fprintln(os.Stderr, "reader:", err)
					os.Exit(3)
				}
			}
		})
	}
	wg.Wait()
}

// boundSession opens a pack, reads some of it, mostly near one place, and closes it.
func boundSession(r *rand.Rand, s *Store, b *blob) error {
	p, err := s.Pack(b.d, b.units)
	if err != nil {
		return err
	}
	defer letGo(p)
	size := int64(len(b.data))
	at := r.Int64N(size)
	for range r.IntN(100) {
		off := (at + r.Int64N(300000)) % size
		got := make([]byte, r.Int64N(min(200000, size-off))+1)
		if _, err := p.Read(context.Background(), got, off, b.fill); err != nil {
			return fmt.Errorf("Read(%d, %d): %w", off, len(got), err)
		}
		if !bytes.Equal(got, b.data[off:off+int64(len(got))]) {
			return fmt.Errorf("Read(%d, %d) of %s: wrong bytes", off, len(got), b.d)
		}
	}
	return nil
}

// A reader is another process that reads.
type reader struct {
	cmd    *exec.Cmd
	errors bytes.Buffer
}

func startReader(t *testing.T, dir string, seed int) *reader {
	t.Helper()
	r := &reader{cmd: exec.Command("/proc/self/exe")}
	r.cmd.Env = append(os.Environ(), evictDir+"="+dir, fmt.Sprintf("%s_SEED=%d", evictDir, seed))
	r.cmd.Stderr = &r.errors
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// kill kills the reader, and reports whether it had found fault.
func (r *reader) kill(t *testing.T) {
	t.Helper()
	_ = r.cmd.Process.Kill() // it may have ended by itself
	_ = r.cmd.Wait()
	if r.errors.Len() > 0 {
		t.Error(r.errors.String())
	}
}

// TestEvictStress: processes read, fill and evict the same packs under a bound that holds a third of them, and are
// killed at any moment. Nobody ever reads a wrong byte, and the bound holds.
func TestEvictStress(t *testing.T) {
	dir := t.TempDir()
	const processes = 3
	var readers [processes]*reader
	for k := range readers {
		readers[k] = startReader(t, dir, k)
	}
	r := rand.New(rand.NewPCG(1, 2))
	most, kills := int64(0), 0
	for until := time.Now().Add(*stressTime); time.Now().Before(until) && !t.Failed(); {
		time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
		most = max(most, diskUsage(dir))
		if r.IntN(4) == 0 {
			k := r.IntN(processes)
			readers[k].kill(t)
			kills++
			readers[k] = startReader(t, dir, processes+kills)
		}
	}
	for _, r := range readers {
		r.kill(t)
	}
	// Each of the processes may be an allowance and a unit ahead of what it has seen.
	if limit := int64(stressBound + processes*(stressBound/64+3<<20)); most > limit {
		t.Errorf("%d bytes on the disk, the bound is %d", most, int64(stressBound))
	}
	t.Logf("%d kills, at most %d bytes of %d", kills, most, int64(stressBound))
	s := openStore(t, dir, Options{})
	for _, b := range stressBlobs() {
		p := openPack(t, s, b)
		b.check(t, p, 0, p.Size(), b.fill)
	}
}

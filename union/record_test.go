package union_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/layerfs/layerfs/union"
)

// A start is a tree with a recorder that runs in fake time.
type start struct {
	t     *testing.T
	fs    *union.FS
	rec   *union.Recorder
	saved []string // what was saved, one string each
	stop  context.CancelFunc
}

// record runs f beside a recorder, and waits for its end.
func record(t *testing.T, tree *union.Tree, old string, f func(s *start)) []string {
	t.Helper()
	p, err := union.ParseProfile(strings.NewReader(old))
	must(t, err)
	var saved []string
	synctest.Test(t, func(t *testing.T) {
		s := &start{t: t, fs: union.New(tree, nil), rec: union.NewRecorder(tree, p)}
		s.fs.Record(s.rec)
		var ctx context.Context
		ctx, s.stop = context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.rec.Run(ctx, func(p union.Profile) { s.saved = append(s.saved, string(p.Text(true))) })
		}()
		f(s)
		s.stop()
		<-done
		saved = s.saved
	})
	return saved
}

func (s *start) read(path string, off, n int64) {
	s.t.Helper()
	id, err := s.fs.Tree().Resolve(path)
	must(s.t, err)
	_, err = s.fs.ReadAt(ctx, id, make([]byte, n), off)
	must(s.t, err)
}

// saves is how often the recorder has saved by now.
func (s *start) saves() int {
	synctest.Wait()
	return len(s.saved)
}

// manyFiles is a tree of n files f000… and the large file big.
func manyFiles(t *testing.T, n int) *union.Tree {
	var b strings.Builder
	b.WriteString("random big 20MiB\nfile d/empty \"\"\n")
	for i := range n {
		fmt.Fprintf(&b, "file d/f%03d \"%d\"\n", i, i)
	}
	return mergeText(t, b.String())
}

func last(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return list[len(list)-1]
}

func TestRecorder(t *testing.T) {
	tree := manyFiles(t, 400)
	const part = (20<<20 + 63) / 64
	for _, c := range []struct {
		name, old string
		f         func(s *start)
		want      string
	}{
		{"nothing is read", "d/f000\n", func(*start) {}, "nothing"},
		{"order", "", func(s *start) {
			for _, f := range []string{"d/f007", "d/f001", "d/f007", "d/empty", "d/f300"} {
				s.read(f, 0, 4096)
			}
		}, "d/f007\nd/f001\nd/f300\n"},
		{"ranges", "", func(s *start) {
			s.read("big", 0, 1)
			s.read("big", part-1, 2)
			s.read("big", 20<<20-1, 4096)
		}, fmt.Sprintf("big\t0-%d,%d-%d\n", 2*part-1, 63*part, 20<<20-1)},
		{"the whole file", "", func(s *start) {
			for off := int64(0); off < 20<<20; off += 1 << 20 {
				s.read("big", off, 1<<20)
			}
		}, "big\n"},
		{"after the start", "", func(s *start) {
			s.read("d/f000", 0, 1)
			time.Sleep(61 * time.Second)
			s.read("d/f001", 0, 1)
			time.Sleep(time.Hour)
		}, "d/f000\n"},
		{"long before the first read", "", func(s *start) {
			time.Sleep(24 * time.Hour)
			s.read("d/f000", 0, 1)
			time.Sleep(30 * time.Second)
			s.read("d/f001", 0, 1)
		}, "d/f000\nd/f001\n"},
		{"merge", "d/f000\nd/f001\tunread=3\nd/f002\tunread=4\nd/f003\tunread=4\ngone\n", func(s *start) {
			s.read("d/f009", 0, 1)
			s.read("d/f003", 0, 1)
		}, "d/f009\nd/f003\nd/f000\tunread=1\nd/f001\tunread=4\ngone\tunread=1\n"},
		{"a glance says nothing of the others", "d/f000\nd/f001\nd/f002\nd/f003\tunread=4\nd/f004\nd/f005\nd/f006\nd/f007\nd/f008\n", func(s *start) {
			s.read("d/f008", 0, 1)
		}, "d/f008\nd/f000\nd/f001\nd/f002\nd/f003\tunread=4\nd/f004\nd/f005\nd/f006\nd/f007\n"},
		{"pushed", "d/f000\tunread=4\nd/f001\n", func(s *start) {
			id, err := tree.Resolve("d/f000")
			must(t, err)
			s.rec.Pushed(id)
			s.read("d/f002", 0, 1)
		}, "d/f002\nd/f000\tunread=4\nd/f001\tunread=1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := last(record(t, tree, c.old, c.f)); got != c.want {
				t.Errorf("profile:\n%swant:\n%s", got, c.want)
			}
		})
	}
}

// TestRecorderSaves: soon after the first read, seldom later, not when nothing is new.
func TestRecorderSaves(t *testing.T) {
	tree := manyFiles(t, 400)
	record(t, tree, "", func(s *start) {
		s.read("d/f000", 0, 1)
		time.Sleep(1100 * time.Millisecond)
		if n := s.saves(); n != 1 {
			t.Errorf("%d saves after 1.1 s", n)
		}
		time.Sleep(10 * time.Second)
		s.read("d/f000", 0, 1)
		if n := s.saves(); n != 1 {
			t.Errorf("%d saves when nothing was new", n)
		}
		for i := range 60 {
			s.read(fmt.Sprintf("d/f%03d", i+1), 0, 1)
			time.Sleep(time.Second)
		}
		if n := s.saves(); n < 3 || n > 7 {
			t.Errorf("%d saves in a minute", n)
		}
	})
}

// TestRecorderScan: reading everything leaves the profile as it was, also
// where its beginning was saved already.
func TestRecorderScan(t *testing.T) {
	tree := manyFiles(t, 400)
	scan := func(pause time.Duration) func(s *start) {
		return func(s *start) {
			for i := range 400 {
				s.read(fmt.Sprintf("d/f%03d", i), 0, 4096)
				time.Sleep(pause)
			}
		}
	}
	const old = "d/f009\n"
	if saved := record(t, tree, old, scan(0)); len(saved) > 0 {
		t.Errorf("a fast scan was saved: %q", saved)
	}
	saved := record(t, tree, old, scan(20*time.Millisecond))
	if len(saved) < 2 || last(saved) != old {
		t.Errorf("after a slow scan: %q", saved)
	}
	// A quarter of the bytes, by more than a few files.
	if saved := record(t, tree, old, func(s *start) {
		for i := range 64 {
			s.read(fmt.Sprintf("d/f%03d", i), 0, 4096)
		}
		s.read("big", 0, 6<<20)
	}); len(saved) > 0 {
		t.Errorf("a scan of bytes was saved: %q", saved)
	}
}

// TestRecorderParallel: many readers at once lose nothing.
func TestRecorderParallel(t *testing.T) {
	tree := manyFiles(t, 900)
	saved := record(t, tree, "", func(s *start) {
		done := make(chan struct{})
		for range 8 {
			go func() {
				for _, i := range rand.Perm(200) {
					s.read(fmt.Sprintf("d/f%03d", i), 0, 1)
				}
				done <- struct{}{}
			}()
		}
		for range 8 {
			<-done
		}
	})
	if n := strings.Count(last(saved), "\n"); n != 200 {
		t.Errorf("%d files in the profile, want 200", n)
	}
}

// BenchmarkRead is a read of a lower file with a recorder that knows it already, and without one.
func BenchmarkRead(b *testing.B) {
	tree := mergeText(b, "random a 64KiB")
	id, err := tree.Resolve("a")
	must(b, err)
	for _, recorded := range []bool{false, true} {
		b.Run(fmt.Sprintf("recorded=%v", recorded), func(b *testing.B) {
			f := union.New(tree, nil)
			if recorded {
				f.Record(union.NewRecorder(tree, union.Profile{}))
			}
			buf := make([]byte, 4096)
			for b.Loop() {
				if _, err := f.ReadAt(ctx, id, buf, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

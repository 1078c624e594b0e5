package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/layerfs/layerfs/union/layer/layertest"
)

// A registryFault is what a registry or what stands before it does wrong.
type registryFault struct {
	name   string
	faults func(s *registrytest.Server) []registrytest.Fault
	whole  bool // blobs can only be had whole

	pause   time.Duration // after which what was found out before is worthless
	renewed string        // path of what is asked for again then
}

func always(f ...registrytest.Fault) func(*registrytest.Server) []registrytest.Fault {
	return func(*registrytest.Server) []registrytest.Fault { return f }
}

func expiringTokens(life time.Duration) registrytest.Fault {
	auth := registrytest.Bearer("user", "secret")
	auth.Public, auth.Lifetime = true, life
	return auth.Wrap
}

var registryFaults = []registryFault{
	{name: "200 for a range", faults: always(registrytest.NoRange), whole: true},
	{name: "416 with the blob's length", faults: always(registrytest.RefuseRanges), whole: true},
	{name: "400", faults: always(registrytest.On(registrytest.Ranged, registrytest.Status(400, -1))), whole: true},
	{name: "501", faults: always(registrytest.On(registrytest.Ranged, registrytest.Status(501, -1))), whole: true},
	{name: "ranges called 200", faults: always(registrytest.Unnamed206)},
	{name: "ranges without Content-Range", faults: always(registrytest.NoContentRange)},
	{name: "bodies cut short", faults: always(registrytest.ShortBody(300_000))},
	{name: "cut short, and no ranges", faults: always(registrytest.NoRange, registrytest.Times(3, registrytest.ShortBody(300_000))), whole: true},
	{name: "signed for 2 s", pause: 2100 * time.Millisecond, renewed: "/blobs/", faults: func(s *registrytest.Server) []registrytest.Fault {
		return []registrytest.Fault{s.SignedBlobs(2 * time.Second)}
	}},
	{name: "signed for 2 s, cut short, token for 5 s", pause: 5100 * time.Millisecond, renewed: "/token", faults: func(s *registrytest.Server) []registrytest.Fault {
		return []registrytest.Fault{registrytest.ShortBody(300_000), s.SignedBlobs(2 * time.Second), expiringTokens(5 * time.Second)}
	}},
	{name: "signed, and storage knows no ranges", faults: func(s *registrytest.Server) []registrytest.Fault {
		return []registrytest.Fault{registrytest.RefuseRanges, s.SignedBlobs(2 * time.Second)}
	}, whole: true},
	{name: "away for 5 s", faults: always(registrytest.On(registrytest.Blobs, registrytest.Away(2, 5*time.Second)))},
	{name: "429 with Retry-After", faults: always(registrytest.On(registrytest.Blobs, registrytest.Status(429, 3, "Retry-After", "1")))},
	{name: "503", faults: always(registrytest.On(registrytest.Blobs, registrytest.Status(503, 3)))},
	{name: "dripping", faults: always(registrytest.Drip(8<<10, time.Millisecond))},
	{name: "token for 5 s", pause: 5100 * time.Millisecond, renewed: "/token", faults: always(expiringTokens(5 * time.Second))},
}

// TestRegistryFaults: the whole image reads right from whatever registry, at the first mount and
// when the cache holds the indexes alone. Half of it is read when addresses and tokens
// of the mount have expired.
func TestRegistryFaults(t *testing.T) {
	needMount(t)
	var b strings.Builder
	for i := range 4 {
		fmt.Fprintf(&b, "random bin/r%d %d\ntext lib/t%d %d\n", i, 600_000+i, i, 900_000+i)
	}
	for i := range 200 {
		fmt.Fprintf(&b, "file etc/f%03d \"%d\"\n", i, i)
	}
	text := b.String()
	var all sync.WaitGroup
	atOnce := make(chan bool, 6) // most of them wait, most of the time
	for _, form := range []string{"gzip", "estargz", "zstd", "zstd:chunked", "none"} {
		im := registrytest.Image{Layers: []registrytest.Layer{encoded(t, text, form), encoded(t, "random opt/top 400KiB\nwhiteout bin/r0", form)}}
		for _, f := range registryFaults {
			if form == "zstd" { // of one frame: it is read at once, when it is mounted
				f.pause = 0
			}
			all.Go(func() {
				atOnce <- true
				defer func() { <-atOnce }()
				t.Run(form+"/"+f.name, func(t *testing.T) {
					readThrough(t, im, form == "estargz" || form == "zstd:chunked", f, contents(t, text))
				})
			})
		}
	}
	all.Wait()
}

// contents are the regular files of the image that readThrough mounts.
func contents(t *testing.T, text string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, text := range []string{text, "random opt/top 400KiB"} {
		r := tar.NewReader(bytes.NewReader(layertest.Tar(text)))
		for h, err := r.Next(); err != io.EOF; h, err = r.Next() {
			var b []byte
			if err == nil {
				b, err = io.ReadAll(r)
			}
			if err != nil {
				t.Fatal(err)
			}
			files[h.Name] = b
		}
	}
	delete(files, "bin/r0")
	return files
}

// readThrough mounts an image from nothing and from its indexes and reads it. Where content comes
// when it is read for the first time in this test, the fault's pause is made.
func readThrough(t *testing.T, im registrytest.Image, lazy bool, f registryFault, want map[string][]byte) {
	s := registrytest.New(registrytest.Options{})
	t.Cleanup(s.Close)
	s.PushImage("image:latest", im)
	s.Use(f.faults(s)...)
	h := newHost(t)
	h.env = append(h.env, "DOCKER_CONFIG="+t.TempDir(), "REGISTRY_AUTH_FILE=", "HOME="+t.TempDir())
	var size int64
	for _, l := range im.Layers {
		size += int64(len(l.Blob))
	}
	for _, cache := range []string{"nothing", "indexes"} {
		s.Reset()
		pause := f.pause
		if lazy != (cache == "nothing") {
			pause = 0
		}
		dir := h.mount(s.Host()+"/image", "--prefetch", "none")
		compareFiles(t, dir, want, pause)
		// A process that a test beside this one has forked and not yet executed holds our files.
		eventually(t, "umount", func() bool { return h.try("umount", dir).code == 0 })
		if n := s.Total("HEAD", "").Requests; n > 0 {
			t.Errorf("%d HEAD requests", n)
		}
		// Two readers may ask before the first answer says that there are no ranges; of more than that, one is too many.
		if n := s.Total("GET", "/blobs/").Out; f.whole && n > size*5/2 {
			t.Errorf("cache has %s: %d bytes were fetched of %d", cache, n, size)
		}
		if n := renewals(s.Log(), f.renewed); pause > 0 && n == 0 {
			t.Errorf("cache has %s: nothing had to be renewed", cache)
		}
		h.run("cache", "gc")
	}
}

// renewals counts tokens beyond the first, or addresses that were asked for again.
func renewals(log []registrytest.Request, path string) (n int) {
	seen := map[string]bool{}
	for _, r := range log {
		if !strings.Contains(r.Path, path) || path == "/blobs/" && r.Status != 307 {
			continue
		}
		if seen[r.Path] {
			n++
		}
		seen[r.Path] = true
	}
	return n
}

// compareFiles reads all files, the second half after a pause.
func compareFiles(t *testing.T, dir string, want map[string][]byte, pause time.Duration) {
	t.Helper()
	names := slices.Sorted(maps.Keys(want))
	for i, name := range names {
		if i == len(names)/2 {
			time.Sleep(pause)
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want[name]) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want[name]), err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "bin/r0")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a deleted file: %v", err)
	}
}

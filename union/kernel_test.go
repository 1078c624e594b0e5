package union_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/layerfs/layerfs/union"
	"golang.org/x/sys/unix"
)

// mountOverlay mounts the kernel's overlayfs with the directories of a model; the error is mount(2)'s.
func mountOverlay(t *testing.T, lower, upper, options string) (mnt string, unmount func()) {
	t.Helper()
	mnt = t.TempDir()
	work := filepath.Join(filepath.Dir(upper), "kernel")
	must(t, os.MkdirAll(work, 0o700))
	o := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,%s", lower, upper, work, options)
	err := unix.Mount("overlay", mnt, "overlay", 0, o)
	if err == unix.ENODEV || err == unix.EPERM {
		t.Skipf("needs overlayfs: %v", err)
	}
	must(t, err)
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			must(t, unix.Unmount(mnt, 0))
		}
	}
	t.Cleanup(unmount)
	return mnt, unmount
}

// The upper directory changes hands: what we wrote the kernel's overlayfs shows
// over the unpacked tree, what that writes we show, or refuse with the reason.
func TestHandOver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts overlayfs")
	}
	for _, options := range []string{
		"redirect_dir=on,index=off,metacopy=off", "redirect_dir=on,index=off,metacopy=on",
		"redirect_dir=on,index=on,metacopy=off", "redirect_dir=off,index=off,metacopy=off",
	} {
		for seed := range uint64(6) {
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(options, ",", " "), seed), func(t *testing.T) { handOver(t, options, seed) })
		}
	}
}

func handOver(t *testing.T, options string, seed uint64) {
	m := newModel(t, seed)
	lower := t.TempDir()
	m.copyOut(m.w.tree, union.Root, lower)
	if !strings.HasPrefix(options, "redirect_dir=off") && !strings.Contains(options, "index=on") {
		m.calls(60)
	}
	m.w.close(t)
	mnt, unmount := mountOverlay(t, lower, filepath.Join(m.w.dir, "upper"), options)
	kernel := &model{t: t, r: rand.New(rand.NewPCG(seed, 2)), host: mnt}
	if d := diffLines(withoutLinks(kernel.dumpHost()), withoutLinks(m.dumpHost())); d != "" {
		m.fail("overlayfs over our upper directory: " + d)
	}
	m.callsOf(kernel, 40)
	want := kernel.dumpHost()
	unmount()
	u, err := union.OpenUpper(filepath.Join(m.w.dir, "upper"), filepath.Join(m.w.dir, "work"), union.UpperOptions{Base: m.w.tree.Digest()})
	if errors.Is(err, union.ErrForeign) && strings.Contains(err.Error(), "=on: /") && !strings.Contains(options, "index=off,metacopy=off") {
		t.Log(err)
		return
	}
	must(t, err)
	w := &writable{union.New(m.w.tree, u), u, m.w.tree, m.w.dir}
	defer w.close(t)
	if d := diffLines(withoutLinks(dump(t, w.FS)), withoutLinks(want)); d != "" {
		m.fail("an upper directory that overlayfs wrote to: " + d)
	}
}

// withoutLinks takes away how often files are linked: without its index
// overlayfs counts lower names that are hidden by now.
func withoutLinks(dump string) string {
	return regexp.MustCompile(` links=\d+ inode=\d+`).ReplaceAllString(dump, "")
}

// callsOf makes random calls in another directory of the host.
func (m *model) callsOf(k *model, n int) {
	for range n {
		c := modelCalls[k.r.IntN(len(modelCalls))]
		a, b, salt := k.some(), k.some(), k.r.IntN(1000)
		err := errnoOf(c.host(k.host, a, b, salt))
		m.log = append(m.log, fmt.Sprintf("overlayfs: %s %s %s %d: %v", c.name, a, b, salt, err))
	}
}

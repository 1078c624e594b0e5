package cache

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestVerify: what is damaged is found, dropped, and forgotten by who has the pack open.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	s, other := openStore(t, dir, Options{}), openStore(t, dir, Options{})
	lazy, whole, torn := evenBlob(600, 40, 70000), evenBlob(601, 30, 65536), evenBlob(602, 3, 5000)
	p := openPack(t, s, lazy)
	lazy.check(t, p, 0, p.Size(), lazy.fill)
	letGo(writePack(t, s, whole, []byte("index of the whole one")))
	q := openPack(t, s, torn)
	torn.check(t, q, 0, q.Size(), torn.fill)
	letGo(q)
	for _, name := range []string{"good", "bad", "moved"} {
		if err := s.Save(name, []byte("content")); err != nil {
			t.Fatal(err)
		}
	}
	s.bg.Wait()
	verify := func() (list []Damage, n Checked) {
		t.Helper()
		n, err := other.Verify(t.Context(), func(d Damage) error { list = append(list, d); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return list, n
	}
	if list, n := verify(); len(list) != 0 || n.Packs != 3 || n.Indexes != 1 || n.Records != 3 || n.Bytes != 40*70000+30*65536+15000 {
		t.Fatalf("nothing is damaged: %v, %+v", list, n)
	}
	flip(t, packPath(s, lazy.d), 70000*7+5)
	flip(t, packPath(s, lazy.d), 70000*39)
	flip(t, packPath(s, whole.d), 65536*3+100)
	st, err := os.Stat(packPath(s, torn.d))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, packPath(s, torn.d), st.Size()-blockSize+20)
	flip(t, filepath.Join(filepath.Dir(packPath(s, whole.d)), "index"), 50)
	flip(t, s.recordPath("bad"), 45)
	if err := os.Rename(s.recordPath("moved"), s.recordPath("elsewhere")); err != nil {
		t.Fatal(err)
	}
	list, _ := verify()
	want := map[Damage]bool{}
	rel := func(path string) string { r, _ := filepath.Rel(dir, path); return r }
	for _, d := range []Damage{
		{"pack", lazy.d, rel(packPath(s, lazy.d)), 490000, 70000},
		{"pack", lazy.d, rel(packPath(s, lazy.d)), 39 * 70000, 70000},
		{"pack", whole.d, rel(packPath(s, whole.d)), 3 * 65536, 65536},
		{"pack", torn.d, rel(packPath(s, torn.d)), 0, 0},
		{"index", whole.d, rel(filepath.Join(filepath.Dir(packPath(s, whole.d)), "index")), 0, 0},
		{"record", "", rel(s.recordPath("bad")), 0, 0},
		{"record", "", rel(s.recordPath("elsewhere")), 0, 0},
	} {
		want[d] = true
	}
	for _, d := range list {
		if !want[d] {
			t.Errorf("found %+v", d)
		}
		delete(want, d)
	}
	for d := range want {
		t.Errorf("not found: %+v", d)
	}
	if list, _ := verify(); len(list) != 0 {
		t.Errorf("still damaged: %v", list)
	}
	before := lazy.filled()
	got := make([]byte, p.Size())
	if _, err := p.Read(t.Context(), got, 0, lazy.fill); err != nil || string(got) != string(lazy.data) {
		t.Errorf("the pack that was open: %v", err)
	}
	if n := lazy.filled() - before; n != 2 {
		t.Errorf("%d units were fetched again, want 2", n)
	}
	if _, err := s.Complete(whole.d); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the whole pack: %v", err)
	}
}

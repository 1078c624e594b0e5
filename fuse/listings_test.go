package fuse

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestListings(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "listings"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log := slog.New(slog.DiscardHandler)
	l := newListings(f, log)
	l.keep(1, []string{".", "..", "a"}, true)
	l.keep(2, nil, false)
	l.keep(1, []string{".", "..", "b"}, false) // rewound
	if _, err := f.WriteAt([]byte("half a record"), l.end); err != nil {
		t.Fatal(err)
	}
	next := newListings(f, log)
	if got, want := next.of(1), []string{".", "..", "b"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
	if next.of(2) == nil || next.of(3) != nil {
		t.Errorf("an empty listing %q, one that never was %q", next.of(2), next.of(3))
	}
	if next.end != l.end {
		t.Errorf("goes on at %d, not over the half record at %d", next.end, l.end)
	}
	var none *listings
	none.keep(1, nil, true)
	if none.of(1) != nil {
		t.Error("something out of nothing")
	}
}

// TestListingsBeginAnew: a mount that lives for years does not fill the disk.
func TestListingsBeginAnew(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "listings"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := newListings(f, slog.New(slog.DiscardHandler))
	names := []string{string(make([]byte, 200<<10))}
	for i := range 100 {
		l.keep(uint64(i+1), names, true)
	}
	if st, err := f.Stat(); err != nil || st.Size() > 2*listingsMax {
		t.Errorf("%d bytes, %v", st.Size(), err)
	}
}

func FuzzReadListings(f *testing.F) {
	f.Add(appendListing(appendListing(nil, 1, []string{"a", "b"}), 2, nil))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		had, end := readListings(bytes.NewReader(b))
		if end > int64(len(b)) {
			t.Fatalf("%d of %d bytes", end, len(b))
		}
		again, _ := readListings(io.LimitReader(bytes.NewReader(b), end))
		if !reflect.DeepEqual(had, again) {
			t.Fatalf("%v, then %v", had, again)
		}
	})
}

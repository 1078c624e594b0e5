package storage

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// boltFileOf makes a database of a bucket "b" with n keys, and a small one in it.
func boltFileOf(t testing.TB, n, pageSize int) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{NoSync: true, PageSize: pageSize})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("b"))
		if err != nil {
			return err
		}
		for i := range n {
			if err := b.Put(fmt.Appendf(nil, "key%06d", i), bytes.Repeat([]byte{byte(i)}, i%300)); err != nil {
				return err
			}
		}
		in, err := b.CreateBucket([]byte("inner"))
		if err != nil {
			return err
		}
		return in.Put([]byte("k"), []byte("v"))
	})
	if err := closed(db, err); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func closed(db *bbolt.DB, err error) error {
	if closeErr := db.Close(); err == nil {
		err = closeErr
	}
	return err
}

// TestBolt holds the reader against what bbolt writes: pages of several sizes, branches,
// overflow pages, buckets inside of their parent's page.
func TestBolt(t *testing.T) {
	for _, pageSize := range []int{1024, 4096, 65536} {
		for _, n := range []int{0, 1, 50, 5000} {
			d, err := newBolt(boltFileOf(t, n, pageSize))
			if err != nil {
				t.Fatal(err)
			}
			items, err := d.bucket("b")
			if err != nil || len(items) != n+1 {
				t.Fatalf("pages of %d, %d keys: %d, %v", pageSize, n, len(items), err)
			}
			for i := range n {
				v, ok := find(items, fmt.Sprintf("key%06d", i), false)
				if i%97 == 0 && (!ok || !bytes.Equal(v, bytes.Repeat([]byte{byte(i)}, i%300))) {
					t.Fatalf("key %d: %d bytes, %t", i, len(v), ok)
				}
				if i > 1000 {
					break
				}
			}
			inner, err := d.bucket("b", "inner")
			if err != nil || len(inner) != 1 || string(inner[0].value) != "v" {
				t.Errorf("inner bucket %v, %v", inner, err)
			}
			if none, err := d.bucket("b", "none"); err != nil || none != nil {
				t.Errorf("no bucket: %v, %v", none, err)
			}
		}
	}
}

// TestBoltCycle: pages that lead back to themselves end.
func TestBoltCycle(t *testing.T) {
	b := boltFileOf(t, 5000, 1024)
	d, err := newBolt(b)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for at := 2 * 1024; at+1024 <= len(b); at += 1024 {
		if b[at+8] == boltBranch && b[at+9] == 0 {
			for i := 0; i < int(b[at+10]); i++ {
				copy(b[at+boltPageHeader+i*boltElement+8:], b[at:at+8]) // every child is the page itself
			}
			changed++
		}
	}
	if _, err := d.bucket("b"); changed == 0 || err == nil {
		t.Errorf("%d branches lead to themselves: %v", changed, err)
	}
}

func FuzzBolt(f *testing.F) {
	f.Add(boltFileOf(f, 3, 1024))
	f.Add(boltFileOf(f, 200, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := newBolt(b)
		if err != nil {
			return
		}
		if items, err := d.bucket(); err == nil {
			for _, it := range items {
				if it.bucket {
					_, _ = d.open(it.value)
				}
			}
		}
		_, _ = d.bucket("b", "inner")
	})
}

package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPush: after a listing, small files are in the page cache without a READ, and hold what they should.
func TestPush(t *testing.T) {
	const files = 300
	v := readOnly(t, baseLayer+manyFiles(files), topLayer)
	c := start(t, v)
	dir := filepath.Join(v.Mountpoint, "many")
	if _, err := os.ReadDir(dir); err != nil {
		t.Fatal(err)
	}
	c.requests()            // what came until now
	time.Sleep(time.Second) // nobody says when the last one is there
	for i := range files {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("file%04d", i)))
		if err != nil || string(b) != strings.Repeat("x", i) {
			t.Fatalf("file %d: %d bytes, %v", i, len(b), err)
		}
	}
	if reads := c.requests()["READ"]; reads > files/10 {
		t.Errorf("%d READ for %d files that were pushed", reads, files)
	}
}

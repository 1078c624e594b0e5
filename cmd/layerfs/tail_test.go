package main

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// TestTail: whatever the pieces are, the last of a blob can be read, and nothing else.
func TestTail(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, maxTail - 1, maxTail, 3 * maxTail, 5*maxTail + 7} {
		all := make([]byte, size)
		for i := range all {
			all[i] = byte(r.Uint32())
		}
		var k tail
		for rest := all; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(3*maxTail/2))
			if _, err := k.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if len(k.b) > 2*maxTail || len(k.b) < min(size, maxTail) {
			t.Errorf("%d bytes of %d are kept", len(k.b), size)
		}
		n := min(size, maxTail)
		body, err := k.ReadRange(t.Context(), int64(size-n), int64(n))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, all[size-n:]) {
			t.Errorf("size %d: the end is another one: %v", size, err)
		}
		if _, err := k.ReadRange(t.Context(), int64(size), 1); err == nil {
			t.Error("read beyond the end")
		}
		if _, err := k.ReadRange(t.Context(), -1, 1); err == nil {
			t.Error("read before what was kept")
		}
	}
}

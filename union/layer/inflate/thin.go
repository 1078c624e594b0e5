package inflate

import (
	"bytes"
	"io"
)

// A Thinner makes the windows of checkpoints compressible. It may be used again and
// again, by one goroutine at a time.
//
// Most of a window is never referred to: only the next WindowSize bytes of output can
// reach into it, and few of them do. Which bytes they take is found by decoding
// them from windows that are made up: the bytes of the output that change with the
// window came from it, and two runs in which each byte of the window spells half of
// its position tell from where.
type Thinner struct {
	z   Reader
	out [3][WindowSize]byte
}

// Thin sets the bytes of c's window to zero that nothing decoded from it refers to,
// and reports whether it could tell. next is the input that begins where
// [Reader.Resume]'s does; when it ends before WindowSize bytes of output, and not with
// the stream, the window stays as it is. (After the end of a gzip member nothing refers to
// what was before it.)
func (t *Thinner) Thin(c Checkpoint, next []byte) bool {
	if len(c.Window) == 0 {
		return true
	}
	var n int
	for i, spell := range []func(at int) byte{
		func(at int) byte { return byte(at) },
		func(at int) byte { return byte(at >> 8) },
		func(at int) byte { return ^byte(at) },
	} {
		var ok bool
		if n, ok = t.run(c, next, spell, t.out[i][:]); !ok {
			return false
		}
	}
	used := make([]bool, len(c.Window))
	for i := range n {
		low, high, other := t.out[0][i], t.out[1][i], t.out[2][i]
		if low == other {
			continue // a literal
		}
		if at := int(high)<<8 | int(low); at < len(used) {
			used[at] = true
		}
	}
	for at := range used {
		if !used[at] {
			c.Window[at] = 0
		}
	}
	return true
}

// run decodes the first bytes after c from a window whose byte at i is spell(i).
func (t *Thinner) run(c Checkpoint, next []byte, spell func(int) byte, out []byte) (n int, ok bool) {
	if t.z.out == nil {
		t.z.in, t.z.out = make([]byte, inSize), make([]byte, 2*WindowSize+slack)
	}
	window := make([]byte, len(c.Window))
	for i := range window {
		window[i] = spell(i)
	}
	c.Window = window
	if t.z.Resume(bytes.NewReader(next), c, false) != nil {
		return 0, false
	}
	n, err := io.ReadFull(&t.z, out)
	if err != nil && t.z.err == io.EOF {
		err = nil // the stream ends here
	}
	return n, err == nil
}

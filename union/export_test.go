package union

import (
	"context"
	"io"
)

// CheckTar holds a tar against what a writable FS shows, as WriteTar does with its own.
func CheckTar(f *FS, r io.Reader, o TarOptions) ([]Loss, error) {
	c := f.startCheck(o, nextTick(), nil)
	_, err := io.Copy(c.feed, r)
	changed, differs := c.finish()
	if differs != nil {
		err = differs
	}
	return changed, err
}

// MarkAfter is one try of Mark, with something that happens between the copies and the marking.
func (f *FS) MarkAfter(ctx context.Context, do func(), last bool) (*Moment, error) {
	copies := f.copyUnseen()
	defer dropCopies(copies)
	do()
	return f.mark(ctx, copies, last)
}

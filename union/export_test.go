package union

import "io"

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

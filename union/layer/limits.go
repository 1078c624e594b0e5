package layer

import "fmt"

// Limits on what a layer may ask for. They are far above what images have, and keep a
// hostile one from taking the machine's memory or time without end. A zero takes the
// default.
type Limits struct {
	Entries  int64 // of a layer: 16 Mi; an entry takes some 100 bytes of memory
	Depth    int64 // of directories below one another: 4096, since PATH_MAX can name no more; deeper entries are left out
	TOC      int64 // bytes of a table of contents: 150 MiB, as containers/storage; the largest images have 20 MiB
	Unpacked int64 // bytes that come out of a layer: 1 TiB, more than any image
	Ratio    int64 // bytes that come out of a byte of the blob: what the compression can do at most, 1032 of DEFLATE
}

const (
	maxEntries = 16 << 20
	maxDepth   = 4096
	maxTOC     = 150 << 20
	maxTar     = 1 << 40
)

// LimitError is an ErrLimit that Limits can lift.
type LimitError struct {
	Name string // of the field of Limits, in lower case
	Max  int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%v: %s: more than %d", ErrLimit, e.Name, e.Max)
}

// Is makes it an ErrLimit.
func (e *LimitError) Is(err error) bool { return err == ErrLimit }

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		value *int64
		def   int64
	}{{&l.Entries, maxEntries}, {&l.Depth, maxDepth}, {&l.TOC, maxTOC}, {&l.Unpacked, maxTar}} {
		if *f.value <= 0 {
			*f.value = f.def
		}
	}
	l.Entries = min(l.Entries, 1<<31-1) // IDs are 32 bits
	return l
}

// unpacked is how much may come out of a blob of size bytes, and the limit that says so. ratio is
// what its compression can do at most.
func (l Limits) unpacked(size, ratio int64) (most int64, why *LimitError) {
	why = &LimitError{"ratio", ratio}
	if l.Ratio > 0 && l.Ratio < ratio {
		why.Max = l.Ratio
	}
	most = size*why.Max + 1<<20 // archives end with some blocks of zeros
	if l.Unpacked < most {
		return l.Unpacked, &LimitError{"unpacked", l.Unpacked}
	}
	return most, why
}

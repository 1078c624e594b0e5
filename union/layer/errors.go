package layer

import "errors"

// What Open, Encode and ReadAt may say beside the errors of the source and the cache.
var (
	// ErrDigest says that bytes are not those that a digest names: they were damaged or replaced on their way.
	ErrDigest = errors.New("digest mismatch")
	// ErrFormat says that a blob is no layer, or a malformed one.
	ErrFormat = errors.New("malformed layer")
	// ErrUnsupported says that a layer is of a kind that this package does not read.
	ErrUnsupported = errors.New("unsupported layer")
	// ErrLimit says that a layer asks for more than a sane one would.
	ErrLimit = errors.New("layer exceeds a limit")
)

package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/union/layer/inflate"
	"github.com/layerfs/layerfs/union/layer/ztoc"
)

// A ZTOC is where a layer's zTOC comes from: SOCI's index of a plain layer, an artifact
// beside the image. It has no digests of files, so that who vouches for it vouches
// for the tree.
type ZTOC struct {
	Digest digest.Digest
	Open   func(ctx context.Context) (io.ReadCloser, error) // its bytes, compared with Digest
}

// beside opens the layer by its zTOC, or returns nil when there is none of use.
func (op *opening) beside(ctx context.Context) (*Layer, error) {
	if op.o.ZTOC == nil {
		return nil, nil
	}
	op.report("index", 0)
	l, err := op.openZTOC(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		op.log.Warn("layer is read whole", "layer", op.desc.Digest, "err", err)
		op.why = err.Error()
		return nil, nil
	}
	op.report("ready", op.src.fetched.Load())
	return l, nil
}

func (op *opening) openZTOC(ctx context.Context) (*Layer, error) {
	b, err := op.readZTOC(ctx)
	if err != nil {
		return nil, fmt.Errorf("zTOC %s: %w", op.o.ZTOC.Digest, err)
	}
	z, err := ztoc.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("zTOC %s: %w", op.o.ZTOC.Digest, err)
	}
	x, err := op.sociIndex(z)
	if err != nil {
		return nil, fmt.Errorf("zTOC %s: %w", op.o.ZTOC.Digest, err)
	}
	if err := op.store.PutIndex(op.desc.Digest, x.encode()); err != nil {
		op.log.Warn("save index", "layer", op.desc.Digest, "err", err) // a full disk must not stop reads
	}
	return op.besideLayer(x)
}

func (op *opening) readZTOC(ctx context.Context) ([]byte, error) {
	d := op.o.ZTOC.Digest
	if err := d.Validate(); err != nil {
		return nil, err
	}
	for doubts := 0; ; doubts++ {
		body, err := op.o.ZTOC.Open(ctx)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(body, ztoc.MaxSize+1))
		_ = body.Close()
		switch {
		case err != nil:
			return nil, err
		case d.Algorithm().FromBytes(b) == d:
			return b, nil
		case doubts == maxDoubts || !doubt(body):
			return nil, fmt.Errorf("%w: it is another one", ErrDigest)
		}
	}
}

// besideLayer opens the pack of a tar that a zTOC describes. It is never that of a tar
// that was read whole, or that another zTOC describes: only this one vouches for it.
func (op *opening) besideLayer(x *index) (*Layer, error) {
	units := x.units()
	pack, err := op.store.Pack(op.desc.Digest, units)
	if err != nil {
		return nil, err
	}
	l := op.layer(x.tree, pack, newLazy(op.src, pack, newSections(x, units), units))
	l.kind = "soci"
	return l, nil
}

// seal tells the units of this index from those of others.
func (x *index) seal() (sum [sha256.Size]byte) {
	if x.soci != "" {
		sum = sha256.Sum256([]byte(x.soci))
	}
	return sum
}

func (op *opening) sociIndex(z *ztoc.ZTOC) (*index, error) {
	if z.ArchiveSize != op.desc.Size {
		return nil, fmt.Errorf("%w: it is of a blob of %d bytes, not %d", ErrFormat, z.ArchiveSize, op.desc.Size)
	}
	x := &index{blob: op.desc.Digest, soci: op.o.ZTOC.Digest, size: z.UncompressedSize}
	x.coding = codingNamed(map[ztoc.Algorithm]string{ztoc.Gzip: "gzip", ztoc.Uncompressed: "tar"}[z.Algorithm])
	if x.coding == nil || x.size > op.o.Limits.Unpacked {
		return nil, fmt.Errorf("%w: algorithm %d, %d bytes", ErrUnsupported, z.Algorithm, x.size)
	}
	var err error
	if x.sections, err = sociSections(z.Spans()); err != nil {
		return nil, err
	}
	if x.tree, err = sociTree(z, op.o.Limits); err != nil {
		return nil, err
	}
	return x, x.check()
}

func sociSections(spans []ztoc.Span) ([]section, error) {
	packer, err := newWindowPacker()
	if err != nil {
		return nil, err
	}
	sections := make([]section, len(spans))
	for i, s := range spans {
		x := section{in: s.Start, end: s.End, out: s.Out, bits: s.Bits}
		if s.Bits > 0 {
			x.in++
		}
		sum, err := sum256(s.Digest)
		if err != nil {
			return nil, err
		}
		x.sum = sum
		if len(s.Window) > 0 {
			x.window = bytes.Clone(packer.EncodeAll(s.Window, nil))
		}
		sections[i] = x
	}
	return sections, nil
}

func newWindowPacker() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(inflate.WindowSize), zstd.WithLowerEncoderMem(true))
}

func sum256(d digest.Digest) (sum [sha256.Size]byte, err error) {
	if d.Algorithm() != digest.SHA256 {
		return sum, fmt.Errorf("%w: span digest %s", ErrUnsupported, d)
	}
	_, err = hex.Decode(sum[:], []byte(d.Encoded()))
	return sum, err
}

// sociTree builds the tree as from the tar, whose entries the zTOC repeats.
func sociTree(z *ztoc.ZTOC, limits Limits) (*tree, error) {
	b := newBuilder(limits)
	for i := range z.Files {
		f := &z.Files[i]
		n, reason := tarNode(sociHeader(f))
		if reason != "" {
			b.defect(clean(f.Name), "%s", reason)
			continue
		}
		if err := b.add(f.Name, n); err != nil {
			return nil, err
		}
	}
	return b.finish(), nil
}

func sociHeader(f *ztoc.File) *tarHeader {
	h := &tarHeader{
		typ: f.Type, name: f.Name, link: f.Linkname, mode: f.Mode, uid: int64(f.UID), gid: int64(f.GID),
		size: f.Size, stored: f.Size, major: f.DevMajor, minor: f.DevMinor,
	}
	if !f.ModTime.IsZero() {
		h.sec, h.nsec = f.ModTime.Unix(), uint32(f.ModTime.Nanosecond())
	}
	for name, value := range f.Xattrs {
		h.xattrs = append(h.xattrs, Xattr{Name: name, Value: []byte(value)})
	}
	if f.Size > 0 {
		h.data = []extent{{off: 0, n: f.Size, at: f.Offset}}
	}
	return h
}

// BuildZTOC makes the zTOC of a gzip layer, which it reads whole; the blob's digest is
// compared before it returns. Errors wrap ErrDigest, ErrUnsupported (what a zTOC cannot
// say: sparse files, other compressions), ErrFormat, or are those of r.
func BuildZTOC(ctx context.Context, d ocispec.Descriptor, r Ranger, tool string) ([]byte, error) {
	body, err := (&source{r: r, size: d.Size}).openWhole(ctx)
	if err != nil {
		return nil, fmt.Errorf("index layer %s: %w", d.Digest, err)
	}
	defer body.Close()
	sum := d.Digest.Verifier()
	z, err := ztoc.Build(io.TeeReader(body, sum), ztoc.BuildOptions{Tool: tool})
	switch {
	case errors.Is(err, ztoc.ErrUnsupported):
		err = fmt.Errorf("%w: %w", ErrUnsupported, err)
	case errors.Is(err, ztoc.ErrLayer), errors.Is(err, ztoc.ErrLimit):
		err = fmt.Errorf("%w: %w", ErrFormat, err)
	case err == nil && !sum.Verified():
		err = fmt.Errorf("%w: the blob is another one", ErrDigest)
	}
	if err != nil {
		return nil, fmt.Errorf("index layer %s: %w", d.Digest, err)
	}
	return z.Encode(), nil
}

// ZTOCSpan is the distance of the checkpoints of a zTOC from BuildZTOC, in bytes of tar.
const ZTOCSpan = ztoc.DefaultSpan

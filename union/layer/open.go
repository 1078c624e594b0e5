package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/layerfs/layerfs/cache"
)

// Open opens the layer that d describes; r reads the blob, of which every byte
// that counts is verified. What s has already is not fetched again.
//
// A layer with an index (eStargz or zstd:chunked, of whose TOC d's annotations must have a digest)
// is there as soon as the index is; its content is fetched when it is read.
// Any other is read whole first, and nothing of it is kept unless its digest,
// its size and, with o.DiffID, that of its tar are right.
//
// Errors wrap ErrDigest, ErrFormat, ErrUnsupported, ErrLimit, or are those of r
// and s. The caller closes the layer before s.
func Open(ctx context.Context, d ocispec.Descriptor, r Ranger, s *cache.Store, o Options) (*Layer, error) {
	o.Limits = o.Limits.withDefaults()
	op := &opening{desc: d, store: s, o: o, src: &source{r: r, size: d.Size, checked: o.Checked}, log: o.Logger}
	if op.log == nil {
		op.log = slog.New(slog.DiscardHandler)
	}
	l, err := op.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", d.Digest, err)
	}
	return l, nil
}

// An opening is the state of one call of Open.
type opening struct {
	desc  ocispec.Descriptor
	store *cache.Store
	o     Options
	src   *source
	log   *slog.Logger
	why   string // the layer is not lazy

	badTar bool // the blob is right, and its tar another than the image says
}

func (op *opening) report(state string, done int64) {
	if op.o.Progress != nil {
		op.o.Progress(Progress{State: state, Done: done, Total: op.desc.Size})
	}
}

func (op *opening) open(ctx context.Context) (*Layer, error) {
	if err := op.check(); err != nil {
		return nil, err
	}
	op.report("waiting", 0)
	// One opens a layer, the others find it in the cache; and index and pack change together.
	unlock, err := op.store.Lock(ctx, op.desc.Digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer op.src.settle()
	for doubts := 0; ; doubts++ {
		op.src.try()
		op.why = ""
		l, err := op.once(ctx)
		if !errors.Is(err, ErrDigest) || op.badTar || doubts == maxDoubts || !op.src.doubt() {
			return l, err
		}
	}
}

// once opens the layer with what the hosts that are believed give.
func (op *opening) once(ctx context.Context) (*Layer, error) {
	steps := []func(context.Context) (*Layer, error){op.cached, op.lazily, op.beside, op.whole}
	if op.o.Whole {
		steps = steps[3:]
	}
	for _, step := range steps {
		if l, err := step(ctx); l != nil || err != nil {
			return l, err
		}
	}
	return nil, errors.ErrUnsupported // whole answers
}

// check refuses what cannot be a layer of ours before anything is fetched.
func (op *opening) check() error {
	if err := op.desc.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: digest: %w", ErrFormat, err)
	}
	if err := op.checkDiffIDForm(); err != nil {
		return err
	}
	if op.desc.Size < 0 {
		return fmt.Errorf("%w: size %d", ErrFormat, op.desc.Size)
	}
	for _, r := range refusals {
		if strings.Contains(op.desc.MediaType, r.word) {
			return fmt.Errorf("%w: %s (%s)", ErrUnsupported, r.why, op.desc.MediaType)
		}
	}
	return nil
}

func (op *opening) checkDiffIDForm() error {
	if op.o.DiffID == "" {
		return nil
	}
	if err := op.o.DiffID.Validate(); err != nil {
		return fmt.Errorf("%w: diff ID: %w", ErrFormat, err)
	}
	return nil
}

// findDiffID is called before a tar is compared with it.
func (op *opening) findDiffID(ctx context.Context) (err error) {
	if op.o.DiffID != "" || op.o.FindDiffID == nil {
		return nil
	}
	if op.o.DiffID, err = op.o.FindDiffID(ctx); err != nil {
		return err
	}
	return op.checkDiffIDForm()
}

// refusals are layers that are no tar archives, by a word of their media type, and what to do about them.
var refusals = []struct{ word, why string }{
	{"encrypted", "the layer is encrypted: decrypt the image first, with skopeo copy --decryption-key"},
	{"nydus", "a nydus layer is no tar: open the image that it was converted from"},
	{"in-toto", "an attestation is no layer: open the image that it is about"},
	{"erofs", whyErofs},
}

const whyErofs = "an EROFS image is no tar: open the image that it was made from, or mount the blob with mount -t erofs"

// cached opens the layer from the cache, or returns nil.
func (op *opening) cached(ctx context.Context) (*Layer, error) {
	b, err := op.store.Index(op.desc.Digest)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			op.log.Warn("read index", "layer", op.desc.Digest, "err", err)
		}
		return nil, nil
	}
	x, err := decodeIndex(b)
	if err == nil && x.blob != op.desc.Digest {
		err = fmt.Errorf("%w: of another layer", errIndex)
	}
	if err != nil {
		op.log.Warn("read index", "layer", op.desc.Digest, "err", err)
		return nil, nil
	}
	var l *Layer
	if x.soci != "" {
		if op.o.ZTOC != nil && op.o.ZTOC.Digest == x.soci {
			l, err = op.besideLayer(x)
		}
	} else if x.toc == "" {
		l, err = op.cachedTar(ctx, x)
	} else {
		l, err = op.cachedTOC(x)
	}
	if l != nil {
		op.report("cached", op.desc.Size)
		op.src.check(Check{What: "cache", Digest: op.desc.Digest})
	}
	return l, err
}

// cachedTar opens a layer that was read whole once. What of it has left the cache since
// is fetched again by sections.
func (op *opening) cachedTar(ctx context.Context, x *index) (*Layer, error) {
	if err := op.findDiffID(ctx); err != nil {
		return nil, err
	}
	pack, z, err := op.openPack(x)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			op.log.Warn("open pack", "layer", op.desc.Digest, "err", err)
		}
		return nil, nil
	}
	if pack.Size() != x.size {
		return nil, pack.Close()
	}
	if err := op.checkDiffID(x.diff); err != nil {
		return nil, errors.Join(err, pack.Close())
	}
	return op.layer(x.tree, pack, z), nil
}

// openPack opens the pack of a tar; without sections all of it must be there.
func (op *opening) openPack(x *index) (*cache.Pack, *lazy, error) {
	if len(x.sections) == 0 {
		pack, err := op.store.Complete(op.desc.Digest)
		return pack, nil, err
	}
	units := x.units()
	pack, err := op.store.Pack(op.desc.Digest, units)
	if err != nil {
		return nil, nil, err
	}
	return pack, newLazy(op.src, pack, newSections(x, units), units), nil
}

func (op *opening) checkDiffID(got digest.Digest) (err error) {
	want := op.o.DiffID
	if want == "" || want.Algorithm() != got.Algorithm() {
		return nil
	}
	if want != got {
		err = fmt.Errorf("%w: the tar is %s, not %s", ErrDigest, got, want)
		op.badTar = true
	}
	op.src.check(Check{What: "tar", Digest: want, Err: err})
	return err
}

func (op *opening) layer(t *tree, pack *cache.Pack, z *lazy) *Layer {
	return &Layer{digest: op.desc.Digest, tree: t, pack: pack, lazy: z, src: op.src, why: op.why, kind: "tar"}
}

// errNoParts says that units were left out of a pack of which nothing can be fetched by itself.
var errNoParts = errors.New("the layer cannot be cut into sections")

// whole reads the blob from its first byte to its last.
func (op *opening) whole(ctx context.Context) (*Layer, error) {
	if err := op.findDiffID(ctx); err != nil {
		return nil, err
	}
	l, err := op.readWhole(ctx, true)
	if errors.Is(err, errNoParts) { // the blob was made for it, or by something very odd
		l, err = op.readWhole(ctx, false)
	}
	return l, err
}

// readWhole is whole; parts allows that units for which there is no room are left out.
func (op *opening) readWhole(ctx context.Context, parts bool) (*Layer, error) {
	w, err := op.store.Create(op.desc.Digest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = w.Abort() }() // nothing is left to abort after Commit
	st, err := newStream(op.src, op.desc, op.o.DiffID, w)
	if err != nil {
		return nil, err
	}
	st.progress, st.limits, st.parts = op.report, op.o.Limits, parts
	op.report("fetching", 0)
	t, err := st.run(ctx)
	if err == nil || errors.Is(err, ErrDigest) {
		op.src.check(Check{What: "blob", N: op.desc.Size, Digest: op.desc.Digest, Err: err})
	}
	if err != nil {
		return nil, err
	}
	x := &index{blob: op.desc.Digest, diff: st.diffID(), size: st.size, tree: t, coding: st.coding, sections: st.survey.sections(st.size)}
	if err := op.checkDiffID(x.diff); err != nil {
		return nil, err
	}
	op.report("index", op.desc.Size)
	pack, z, err := op.commit(w, x)
	if err != nil {
		return nil, err
	}
	if op.why == "" {
		op.why = "no index: the layer was read whole"
	}
	op.report("ready", op.desc.Size)
	return op.layer(t, pack, z), nil
}

// commit publishes what was read whole. With sections the pack is then opened as one that is filled
// lazily, so that what was left out, evicted or damaged is fetched again; the disk need not have taken it.
func (op *opening) commit(w *cache.Writer, x *index) (*cache.Pack, *lazy, error) {
	parts := len(x.sections) > 0
	if !parts && w.Lost() {
		return nil, nil, errNoParts
	}
	w.MayLose(parts)
	written, err := w.Commit(x.encode())
	if !parts || err != nil && !cache.Refused(err) {
		return written, nil, err
	}
	if err != nil {
		op.log.Warn("save layer", "layer", op.desc.Digest, "err", err)
		return op.openPack(x)
	}
	pack, z, err := op.openPack(x)
	return pack, z, errors.Join(err, written.Close())
}

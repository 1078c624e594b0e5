package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strings"

	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic"
	"github.com/layerfs/layerfs/union/layer"
)

// A job is a file whose content is needed.
type job struct {
	path  string
	layer int
	entry layer.ID
	size  int64
	state forensic.Fate
	by    int
	sums  []claim // that its content is held against; none: secrets are looked for
}

// contents reads what has to be read, layer by layer and in the order in which a layer has it.
func (a *auditor) contents(ctx context.Context) error {
	jobs := a.checked()
	jobs = append(jobs, a.searched(jobs)...)
	slices.SortStableFunc(jobs, func(x, y job) int {
		return cmp.Or(cmp.Compare(x.layer, y.layer), cmp.Compare(x.entry, y.entry))
	})
	buf := make([]byte, 1<<20)
	for _, j := range jobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.look(ctx, j, buf); err != nil {
			return &union.DataError{Path: j.path, Layer: j.layer, Err: err}
		}
	}
	return nil
}

// checked are the files that a package has a checksum of, and at once those that are of
// another type now.
func (a *auditor) checked() (jobs []job) {
	for p, c := range a.owners.claims {
		id, err := a.im.Tree.Resolve(p)
		if err != nil || c.sum.hex == "" {
			continue
		}
		if at := a.im.Tree.Attr(id); at.Type() != modeFile {
			a.notAFile(p, id, c)
			continue
		}
		l, e := a.im.Tree.Origin(id)
		jobs = append(jobs, job{path: p, layer: l, entry: e, size: a.im.Tree.Size(id), sums: []claim{c}})
	}
	return jobs
}

// notAFile deals with what has a checksum and is no regular file: apk has those of links.
func (a *auditor) notAFile(p string, id union.ID, c claim) {
	if at := a.im.Tree.Attr(id); at.Type() == modeLink && c.sum.algorithm == "sha1" {
		h := sha1.Sum([]byte(a.im.Tree.Readlink(id)))
		if hex.EncodeToString(h[:]) == c.sum.hex {
			return
		}
		a.add(Changed, p, id, "leads elsewhere than package "+c.pkg+" has it")
		return
	}
	a.add(Changed, p, id, "no regular file any more, as package "+c.pkg+" has it")
}

// maxSearched is the longest file that secrets are looked for in: keys and configuration are short.
const maxSearched = 1 << 20

// searched are the small files, in every layer, that are no package's unchanged property:
// what a later layer deletes can be read by whoever has the image.
func (a *auditor) searched(checked []job) (jobs []job) {
	known := map[[2]uint64]bool{}
	for _, j := range checked {
		known[[2]uint64{uint64(j.layer), uint64(j.entry)}] = !j.sums[0].conffile
	}
	for r := range forensic.Records(a.im.Layers) {
		key := [2]uint64{uint64(r.Layer), uint64(r.ID)}
		if r.Whiteout || r.Entry.Mode&modeType != modeFile || r.Entry.Size == 0 || r.Entry.Size > maxSearched || known[key] || kept(r.Path) {
			continue
		}
		known[key] = true // other names of one file
		jobs = append(jobs, job{path: r.Path, layer: r.Layer, entry: r.ID, size: r.Entry.Size, state: r.Fate, by: r.By})
	}
	return jobs
}

func (a *auditor) look(ctx context.Context, j job, buf []byte) error {
	l := a.im.Layers[j.layer]
	if len(j.sums) == 0 {
		n, err := readFull(ctx, l, j.entry, buf[:j.size], 0)
		a.result.Read += int64(n)
		a.secrets(j, buf[:n])
		return err
	}
	c := j.sums[0]
	h := newHash(c.sum.algorithm)
	for off := int64(0); off < j.size; {
		n, err := readFull(ctx, l, j.entry, buf[:min(int64(len(buf)), j.size-off)], off)
		a.result.Read += int64(n)
		if err != nil {
			return err
		}
		_, _ = h.Write(buf[:n])
		off += int64(n)
	}
	if hex.EncodeToString(h.Sum(nil)) == c.sum.hex {
		return nil
	}
	what := "not what package " + c.pkg + " brought"
	if c.conffile {
		what = "configuration, " + what
	}
	a.list = append(a.list, Finding{Rule: Changed, Path: j.path, Layer: j.layer, State: j.state.String(), Detail: what})
	return nil
}

func newHash(algorithm string) hash.Hash {
	switch algorithm {
	case "sha1":
		return sha1.New()
	case "sha256":
		return sha256.New()
	case "sha512":
		return sha512.New()
	}
	return md5.New()
}

// readFull reads all of p.
func readFull(ctx context.Context, l *layer.Layer, id layer.ID, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		k, err := l.ReadAt(ctx, id, p[n:], off+int64(n))
		if n += k; err != nil && n < len(p) {
			return n, err
		}
		if k == 0 {
			return n, fmt.Errorf("%d bytes of %d", n, len(p))
		}
	}
	return n, nil
}

// words looks for secrets in the config.
func (a *auditor) words() {
	for _, w := range a.im.Words {
		for _, s := range find([]byte(w.Text), true) {
			a.list = append(a.list, Finding{Rule: Secret, Layer: w.Layer, State: forensic.Visible.String(), Detail: s + " in " + w.Where})
		}
	}
}

// secrets looks for secrets in a file.
func (a *auditor) secrets(j job, text []byte) {
	if bytes.IndexByte(text[:min(len(text), 8<<10)], 0) >= 0 && !bytes.Contains(text, []byte("PRIVATE KEY")) {
		return // no text
	}
	list := find(text, false)
	if strings.HasSuffix("/"+j.path, "/etc/shadow") || strings.HasSuffix("/"+j.path, "/etc/shadow-") {
		list = append(list, passwords(text)...)
	}
	state := j.state.String()
	if j.state != forensic.Visible {
		state += fmt.Sprintf(" by layer %d", j.by+1)
	}
	for _, s := range list {
		a.list = append(a.list, Finding{Rule: Secret, Path: j.path, Layer: j.layer, State: state, Detail: s})
	}
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"strings"
)

// A baseNote is what is kept of the base of a writable mount beside its name, which is by digest
// and of one platform: a commit wants to know what else there is to it.
type baseNote struct {
	Image    string `json:"image,omitempty"` // as the user gave it
	Index    string `json:"index,omitempty"` // the index it was found in, by digest
	Platform string `json:"platform,omitempty"`
}

func (im *image) note(e *env) baseNote {
	return baseNote{Image: im.Ref, Index: im.IndexName(), Platform: e.platform}
}

// String is the note as an upper directory keeps it.
func (n baseNote) String() string {
	b, _ := json.Marshal(n) // strings cannot fail
	return string(b)
}

// parseNote reads what an upper directory keeps; one of another version says nothing.
func parseNote(s string) (n baseNote) {
	_ = json.Unmarshal([]byte(s), &n)
	return n
}

// openBase opens the base of an upper directory, with the index it was found in where that can be had.
func (e *env) openBase(ctx context.Context, at upperPlace, open func(context.Context, string) (*image, error)) (*image, error) {
	e.platform = cmp.Or(e.platform, at.note.Platform)
	if at.note.Index != "" && at.note.Index != at.ref {
		im, err := open(ctx, at.note.Index)
		if err == nil && strings.HasSuffix(at.ref, "@"+im.Desc.Digest.String()) {
			return im, nil
		}
		if err == nil {
			err = im.Close()
		}
		e.log.Warn("the index that the base image was found in cannot be had; the new image is of one platform", "index", at.note.Index, "err", err)
	}
	return open(ctx, at.ref)
}

package main

import (
	"context"

	"github.com/layerfs/layerfs/union"
)

// openSquashed is openChanges for a layer of all that shows: there is one of an image, and
// of a mount that nobody wrote to, as well.
func (e *env) openSquashed(ctx context.Context, src string, o changeOptions) (*changeSet, error) {
	t, err := e.findTarget(src)
	if err != nil {
		return nil, err
	}
	if t.container {
		return e.openChanges(ctx, src, o)
	}
	im, err := e.openLayersOf(ctx, t.ref, t.span)
	if err != nil {
		return nil, err
	}
	return newChangeSet(im, union.New(im.tree, nil), o.TarOptions, im.Close), nil
}

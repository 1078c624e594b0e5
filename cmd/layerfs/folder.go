package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/layerfs/layerfs/fuse"
	"github.com/layerfs/layerfs/union"
	"github.com/layerfs/layerfs/union/forensic/meta"
)

// makeFolder makes what --meta adds to the mount.
func (s *server) makeFolder(ctx context.Context) error {
	if !s.plan.meta {
		return nil
	}
	if _, err := s.fs.Find(union.Root, meta.Name); err == nil {
		return fmt.Errorf("mount %s: there is a /%s already, which --meta would hide; mount without it", s.plan.dir, meta.Name)
	}
	if err := s.im.LoadConfig(ctx); err != nil {
		return err
	}
	first := s.plan.span.first()
	s.folder = meta.New(meta.Options{
		Layers: s.im.layers, First: first, Tree: s.im.tree, Steps: s.im.steps()[first:], IDs: s.plan.ids, Time: s.begun,
		Files: []meta.File{
			{Name: "manifest.json", Data: func() ([]byte, error) { return s.image().RawManifest, nil }},
			{Name: "config.json", Data: func() ([]byte, error) { return s.image().RawConfig, nil }},
			{Name: "history.json", Data: func() ([]byte, error) { return asJSON(s.image().history()) }},
			{Name: "status.json", Data: func() ([]byte, error) { return asJSON(s.status()) }},
		},
	})
	return nil
}

// hidden is nil without --meta: a nil *meta.Folder would be a fuse.Hidden.
func (s *server) hidden() fuse.Hidden {
	if s.folder == nil {
		return nil
	}
	return s.folder
}

// asJSON is what the commands print with --json.
func asJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	err := writeJSON(&b, v)
	return b.Bytes(), err
}

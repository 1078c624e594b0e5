package registry

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// newConfig returns the config of an image that adds a layer with this diff ID
// to base, or none where it is "". Only what a commit changes is changed: keys
// nobody here knows survive.
func newConfig(base *Image, diffID digest.Digest, o PushOptions, now time.Time) ([]byte, error) {
	c, err := parseRaw(base.RawConfig)
	if err != nil {
		return nil, faultf(ErrIntegrity, "config of the base image: %w", err)
	}
	if err := checkDiffIDs(base); err != nil {
		return nil, err
	}
	steps := []func(*rawObject) error{
		func(c *rawObject) error { return setTimeAndAuthor(c, o, now) },
		func(c *rawObject) error { return appendDiffID(c, diffID) },
		func(c *rawObject) error { return appendHistory(c, base, diffID == "", o, now) },
		func(c *rawObject) error { return applyChanges(c, o.Changes) },
	}
	for _, step := range steps {
		if err := step(c); err != nil {
			return nil, err
		}
	}
	return c.bytes(), nil
}

func checkDiffIDs(base *Image) error {
	if n := len(base.Config.RootFS.DiffIDs); n != len(base.Manifest.Layers) {
		return faultf(ErrIntegrity, "the base image has %d layers but %d diff IDs", len(base.Manifest.Layers), n)
	}
	return nil
}

func setTimeAndAuthor(c *rawObject, o PushOptions, now time.Time) error {
	if o.Author != "" {
		if err := c.set("author", o.Author); err != nil {
			return err
		}
	}
	return c.set("created", now)
}

func appendDiffID(c *rawObject, diffID digest.Digest) error {
	if diffID == "" {
		return nil
	}
	fs, err := c.object("rootfs")
	if err != nil {
		return faultf(ErrIntegrity, "rootfs of the base image: %w", err)
	}
	ids, err := fs.list("diff_ids")
	if err != nil {
		return faultf(ErrIntegrity, "diff IDs of the base image: %w", err)
	}
	id, err := marshal(diffID)
	if err != nil {
		return err
	}
	if err := fs.set("type", "layers"); err != nil {
		return err
	}
	fs.setRaw("diff_ids", rawList(append(ids, id)))
	c.setRaw("rootfs", fs.bytes())
	return nil
}

// appendHistory adds the new entry. The entries that made a layer must be as
// many as the layers, or docker refuses the image: a base without a full history
// (buildpacks, bazel) gets entries that say so.
func appendHistory(c *rawObject, base *Image, empty bool, o PushOptions, now time.Time) error {
	list, err := c.list("history")
	if err != nil {
		return faultf(ErrIntegrity, "history of the base image: %w", err)
	}
	made := 0
	for _, h := range base.Config.History {
		if !h.EmptyLayer {
			made++
		}
	}
	for ; made < len(base.Manifest.Layers); made++ {
		list = append(list, json.RawMessage(`{"comment":"layer of the base image, without history"}`))
	}
	entry, err := marshal(ocispec.History{
		Created: &now, CreatedBy: o.CreatedBy, Author: o.Author, Comment: o.Message, EmptyLayer: empty,
	})
	if err != nil {
		return err
	}
	c.setRaw("history", rawList(append(list, entry)))
	return nil
}

func applyChanges(c *rawObject, lines []string) error {
	for _, line := range lines {
		m := map[string]json.RawMessage{}
		if raw, ok := c.values["config"]; ok {
			m["config"] = raw
		}
		if err := ApplyChange(m, line); err != nil {
			return err
		}
		c.setRaw("config", m["config"])
	}
	return nil
}

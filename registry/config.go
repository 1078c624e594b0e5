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

// appendHistory adds the new entry.
func appendHistory(c *rawObject, base *Image, empty bool, o PushOptions, now time.Time) error {
	list, err := c.list("history")
	if err == nil {
		list, err = evenHistory(list, len(base.Manifest.Layers))
	}
	if err != nil {
		return faultf(ErrIntegrity, "history of the base image: %w", err)
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

// evenHistory makes the entries that made a layer as many as the layers, or docker
// refuses the image: a base without a full history (buildpacks, bazel) gets entries
// that say so, and of one that was squashed, without a word of it, the newest
// entries have made no layer.
func evenHistory(list []json.RawMessage, layers int) ([]json.RawMessage, error) {
	var made []int // indexes of the entries that made a layer
	for i, raw := range list {
		var h ocispec.History
		if err := json.Unmarshal(raw, &h); err != nil {
			return nil, err
		}
		if !h.EmptyLayer {
			made = append(made, i)
		}
	}
	for n := len(made); n < layers; n++ {
		list = append(list, json.RawMessage(`{"comment":"layer of the base image, without history"}`))
	}
	for _, i := range made[min(layers, len(made)):] {
		h, err := parseRaw(list[i])
		if err != nil {
			return nil, err
		}
		if err := h.set("empty_layer", true); err != nil {
			return nil, err
		}
		list[i] = h.bytes()
	}
	return list, nil
}

func applyChanges(c *rawObject, lines []string) error {
	m := map[string]json.RawMessage{}
	if raw, ok := c.values["config"]; ok {
		m["config"] = raw
	}
	if err := ApplyChanges(m, lines); err != nil {
		return err
	}
	if len(lines) > 0 {
		c.setRaw("config", m["config"])
	}
	return nil
}

package registry

import (
	"encoding/json"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// squashed returns the image without its layers and without what its config says of how
// they were made. All else that manifest and config say stays. It must not be closed, and
// has no blobs.
func squashed(im *Image) (*Image, error) {
	config, err := parseRaw(im.RawConfig)
	if err != nil {
		return nil, faultf(ErrIntegrity, "config of the base image: %w", err)
	}
	empty := json.RawMessage("[]")
	fs, err := config.object("rootfs")
	if err != nil {
		return nil, faultf(ErrIntegrity, "rootfs of the base image: %w", err)
	}
	fs.setRaw("diff_ids", empty)
	config.setRaw("rootfs", fs.bytes())
	config.setRaw("history", empty)
	manifest, err := parseRaw(im.RawManifest)
	if err != nil {
		return nil, faultf(ErrIntegrity, "manifest of the base image: %w", err)
	}
	manifest.setRaw("layers", empty)
	out := &Image{
		Ref: im.Ref, Name: im.Name, RawManifest: manifest.bytes(), RawConfig: config.bytes(),
		Desc:     ocispec.Descriptor{MediaType: im.Desc.MediaType}, // none that another image could be based on
		Manifest: im.Manifest, Config: im.Config,
	}
	out.Manifest.Layers, out.Config.RootFS.DiffIDs, out.Config.History = nil, nil, nil
	return out, nil
}

package registry

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Platform is what an image must be for.
type Platform struct {
	OS, Arch, Variant string
	asked             bool // by the user, not assumed
}

// ParsePlatform parses OS/ARCH[/VARIANT], or ARCH alone. The empty string is
// linux on this machine's architecture. Usual other names of architectures
// (x86_64, aarch64, armhf) are understood. Errors wrap ErrUsage.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return normalPlatform("linux", runtime.GOARCH, ""), nil
	}
	parts := strings.Split(strings.ToLower(s), "/")
	if len(parts) == 1 {
		parts = append([]string{"linux"}, parts...)
	}
	if len(parts) == 2 {
		parts = append(parts, "")
	}
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" {
		return Platform{}, faultf(ErrUsage, "malformed platform %q", s).withHint("platforms are OS/ARCH[/VARIANT]: linux/arm64, linux/arm/v7")
	}
	p := normalPlatform(parts[0], parts[1], parts[2])
	p.asked = true
	return p, nil
}

// String returns OS/ARCH[/VARIANT].
func (p Platform) String() string {
	if p.Variant == "" {
		return p.OS + "/" + p.Arch
	}
	return p.OS + "/" + p.Arch + "/" + p.Variant
}

// normalPlatform gives every platform one spelling: arm without a variant is
// v7, arm64's v8 and amd64's v1 go without saying.
func normalPlatform(os, arch, variant string) Platform {
	switch arch {
	case "x86_64", "x86-64":
		arch = "amd64"
	case "i386", "i486", "i586", "i686":
		arch = "386"
	case "aarch64":
		arch = "arm64"
	case "armhf":
		arch, variant = "arm", "v7"
	case "armel":
		arch, variant = "arm", "v6"
	}
	if variant != "" && variant[0] >= '0' && variant[0] <= '9' {
		variant = "v" + variant
	}
	switch arch + "/" + variant {
	case "arm/":
		variant = "v7"
	case "arm64/v8", "amd64/v1":
		variant = ""
	}
	return Platform{OS: os, Arch: arch, Variant: variant}
}

func fromSpec(p ocispec.Platform) Platform {
	return normalPlatform(strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant))
}

// rank tells how well an image for q runs on p: 0 not at all, else more is
// better. Processors run the code of every earlier variant.
func (p Platform) rank(q Platform) int {
	switch {
	case p.OS != q.OS || p.Arch != q.Arch:
		return 0
	case p.Variant == q.Variant:
		return 100
	case q.Variant == "":
		return 1
	case len(p.Variant) == len(q.Variant) && q.Variant < p.Variant:
		return 1 + int(q.Variant[len(q.Variant)-1]-'0')
	}
	return 0
}

// check compares a single image's config with an explicit wish: nobody who
// asks for arm64 wants amd64. Configs that name no platform pass.
func (p Platform) check(have ocispec.Platform) error {
	if !p.asked || have.OS == "" || have.Architecture == "" || p.rank(fromSpec(have)) > 0 {
		return nil
	}
	return faultf(ErrNotFound, "the image is for %s, not for %s", fromSpec(have), p)
}

// pick returns the descriptor of an index that suits want best, the first of
// equals. Where no entry names a platform, a single one is taken.
func pick(list []ocispec.Descriptor, want Platform) (ocispec.Descriptor, error) {
	list = slices.DeleteFunc(slices.Clone(list), isSide)
	best, top := ocispec.Descriptor{}, 0
	var have []string
	for _, d := range list {
		if d.Platform == nil {
			continue
		}
		p := fromSpec(*d.Platform)
		have = append(have, p.String())
		if r := want.rank(p); r > top {
			best, top = d, r
		}
	}
	switch {
	case top > 0:
		return best, nil
	case len(list) == 1 && list[0].Platform == nil:
		return list[0], nil
	case len(list) == 0:
		return best, faultf(ErrNotFound, "the index holds no image")
	}
	return best, faultf(ErrNotFound, "no image for %s in the index", want).
		withHint("it has " + strings.Join(have, ", ") + "; choose one with --platform")
}

// sociPrefix begins the media types of SOCI's indexes, v1 and v2.
const sociPrefix = "application/vnd.amazon.soci."

// isSOCI tells whether a manifest is a SOCI index. One type stands in
// artifactType, or in the config's media type.
func isSOCI(raw []byte) bool {
	var m ocispec.Manifest
	if json.Unmarshal(raw, &m) != nil {
		return false
	}
	return strings.HasPrefix(m.ArtifactType, sociPrefix) || strings.HasPrefix(m.Config.MediaType, sociPrefix)
}

// isSide tells whether an entry of an index is something beside the images:
// an attestation, a SOCI index (which carries the platform of its image), or a
// nydus image that its converter put beside the plain one.
func isSide(d ocispec.Descriptor) bool {
	switch {
	case d.Annotations["vnd.docker.reference.type"] != "":
		return true
	case strings.HasPrefix(d.ArtifactType, sociPrefix):
		return true
	case d.Annotations["com.amazon.soci.image-manifest-digest"] != "":
		return true
	case d.Platform == nil:
		return false
	}
	return d.Platform.OS == "unknown" || slices.Contains(d.Platform.OSFeatures, "nydus.remoteimage.v1")
}

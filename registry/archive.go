package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A dockerArchive is what "docker save" writes. It holds no manifest in the
// registry's sense; one is made up from manifest.json.
type dockerArchive struct {
	ref   Ref
	files *tarFiles
	names map[digest.Digest]string // of config and layers, in the archive
}

// An archivedImage is one entry of manifest.json.
type archivedImage struct {
	Config       string
	RepoTags     []string
	Layers       []string
	LayerSources map[digest.Digest]ocispec.Descriptor `json:",omitempty"`
}

func openDockerArchive(r Ref, o Options) (source, error) {
	t, err := openTar(r.Path, o.TempDir)
	if err != nil {
		return nil, err
	}
	return &dockerArchive{r, t, map[digest.Digest]string{}}, nil
}

func (a *dockerArchive) close() error { return a.files.close() }

// resolve makes the manifest of the image that the reference means.
func (a *dockerArchive) resolve(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	var none ocispec.Descriptor
	b, err := readFile(a.files, "manifest.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil, faultf(ErrNotFound, "not a docker archive: it has no manifest.json").withHint("an OCI layout in a tar is oci-archive:FILE")
	}
	if err != nil {
		return none, nil, err
	}
	var list []archivedImage
	if err := json.Unmarshal(b, &list); err != nil {
		return none, nil, faultf(ErrIntegrity, "manifest.json: %w", err)
	}
	img, err := a.find(list)
	if err != nil {
		return none, nil, err
	}
	m, err := a.describe(ctx, img)
	if err != nil {
		return none, nil, err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return none, nil, err
	}
	return ocispec.Descriptor{MediaType: dockerManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, nil
}

// find returns the image of a reference, of "@N" or, without either, the only one.
func (a *dockerArchive) find(list []archivedImage) (archivedImage, error) {
	var tags []string
	for i, img := range list {
		if a.ref.Tag == "@"+strconv.Itoa(i) || a.ref.Tag == "" && len(list) == 1 {
			return img, nil
		}
		for _, t := range img.RepoTags {
			if a.ref.Tag != "" && sameName(t, a.ref.Tag) {
				return img, nil
			}
		}
		tags = append(tags, img.RepoTags...)
	}
	hint := "it has " + strings.Join(tags, ", ")
	if len(tags) == 0 {
		hint = "it has no names: use @0, @1, …"
	}
	if a.ref.Tag == "" {
		return archivedImage{}, faultf(ErrUsage, "the archive holds %d images: name one", len(list)).withHint(hint)
	}
	return archivedImage{}, faultf(ErrNotFound, "no image %q", a.ref.Tag).withHint(hint)
}

// sameName compares two names after filling in the defaults.
func sameName(a, b string) bool {
	if a == b {
		return true
	}
	x, err1 := parseName(a)
	y, err2 := parseName(b)
	return err1 == nil && err2 == nil && x == y
}

func (a *dockerArchive) describe(ctx context.Context, img archivedImage) (ocispec.Manifest, error) {
	m := ocispec.Manifest{MediaType: dockerManifest}
	m.SchemaVersion = 2
	raw, err := readFile(a.files, img.Config, maxConfig)
	if err != nil {
		return m, notFound(err, "the archive lacks the config "+strconv.Quote(img.Config))
	}
	m.Config = ocispec.Descriptor{MediaType: dockerConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	a.names[m.Config.Digest] = img.Config
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return m, faultf(ErrIntegrity, "config: %w", err)
	}
	if len(img.Layers) != len(config.RootFS.DiffIDs) {
		return m, faultf(ErrIntegrity, "%d layers but %d diff IDs", len(img.Layers), len(config.RootFS.DiffIDs))
	}
	for i, name := range img.Layers {
		d, err := a.layer(ctx, name, config.RootFS.DiffIDs[i])
		if err != nil {
			return m, err
		}
		if src, ok := img.LayerSources[config.RootFS.DiffIDs[i]]; ok && src.Digest == d.Digest {
			d.Annotations = src.Annotations
		}
		a.names[d.Digest] = name
		m.Layers = append(m.Layers, d)
	}
	return m, nil
}

// blobNameRE is where newer versions of docker keep blobs, as an OCI layout does.
var blobNameRE = regexp.MustCompile(`^blobs/(sha256|sha512)/([0-9a-f]+)$`)

// layer describes a layer's file. Its digest is read off where it stands: in
// the file's name, or in the diff ID where the file is a plain tar. Whoever reads the layer
// compares. Only a compressed layer under another name has to be hashed here.
func (a *dockerArchive) layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	e, err := a.files.find(name)
	if err != nil {
		return ocispec.Descriptor{}, notFound(err, "the archive lacks the layer "+strconv.Quote(name))
	}
	d := ocispec.Descriptor{Size: e.size}
	var magic [4]byte
	if _, err := a.files.f.ReadAt(magic[:min(e.size, 4)], e.off); err != nil {
		return d, faultf(ErrIntegrity, "layer %q: %w", name, err)
	}
	d.MediaType = layerType(magic[:])
	named := digest.Digest(blobNameRE.ReplaceAllString(name, "$1:$2"))
	switch {
	case named.Validate() == nil:
		d.Digest = named
	case d.MediaType == dockerLayer && diffID.Validate() == nil:
		d.Digest = diffID
	default:
		d.Digest, err = hashAll(ctx, io.NewSectionReader(a.files.f, e.off, e.size))
	}
	return d, err
}

func layerType(magic []byte) string {
	switch {
	case isGzip(magic):
		return dockerLayerGzip
	case isZstd(magic):
		return dockerLayerZstd
	}
	return dockerLayer
}

// hashAll returns the digest of all of r.
func hashAll(ctx context.Context, r *io.SectionReader) (digest.Digest, error) {
	h := digest.SHA256.Digester()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := r.Read(buf)
		h.Hash().Write(buf[:n])
		if err == io.EOF {
			return h.Digest(), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// manifest has nothing to open: an archive has no index of manifests.
func (a *dockerArchive) manifest(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(nil)), faultf(ErrNotFound, "manifest unknown")
}

func (a *dockerArchive) blob(d ocispec.Descriptor, c *counter) ranger {
	name, ok := a.names[d.Digest]
	if !ok {
		name = blobPath(d.Digest)
	}
	return &fileBlob{files: a.files, desc: d, name: name, count: c}
}

package registry

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options say how a registry is reached. The zero value is usable.
type Options struct {
	Platform string // OS/ARCH[/VARIANT]; "": linux on this machine's architecture

	PlainHTTP             bool // http is tried for every host, not only for loopback
	InsecureSkipTLSVerify bool
	// Wait is how long reading a blob goes on with trying while the registry does not answer, from its
	// first failure on; it counts from when the registry has answered once (see
	// Image.WaitForRegistry). 0: a few tries. Who reads leaves any time by his context.
	Wait        time.Duration
	Stale       bool   // a tag means what it meant last, by Records, while the registry does not answer; see Image.Stale
	Offline     bool   // nothing but Records and local files is used
	DeferConfig bool   // the config is read by LoadConfig, unless Platform must be checked against it
	AuthFile    string // in place of the usual places for credentials
	HostsDir    string // of hosts.toml files, which say what mirrors a registry has before registries.conf does; "": none

	Records   Records           // nil: none; then Offline finds nothing in a registry
	Logger    *slog.Logger      // nil discards
	Transport http.RoundTripper // nil: our own over TCP and TLS, with the proxies of the environment
	// Wrap is put around Transport: what it returns sees every request as it is sent, with
	// credentials, and every answer. nil: nothing.
	Wrap      func(http.RoundTripper) http.RoundTripper
	UserAgent string // "": "layerfs"
	TempDir   string // for blobs of registries without ranges; "": os.TempDir()
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// Records keep manifests, configs and what tags pointed to, so that an image
// can be opened again without the registry. *cache.Store has the methods.
// Load returns fs.ErrNotExist for a name that was never saved.
type Records interface {
	Load(name string) ([]byte, error)
	Save(name string, b []byte) error
}

// An Image is one image of one platform: its manifest, its config, and the way
// to its blobs. It is safe for concurrent use. Close it when no Blob of it is
// read any more.
type Image struct {
	Ref  string // as given to Open
	Name string // stays true when the tag moves: "localhost:5000/py@sha256:…"; of local files "oci:DIR:TAG"

	Desc        ocispec.Descriptor // of the manifest
	Manifest    ocispec.Manifest
	RawManifest []byte
	Config      ocispec.Image
	RawConfig   []byte

	ref         Ref
	src         source
	index       *foundIndex // nil: there was none
	want        Platform
	deferConfig bool
	configMu    sync.Mutex // held while the config is read

	// Stale is why the tag was not asked for, and what it meant last was taken instead; nil: it was asked for.
	Stale error

	// Unpacked says where the layers are if they are directories on disk; nil: they are blobs.
	Unpacked *Unpacked

	mu    sync.Mutex
	blobs map[string]*Blob // by digest; protected by mu
}

// Open finds the image that ref names and reads its manifest and config, both
// verified by digest; no layer is touched. An index is resolved to the manifest
// of o.Platform. Errors are *Error.
func Open(ctx context.Context, ref string, o Options) (*Image, error) {
	im, err := open(ctx, ref, o)
	if err != nil {
		return nil, wrapError("open", quoteRef(ref), err)
	}
	return im, nil
}

func open(ctx context.Context, ref string, o Options) (*Image, error) {
	r, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	want, err := ParsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	src, err := newSource(r, o)
	if err != nil {
		return nil, err
	}
	if _, local := src.(*unpacked); local {
		o.DeferConfig = false // it is at hand
	}
	im := &Image{Ref: ref, ref: r, src: src, deferConfig: o.DeferConfig, blobs: map[string]*Blob{}}
	if err := im.load(ctx, want); err != nil {
		_ = src.close()
		return nil, err
	}
	if u, ok := src.(*unpacked); ok {
		im.Unpacked = &u.Unpacked
		u.describe(im)
	}
	if r, ok := src.(*recorded); ok {
		im.Stale = r.missed
	}
	im.Name = im.ref.canonical(im.Desc.Digest)
	return im, nil
}

// load resolves the reference down to one manifest and reads its config.
func (im *Image) load(ctx context.Context, want Platform) error {
	desc, raw, err := im.src.resolve(ctx)
	if err != nil {
		return err
	}
	desc, raw, err = im.descend(ctx, want, desc, raw)
	if err != nil {
		return err
	}
	im.Desc, im.RawManifest = desc, raw
	if err := json.Unmarshal(raw, &im.Manifest); err != nil {
		return faultf(ErrIntegrity, "manifest %s: %w", desc.Digest, err)
	}
	if err := checkManifest(im.Manifest); err != nil {
		return err
	}
	im.want = want
	if im.deferConfig && !want.asked {
		return nil
	}
	return im.LoadConfig(ctx)
}

// maxIndexDepth bounds indexes in indexes: real ones have one level, two where
// an OCI layout's index.json points to another index.
const maxIndexDepth = 4

// descend follows indexes to the manifest of a platform.
func (im *Image) descend(ctx context.Context, want Platform, desc ocispec.Descriptor, raw []byte) (ocispec.Descriptor, []byte, error) {
	for range maxIndexDepth {
		kind, err := manifestKind(desc.MediaType, raw)
		if err != nil {
			return desc, nil, err
		}
		desc.MediaType = kind
		if !isIndex(kind) {
			return desc, raw, nil
		}
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return desc, nil, faultf(ErrIntegrity, "index %s: %w", desc.Digest, err)
		}
		found := &foundIndex{desc: desc, raw: raw}
		if desc, raw, err = im.choose(ctx, want, index.Manifests); err != nil {
			return desc, nil, err
		}
		found.chosen = desc
		im.index = found
	}
	return desc, nil, faultf(ErrUnsupported, "indexes nested more than %d deep", maxIndexDepth)
}

// choose fetches the entry of an index that suits want best. A SOCI index may
// show only inside that it is none of the images.
func (im *Image) choose(ctx context.Context, want Platform, list []ocispec.Descriptor) (ocispec.Descriptor, []byte, error) {
	for {
		d, err := pick(list, want)
		if err != nil {
			return d, nil, err
		}
		raw, err := fetchManifest(ctx, im.src, d)
		if err != nil || !isSOCI(raw) {
			return d, raw, err
		}
		list = slices.DeleteFunc(slices.Clone(list), func(o ocispec.Descriptor) bool { return o.Digest == d.Digest })
	}
}

// LoadConfig reads the config, if that was deferred. Config and RawConfig are there when it
// returns nil; who calls it while others do waits for them.
func (im *Image) LoadConfig(ctx context.Context) error {
	im.configMu.Lock()
	defer im.configMu.Unlock()
	if im.RawConfig != nil {
		return nil
	}
	raw, err := fetchSmall(ctx, im.src, im.Manifest.Config, maxConfig, false)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &im.Config); err != nil {
		return faultf(ErrIntegrity, "config %s: %w", im.Manifest.Config.Digest, err)
	}
	if err := im.want.check(im.Config.Platform); err != nil {
		return err
	}
	im.RawConfig = raw
	return nil
}

// Blob returns the blob that d describes: one of the manifest's layers, or
// another blob of the same repository. The same digest gives the same *Blob.
func (im *Image) Blob(d ocispec.Descriptor) *Blob {
	im.mu.Lock()
	defer im.mu.Unlock()
	key := d.Digest.String()
	if b := im.blobs[key]; b != nil {
		return b
	}
	b := &Blob{ref: im.Ref, desc: d}
	b.r = im.src.blob(d, &b.count)
	im.blobs[key] = b
	return b
}

// Stats returns the requests made for blobs since Open, and the bytes received.
func (im *Image) Stats() (requests, bytes int64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, b := range im.blobs {
		r, n := b.Stats()
		requests, bytes = requests+r, bytes+n
	}
	return requests, bytes
}

// Close ends downloads that go on in the background and closes files. Reads
// that are under way may fail.
func (im *Image) Close() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, b := range im.blobs {
		b.r.close()
	}
	return im.src.close()
}

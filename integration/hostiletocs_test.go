package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// chunkOf is an entry of a TOC for a file of ten bytes in the first member, with changes.
func chunkOf(name, more string) string {
	return fmt.Sprintf(`{"name":%q,"type":"reg","size":10,"mode":420,"offset":0,"chunkDigest":%q%s}`, name, digest.FromString("0123456789"), more)
}

// toc is an image of one eStargz layer with these entries in its TOC.
func toc(entries string) func(*forged) { return func(f *forged) { f.toc(entries) } }

func hostileTOCs() []hostile {
	return []hostile{
		{name: "TOC that is honest", make: toc(chunkOf("f", "")), look: holds("f", "0123456789")},
		{name: "TOC with an offset beyond the blob", make: toc(strings.Replace(chunkOf("f", ""), `"offset":0`, `"offset":99999999999`, 1)), code: 1, says: "malformed"},
		{name: "TOC with an offset below zero", make: toc(strings.Replace(chunkOf("f", ""), `"offset":0`, `"offset":-1`, 1)), code: 1, says: "malformed"},
		{name: "TOC with a size below zero", make: toc(strings.Replace(chunkOf("f", ""), `"size":10`, `"size":-10`, 1)), code: 1, says: "malformed"},
		{name: "TOC with a file of 8 EiB", make: toc(strings.Replace(chunkOf("f", ""), `"size":10`, `"size":9223372036854775807`, 1)), code: 1, says: "malformed"},
		{name: "TOC with chunks that overlap", make: toc(`{"name":"f","type":"reg","size":20,"offset":0,"chunkSize":10,"chunkDigest":"` + digest.FromString("0123456789").String() + `"},{"name":"f","type":"chunk","chunkOffset":5,"chunkSize":15,"offset":0,"chunkDigest":"` + digest.FromString("x").String() + `"}`), code: 1, says: "malformed"},
		{name: "TOC with zeros of 8 EiB", make: toc(`{"name":"f","type":"reg","size":9223372036854775807,"chunkType":"zeros","chunkSize":9223372036854775807}`), look: sizeOf("f", 1<<63-1)},
		{name: "TOC without a digest", make: toc(`{"name":"f","type":"reg","size":10,"offset":0}`), code: 1, says: "malformed"},
		{name: "TOC with the digest of other bytes", make: toc(strings.Replace(chunkOf("f", ""), digest.FromString("0123456789").String(), digest.FromString("others").String(), 1)), says: "digest mismatch"},
		{name: "TOC with names that climb", make: toc(chunkOf("../x", "") + "," + chunkOf("/etc/passwd", "") + "," + chunkOf("a/../../x", "") + "," + chunkOf("ok", "")), look: holds("ok", "0123456789")},
		{name: "TOC with a name twice", make: toc(chunkOf("f", "") + `,{"name":"f","type":"dir","mode":493},` + chunkOf("f", "")), look: holds("f", "0123456789")},
		{name: "TOC with links in a circle", make: toc(`{"name":"a","type":"hardlink","linkName":"b"},{"name":"b","type":"hardlink","linkName":"a"},{"name":"l","type":"symlink","linkName":"../../x"},` + chunkOf("l/x", "") + "," + chunkOf("ok", "")), look: holds("ok", "0123456789")},
		{name: "TOC whose file is its own parent", make: toc(chunkOf("f", "") + "," + chunkOf("f/f", "") + "," + chunkOf("f/f/f", ""))},
		{name: "TOC that is not the one of the annotation", make: func(f *forged) {
			f.toc(chunkOf("f", "")).Annotations["containerd.io/snapshot/stargz/toc.digest"] = digest.FromString("another").String()
		}, code: 6, says: "digest"},
		{name: "TOC that is no JSON", make: toc(`{{{`), code: 1, says: "TOC"},
		{name: "TOC with 200,000 brackets", make: toc(strings.Repeat("[", 200_000)), code: 1, says: "TOC"},
		{name: "TOC of a gigabyte", make: func(f *forged) {
			f.lyingTOC("0123456789", io.LimitReader(blanks{}, 1<<30), 1<<30)
		}, code: 8, says: "--limit toc=N"},
		{name: "TOC of 300,000 chunks", busy: true, make: func(f *forged) {
			var b bytes.Buffer
			b.WriteString(`{"version":1,"entries":[{"name":"f","type":"reg","size":3000000,"offset":0,"chunkSize":10,"chunkDigest":"` + digest.FromString("0123456789").String() + `"}`)
			for i := 1; i < 300_000; i++ {
				fmt.Fprintf(&b, `,{"name":"f","type":"chunk","chunkOffset":%d,"chunkSize":10,"offset":0,"chunkDigest":"%s"}`, 10*i, digest.FromString("0123456789"))
			}
			b.WriteString("]}")
			f.lyingTOC("0123456789", &b, int64(b.Len()))
		}},
	}
}

// blanks is white space without end.
type blanks struct{}

func (blanks) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// changed is an image of one good layer whose manifest is changed afterwards.
func changed(edit func(f *forged, d *ocispec.Descriptor)) func(*forged) {
	return func(f *forged) {
		f.text("file ok \"1\"", "gzip")
		edit(f, &f.manifest.Layers[0])
	}
}

func hostileManifests() []hostile {
	return []hostile{
		{name: "layer that is not there", make: changed(func(_ *forged, d *ocispec.Descriptor) { d.Digest = digest.FromString("nothing") }), code: 3, says: "layer 1"},
		{name: "digest that climbs", make: changed(func(_ *forged, d *ocispec.Descriptor) { d.Digest = "sha256:../../../../etc/passwd" }), code: 6, says: "digest"},
		{name: "layer with other bytes", make: changed(func(f *forged, d *ocispec.Descriptor) {
			f.write("blobs/sha256/"+d.Digest.Encoded(), bytes.Repeat([]byte("x"), int(d.Size)))
		}), code: 6, says: "layer 1"},
		{name: "layer with a bit flipped", make: func(f *forged) {
			f.text("random f 100KiB", "tar")
			d := f.manifest.Layers[0]
			f.write("blobs/sha256/"+d.Digest.Encoded(), append(content("g", strings.Repeat("x", 100<<10)), make([]byte, 1024)...))
		}, code: 6, says: "digest"},
		{name: "layer that is longer than it says", make: changed(func(_ *forged, d *ocispec.Descriptor) { d.Size-- }), code: 6, says: "bytes"},
		{name: "layer that is shorter than it says", make: changed(func(_ *forged, d *ocispec.Descriptor) { d.Size += 1 << 40 }), code: 6, says: "bytes"},
		{name: "layer with a size below zero", make: changed(func(_ *forged, d *ocispec.Descriptor) { d.Size = -1 }), code: 6, says: "size"},
		{name: "diff ID of another tar", make: changed(func(f *forged, _ *ocispec.Descriptor) { f.diffIDs[0] = digest.FromString("another") }), code: 6, says: "digest"},
		{name: "fewer diff IDs than layers", make: changed(func(f *forged, _ *ocispec.Descriptor) {
			f.text("file two \"2\"", "gzip")
			f.diffIDs = f.diffIDs[:1]
		}), look: has("ok", "two")},
		{name: "a layer twice", make: changed(func(f *forged, d *ocispec.Descriptor) {
			f.manifest.Layers = append(f.manifest.Layers, *d)
			f.diffIDs = append(f.diffIDs, f.diffIDs[0])
		}), look: has("ok")},
		{name: "ten thousand layers", make: changed(func(f *forged, d *ocispec.Descriptor) {
			for range 10_000 {
				f.manifest.Layers = append(f.manifest.Layers, f.manifest.Layers[0])
				f.diffIDs = append(f.diffIDs, f.diffIDs[0])
			}
		}), look: has("ok")},
		{name: "media type of gzip on a plain tar", make: func(f *forged) {
			f.text("file ok \"1\"", "tar")
			f.manifest.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip
		}, look: holds("ok", "1")},
		{name: "media type of nothing known", make: changed(func(_ *forged, d *ocispec.Descriptor) { d.MediaType = "text/html" }), look: has("ok")},
		{name: "layer that is encrypted", make: changed(func(_ *forged, d *ocispec.Descriptor) {
			d.MediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
		}), code: 1, says: "encrypted"},
		{name: "config that is no JSON", make: func(f *forged) {
			f.config = []byte("<html>")
			f.text("file ok \"1\"", "gzip")
		}, code: 6, says: "config"},
		{name: "config of 100 MB", make: func(f *forged) {
			f.config = bytes.Repeat([]byte(" "), 100<<20)
			f.text("file ok \"1\"", "gzip")
		}, code: 1, says: "more than the limit"},
		{name: "manifest of 100 MB", make: func(f *forged) { f.raw = bytes.Repeat([]byte(" "), 100<<20) }, code: 1, says: "more than the limit"},
		{name: "manifest that is no JSON", make: func(f *forged) { f.raw = []byte("\x00\x01") }, code: 6, says: "manifest"},
		{name: "manifest with 200,000 brackets", make: func(f *forged) { f.raw = []byte(`{"schemaVersion":2,"layers":` + strings.Repeat("[", 200_000)) }, code: 6, says: "manifest"},
		{name: "indexes in indexes", make: func(f *forged) {
			d := f.json(ocispec.MediaTypeImageManifest, f.manifest)
			for range 20 {
				b, _ := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{d}}) // cannot fail
				d = f.blob(ocispec.MediaTypeImageIndex, b)
			}
			f.index = &ocispec.Index{Manifests: []ocispec.Descriptor{d}}
		}, code: 1, says: "nested"},
		{name: "addresses on this machine and in the cloud", make: changed(func(_ *forged, d *ocispec.Descriptor) {
			d.MediaType, d.Digest = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", digest.FromString("elsewhere")
			d.URLs = []string{"file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/x"}
		}), code: 3, says: "layer 1"},
	}
}

package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/layerfs/layerfs/registry/registrytest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layerOf is a new layer with these bytes, which are a tar of their own.
func layerOf(b []byte, mediaType string) *NewLayer {
	return &NewLayer{Write: func(_ context.Context, w io.Writer) (ocispec.Descriptor, digest.Digest, error) {
		for part := range slices.Chunk(b, 10_000) {
			if _, err := w.Write(part); err != nil {
				return ocispec.Descriptor{}, "", err
			}
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b)), Annotations: map[string]string{"k": "v"}}, digest.FromString("diff"), nil
	}}
}

func pushOptions(t *testing.T, layer []byte) PushOptions {
	epoch := int64(1_700_000_000)
	return PushOptions{Options: anonymous(t), Layer: layerOf(layer, ocispec.MediaTypeImageLayerGzip), Epoch: &epoch,
		Message: "a < b && c", Author: "me", CreatedBy: "layerfs commit", Changes: []string{`CMD ["x"]`}}
}

func mustPush(t *testing.T, base *Image, dest string, o PushOptions) *Image {
	t.Helper()
	d, name, err := Push(t.Context(), base, dest, o)
	if err != nil {
		t.Fatal(err)
	}
	if name != dest+"@"+d.Digest.String() {
		t.Errorf("name %s", name)
	}
	im := mustOpen(t, dest, o.Options)
	if !strings.HasPrefix(dest, "docker-archive:") && im.Desc.Digest != d.Digest {
		t.Errorf("%s is %s, want %s", dest, im.Desc.Digest, d.Digest)
	}
	return im
}

// wantPushed checks an image that was made of base and one layer.
func wantPushed(t *testing.T, im, base *Image, contents ...[]byte) {
	t.Helper()
	n := len(base.Manifest.Layers)
	if len(im.Manifest.Layers) != n+1 || len(im.Config.RootFS.DiffIDs) != n+1 || im.Config.RootFS.DiffIDs[n] != digest.FromString("diff") {
		t.Fatalf("%d layers, diff IDs %v", len(im.Manifest.Layers), im.Config.RootFS.DiffIDs)
	}
	for i, c := range contents {
		d := im.Manifest.Layers[i]
		if d.Digest != digest.FromBytes(c) {
			t.Errorf("layer %d is %s", i, d.Digest)
			continue
		}
		wantRange(t, im.Blob(d), c, 0, d.Size)
	}
	h := im.Config.History
	made := 0
	for _, e := range h {
		if !e.EmptyLayer {
			made++
		}
	}
	last := h[len(h)-1]
	if made != n+1 || last.Comment != "a < b && c" || last.CreatedBy != "layerfs commit" || last.Author != "me" || last.Created.Unix() != 1_700_000_000 {
		t.Errorf("history %+v", h)
	}
	if !slices.Equal(im.Config.Config.Cmd, []string{"x"}) || im.Config.Author != "me" || im.Config.Created.Unix() != 1_700_000_000 {
		t.Errorf("config %s", im.RawConfig)
	}
}

func TestPushSameRegistry(t *testing.T) {
	old, fresh := noise(200_000), noise(300_001)
	for _, noMount := range []bool{false, true} {
		s := start(t, registrytest.Options{})
		s.PushImage("org/base:1", image(old))
		base := mustOpen(t, s.Host()+"/org/base:1", anonymous(t))
		if noMount {
			s.Use(registrytest.NoMount)
		}
		s.Reset()
		im := mustPush(t, base, s.Host()+"/other/app:2", pushOptions(t, fresh))
		read := s.Total("GET", "/v2/org/base/blobs/").Out
		if noMount != (read >= 200_000) {
			t.Errorf("no mount %v: %d bytes of the base were read", noMount, read)
		}
		wantPushed(t, im, base, old, fresh)
		a := im.Manifest.Annotations
		if a[annotationBaseName] != s.Host()+"/org/base:1" || a[annotationBaseDigest] != base.Desc.Digest.String() {
			t.Errorf("annotations %v", a)
		}
		if l := im.Manifest.Layers[1]; l.MediaType != ocispec.MediaTypeImageLayerGzip || l.Annotations["k"] != "v" {
			t.Errorf("new layer %+v", l)
		}
		s.Reset()
		again := mustPush(t, base, s.Host()+"/other/app:3", pushOptions(t, fresh))
		if again.Desc.Digest != im.Desc.Digest {
			t.Error("the same push gives another image")
		}
		if n := s.Total("GET", "/v2/org/base/blobs/").Requests; n != 0 {
			t.Errorf("%d requests for a blob that is there", n)
		}
	}
}

func TestPushElsewhere(t *testing.T) {
	old, fresh := noise(200_000), noise(30_000)
	from, to := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	from.PushImage("base:1", image(old))
	base := mustOpen(t, from.Host()+"/base:1", anonymous(t))
	wantPushed(t, mustPush(t, base, to.Host()+"/app:2", pushOptions(t, fresh)), base, old, fresh)

	from.Use(registrytest.Corrupt(digest.FromBytes(old), 7))
	o := pushOptions(t, fresh)
	if _, _, err := Push(t.Context(), base, to.Host()+"/other:2", o); !errors.Is(err, ErrIntegrity) {
		t.Errorf("a corrupt base blob: %v", err)
	}
	if _, err := Open(t.Context(), to.Host()+"/other:2", anonymous(t)); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a failed push: %v", err)
	}
}

// Local files are bases and destinations like registries.
func TestPushFiles(t *testing.T) {
	fresh := noise(30_001)
	s := start(t, registrytest.Options{})
	dir := t.TempDir()
	plain := "layer one"
	bases := []string{
		"oci:" + writeLayout(t, map[string]string{"v1": plain}) + ":v1",
		"docker-archive:" + writeArchive(t, tarOf(t, dockerFiles(t)...)),
	}
	dests := []string{s.Host() + "/app:1", "oci:" + dir + "/new:v2", "oci-archive:" + dir + "/o.tar:v2", "docker-archive:" + dir + "/d.tar:app:2"}
	for _, ref := range bases {
		base := mustOpen(t, ref, anonymous(t))
		var contents [][]byte
		for _, l := range base.Manifest.Layers {
			b, err := readRange(t.Context(), base.Blob(l), 0, l.Size)
			if err != nil {
				t.Fatal(err)
			}
			contents = append(contents, b)
		}
		for _, dest := range dests {
			im := mustPush(t, base, dest, pushOptions(t, append([]byte{0x1f, 0x8b}, fresh...)))
			wantPushed(t, im, base, append(contents, append([]byte{0x1f, 0x8b}, fresh...))...)
			if strings.Contains(string(im.RawManifest)+string(im.RawConfig), filepath.Dir(dir)) {
				t.Error("a path of this machine is in the image")
			}
		}
	}
	if list, err := filepath.Glob(dir + "/.*"); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v %v", list, err)
	}
}

// A second tag in a layout leaves the first alone, and an image can be made
// into the file it came from.
func TestPushIntoSource(t *testing.T) {
	dir := writeLayout(t, map[string]string{"v1": "layer one", "v2": "layer two"})
	base := mustOpen(t, "oci:"+dir+":v1", anonymous(t))
	mustPush(t, base, "oci:"+dir+":v2", pushOptions(t, []byte("new")))
	wantLayer(t, "oci:"+dir+":v1", "layer one")
	name := writeArchive(t, tarOf(t, layoutFiles(t, map[string]string{"v1": "layer one"})...))
	base = mustOpen(t, "oci-archive:"+name+":v1", anonymous(t))
	wantPushed(t, mustPush(t, base, "oci-archive:"+name+":v1", pushOptions(t, []byte("new"))), base, []byte("layer one"), []byte("new"))
}

// Bytes of the base that the push does not concern stay what they were.
func TestPushKeepsBytes(t *testing.T) {
	s := start(t, registrytest.Options{})
	old := s.PutBlob("base", []byte("old"))
	foreign := `{ "size":5,  "digest":"` + digest.FromString("gone!").String() + `","mediaType":"` + dockerForeignLayer + `","urls":["https://x.example/?a=1&b=<2>"], "x-unknown": [1, 2.50] }`
	plain := `{"mediaType":"` + dockerLayerGzip + `" , "size":3,"digest":"` + old.Digest.String() + `"}`
	rawConfig := `{"x-zeta":{"b":1,"a":1e2},"architecture":"amd64","os":"linux","config":{"Env":["A=<b>"],"x-inner":9007199254740993},"rootfs":{"type":"layers","diff_ids":["` + digest.FromString("1").String() + `", "` + digest.FromString("2").String() + `"]},"x-alpha":"\u0041"}`
	config := s.PutBlob("base", []byte(rawConfig))
	manifest := `{"schemaVersion": 2,"mediaType":"` + dockerManifest + `","config":{"mediaType":"` + dockerConfig + `","size":` + toJSON(t, config.Size) + `,"digest":"` + config.Digest.String() + `"},"layers":[` + foreign + "," + plain + `],"x-top":{"a": 1}}`
	s.PutManifest("base", "1", dockerManifest, []byte(manifest))
	base := mustOpen(t, s.Host()+"/base:1", anonymous(t))
	o := pushOptions(t, []byte("new"))
	im := mustPush(t, base, s.Host()+"/app:1", o)
	for _, want := range []string{foreign, plain, `"x-top":{"a": 1}`} {
		if !bytes.Contains(im.RawManifest, []byte(want)) {
			t.Errorf("manifest lacks %s:\n%s", want, im.RawManifest)
		}
	}
	for _, want := range []string{`"x-zeta":{"b":1,"a":1e2}`, `"x-inner":9007199254740993`, `"x-alpha":"\u0041"`, `"A=<b>"`, `"comment":"a < b && c"`} {
		if !bytes.Contains(im.RawConfig, []byte(want)) {
			t.Errorf("config lacks %s:\n%s", want, im.RawConfig)
		}
	}
	if im.Desc.MediaType != dockerManifest || im.Manifest.Layers[2].MediaType != dockerLayerGzip || im.Manifest.Config.MediaType != dockerConfig || im.Manifest.Annotations != nil {
		t.Errorf("a docker base gives %s", im.RawManifest)
	}
	if len(im.Config.History) != 3 {
		t.Errorf("history of a base without one: %v", im.Config.History)
	}
	o.Layer = layerOf([]byte("new"), ocispec.MediaTypeImageLayerZstd)
	im = mustPush(t, base, s.Host()+"/app:2", o)
	var types []string
	for _, l := range im.Manifest.Layers {
		types = append(types, l.MediaType)
	}
	want := []string{ociForeignLayerGzip, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd}
	if im.Desc.MediaType != ocispec.MediaTypeImageManifest || !slices.Equal(types, want) || im.Manifest.Config.MediaType != ocispec.MediaTypeImageConfig {
		t.Errorf("zstd on a docker base gives %s", im.RawManifest)
	}
	if !bytes.Contains(im.RawManifest, []byte(`"urls":["https://x.example/?a=1&b=<2>"]`)) {
		t.Errorf("the address is another: %s", im.RawManifest)
	}
}

func TestPushConfigOnly(t *testing.T) {
	s := start(t, registrytest.Options{})
	img := image([]byte("old"))
	img.Annotations = map[string]string{"keep": "me", "com.amazon.soci.index-digest": "x", ocispec.AnnotationCreated: "2001-01-01T00:00:00Z"}
	s.PushImage("base:1", img)
	base := mustOpen(t, s.Host()+"/base:1", anonymous(t))
	o := pushOptions(t, nil)
	o.Layer = nil
	im := mustPush(t, base, s.Host()+"/base:2", o)
	if len(im.Manifest.Layers) != 1 || len(im.Config.RootFS.DiffIDs) != 1 || !im.Config.History[len(im.Config.History)-1].EmptyLayer {
		t.Errorf("%s\n%s", im.RawManifest, im.RawConfig)
	}
	want := map[string]string{"keep": "me", ocispec.AnnotationCreated: "2023-11-14T22:13:20Z",
		annotationBaseName: s.Host() + "/base:1", annotationBaseDigest: base.Desc.Digest.String()}
	if !maps.Equal(im.Manifest.Annotations, want) {
		t.Errorf("annotations %v", im.Manifest.Annotations)
	}
}

// Faults of a registry during a push that does not fail, and whose tag is right.
func TestPushFaults(t *testing.T) {
	auth := registrytest.Bearer("user", "secret")
	method := func(m string, f registrytest.Fault) registrytest.Fault {
		return registrytest.On(func(r *http.Request) bool { return r.Method == m && strings.HasPrefix(r.URL.Path, "/v2/other/") }, f)
	}
	for name, f := range map[string]registrytest.Fault{
		"bearer":     auth.Wrap,
		"basic":      registrytest.Basic("user", "secret"),
		"503 POST":   method("POST", registrytest.Status(503, 2)),
		"503 PUT":    method("PUT", registrytest.Status(503, 2)),
		"503 HEAD":   method("HEAD", registrytest.Status(503, 2)),
		"403 HEADs":  method("HEAD", registrytest.Status(405, -1)),
		"mount 405":  registrytest.On(func(r *http.Request) bool { return r.URL.Query().Get("mount") != "" }, registrytest.Status(405, -1)),
		"lost PUT":   method("PUT", registrytest.On(registrytest.Uploads, lostAnswer())),
		"PATCH once": method("PATCH", registrytest.Status(500, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, registrytest.Options{})
			s.PushImage("base:1", image(noise(50_000)))
			s.Use(f)
			o := pushOptions(t, noise(70_000))
			o.AuthFile = authFile(t, s.Host(), "user", "secret")
			o.Layer.Repeatable = true
			base := mustOpen(t, s.Host()+"/base:1", o.Options)
			wantPushed(t, mustPush(t, base, s.Host()+"/other/app:1", o), base, noise(50_000), noise(70_000))
		})
	}
}

// lostAnswer does what it is asked once, and cuts the connection in place of the answer.
func lostAnswer() registrytest.Fault {
	return func(next http.Handler) http.Handler {
		var done atomic.Bool
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if done.Swap(true) {
				next.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(&silentWriter{header: http.Header{}}, r)
			panic(http.ErrAbortHandler)
		})
	}
}

type silentWriter struct{ header http.Header }

func (w *silentWriter) Header() http.Header         { return w.header }
func (w *silentWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *silentWriter) WriteHeader(int)             {}

func TestPushErrors(t *testing.T) {
	s := start(t, registrytest.Options{})
	s.PushImage("base:1", image([]byte("old")))
	base := mustOpen(t, s.Host()+"/base:1", anonymous(t))
	mine := errors.New("mine")
	write := func(f func(w io.Writer) (ocispec.Descriptor, digest.Digest, error)) func(*PushOptions) {
		return func(o *PushOptions) {
			o.Layer = &NewLayer{Write: func(_ context.Context, w io.Writer) (ocispec.Descriptor, digest.Digest, error) { return f(w) }}
		}
	}
	liar := func(d digest.Digest, n int64, id digest.Digest) func(*PushOptions) {
		return write(func(w io.Writer) (ocispec.Descriptor, digest.Digest, error) {
			_, err := w.Write([]byte("new"))
			return ocispec.Descriptor{Digest: d, Size: n}, id, err
		})
	}
	right := digest.FromString("new")
	file := writeFile(t, filepath.Join(t.TempDir(), "sub", "file"), "x", 0o644)
	for name, tt := range map[string]struct {
		dest string
		edit func(*PushOptions)
		is   error
		text string
	}{
		"digest":      {s.Host() + "/app@" + someDigest, nil, ErrUsage, "by a tag"},
		"reference":   {"docker-daemon:x", nil, ErrUsage, "unknown transport"},
		"change":      {s.Host() + "/app:1", func(o *PushOptions) { o.Changes = []string{"FROM x"} }, ErrUsage, "FROM"},
		"offline":     {s.Host() + "/app:1", func(o *PushOptions) { o.Offline = true }, ErrOffline, "offline"},
		"nobody":      {"localhost:1/app:1", nil, ErrUnreachable, "dial"},
		"no layout":   {"oci:" + filepath.Dir(file), nil, ErrUsage, "neither empty"},
		"writer":      {s.Host() + "/app:1", write(func(io.Writer) (ocispec.Descriptor, digest.Digest, error) { return ocispec.Descriptor{}, "", mine }), mine, "mine"},
		"wrong size":  {s.Host() + "/app:1", liar(right, 4, right), ErrIntegrity, "the new layer is"},
		"wrong sum":   {"oci:" + t.TempDir() + ":x", liar(digest.FromString("x"), 3, right), ErrIntegrity, "the new layer is"},
		"no diff ID":  {"oci-archive:" + t.TempDir() + "/x:x", liar(right, 3, ""), ErrIntegrity, "diff ID"},
		"archive tag": {"docker-archive:" + t.TempDir() + "/x:UPPER", nil, ErrUsage, "lower case"},
	} {
		o := pushOptions(t, []byte("new"))
		if tt.edit != nil {
			tt.edit(&o)
		}
		_, _, err := Push(t.Context(), base, tt.dest, o)
		var e *Error
		if !errors.Is(err, tt.is) || !errors.As(err, &e) || e.Op != "push" || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for code, is := range map[int]error{401: ErrUnauthorized, 403: ErrUnauthorized, 413: nil} {
		s.Heal()
		s.Use(registrytest.On(func(r *http.Request) bool { return r.Method == "PATCH" }, registrytest.Status(code, -1)))
		_, _, err := Push(t.Context(), base, s.Host()+"/app:9", pushOptions(t, noise(chunkSize+1)))
		if err == nil || is != nil && !errors.Is(err, is) || !strings.Contains(err.Error(), "injected") {
			t.Errorf("%d in mid-upload: %v", code, err)
		}
	}
}

func TestPushCancel(t *testing.T) {
	s := start(t, registrytest.Options{})
	s.PushImage("base:1", image([]byte("old")))
	base := mustOpen(t, s.Host()+"/base:1", anonymous(t))
	ctx, cancel := context.WithCancel(t.Context())
	o := pushOptions(t, nil)
	o.Layer = &NewLayer{Write: func(ctx context.Context, w io.Writer) (ocispec.Descriptor, digest.Digest, error) {
		_, err := w.Write(noise(100_000))
		cancel()
		<-ctx.Done()
		return ocispec.Descriptor{}, "", errors.Join(err, ctx.Err())
	}}
	if _, _, err := Push(ctx, base, s.Host()+"/app:1", o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPushProgress(t *testing.T) {
	s, to := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	s.PushImage("base:1", image(noise(600_000)))
	base := mustOpen(t, s.Host()+"/base:1", anonymous(t))
	o := pushOptions(t, []byte("new"))
	last := map[digest.Digest]Progress{}
	o.Progress = func(p Progress) { last[p.Blob] = p } // the race detector sees whether calls overlap
	mustPush(t, base, to.Host()+"/app:1", o)
	old := digest.FromBytes(noise(600_000))
	if p := last[old]; p.State != "done" || p.Done != 600_000 || p.Total != 600_000 {
		t.Errorf("base blob: %+v", p)
	}
	if p := last[digest.FromString("new")]; p.State != "done" || p.Done != 3 {
		t.Errorf("new layer: %+v", p)
	}
	mustPush(t, base, s.Host()+"/app:1", o)
	if p := last[old]; p.State != "mounted" {
		t.Errorf("mounted blob: %+v", p)
	}
	mustPush(t, base, s.Host()+"/base:2", o)
	if p := last[old]; p.State != "exists" {
		t.Errorf("present blob: %+v", p)
	}
}

func TestRawObject(t *testing.T) {
	const in = `{ "b" : [1,  2], "a":{"x":1.0},"b":"again" ,"z":null}`
	o, err := parseRaw([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.set("new", "<&>"); err != nil {
		t.Fatal(err)
	}
	o.remove("z")
	if got, want := string(o.bytes()), `{"b":"again","a":{"x":1.0},"new":"<&>"}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, bad := range []string{"", "[]", "{", "null", `{"a":1}x`, `{"a"}`} {
		if _, err := parseRaw([]byte(bad)); err == nil {
			t.Errorf("%q is an object", bad)
		}
	}
}

func FuzzRawObject(f *testing.F) {
	f.Add([]byte(`{"a":{"b":[1,{}]},"c":"\u0000"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseRaw(b)
		if err != nil {
			return
		}
		var was, is map[string]any
		if err := json.Unmarshal(b, &was); err != nil {
			t.Skip("numbers out of range")
		}
		if err := json.Unmarshal(o.bytes(), &is); err != nil || toJSON(t, was) != toJSON(t, is) {
			t.Fatalf("%s became %s: %v", b, o.bytes(), err)
		}
	})
}

// Without anything to read, push still must not leave files behind.
func TestArchiveSinkCleansUp(t *testing.T) {
	dir := t.TempDir()
	base := mustOpen(t, "oci:"+writeLayout(t, map[string]string{"v1": "layer"})+":v1", anonymous(t))
	o := pushOptions(t, nil)
	o.Layer = &NewLayer{Write: func(context.Context, io.Writer) (ocispec.Descriptor, digest.Digest, error) {
		return ocispec.Descriptor{}, "", io.ErrUnexpectedEOF
	}}
	for _, dest := range []string{"oci-archive:" + dir + "/x.tar:1", "docker-archive:" + dir + "/x.tar:a:1"} {
		if _, _, err := Push(t.Context(), base, dest, o); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", dest, err)
		}
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v %v", list, err)
	}
}

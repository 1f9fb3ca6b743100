//go:build linux

package store_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store"
	. "dhow/guest/store/storetest"
	"dhow/internal/errdefs"
)

// layoutFiles returns the files of an OCI layout that holds an image.
func layoutFiles(t testing.TB, img v1.Image, name string) []File {
	t.Helper()
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	m := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if name != "" {
		m.Annotations = map[string]string{"io.containerd.image.name": name}
	}
	files := []File{
		{Name: "oci-layout", Data: `{"imageLayoutVersion":"1.0.0"}`}, {Name: "blobs/"}, {Name: "blobs/sha256/"},
		{Name: "index.json", Data: string(JSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{m}}))},
		blobFile(raw), blobFile(config),
	}
	for _, l := range blobsOf(t, img) {
		files = append(files, blobFile(l))
	}
	return files
}

func blobFile(raw []byte) File {
	return File{Name: "blobs/sha256/" + digest.FromBytes(raw).Encoded(), Data: string(raw)}
}

func blobsOf(t testing.TB, img v1.Image) (out [][]byte) {
	t.Helper()
	ls, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(r); err != nil {
			t.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	return out
}

// dockerFiles returns the files that docker save wrote before it knew layouts:
// the second image's first layer is a link to the first's.
func dockerFiles(t testing.TB, tags []string, imgs ...v1.Image) []File {
	t.Helper()
	var files []File
	var list []map[string]any
	where := map[string]string{}
	for i, img := range imgs {
		config, err := img.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		name := digest.FromBytes(config).Encoded() + ".json"
		files = append(files, File{Name: name, Data: string(config)})
		var layers []string
		for j, l := range blobsOf(t, img) {
			p := fmt.Sprintf("%d%d/layer.tar", i, j)
			files = append(files, File{Name: fmt.Sprintf("%d%d/", i, j)}, File{Name: fmt.Sprintf("%d%d/VERSION", i, j), Data: "1.0"})
			if first := where[string(l)]; first != "" {
				files = append(files, File{Name: p, Link: "../" + first})
			} else {
				where[string(l)] = p
				files = append(files, File{Name: p, Data: string(l)})
			}
			layers = append(layers, p)
		}
		list = append(list, map[string]any{"Config": name, "RepoTags": tags[i : i+1], "Layers": layers})
	}
	return append(files, File{Name: "manifest.json", Data: string(JSON(t, list))}, File{Name: "repositories", Data: "{}"})
}

func (e *env) load(files ...File) ([]store.Image, error) {
	return e.Load(context.Background(), bytes.NewReader(Tar(files...)), nil)
}

func TestLoadForms(t *testing.T) {
	e := newEnv(t)
	img := Image(t, runtime.GOARCH, Gzip(baseLayer), Zstd(topLayer))
	plain := Image(t, runtime.GOARCH, baseLayer, topLayer)
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	layout := layoutFiles(t, img, "docker.io/library/app:v1")
	both := append(layoutFiles(t, img, ""), File{Name: "manifest.json", Data: string(JSON(t, []map[string]any{{
		"Config": "blobs/sha256/" + config.Hex, "RepoTags": []string{"app:v1", "localhost:5000/app:v2"},
		"Layers": []string{"blobs/sha256/" + strings.Repeat("0", 64)},
	}}))})
	for what, c := range map[string]struct {
		archive []byte
		id      v1.Hash
		names   []string
	}{
		"OCI layout":        {Tar(layout...), config, []string{"docker.io/library/app:v1"}},
		"gzip":              {Gzip(Tar(layout...)), config, []string{"docker.io/library/app:v1"}},
		"zstd":              {Zstd(Tar(layout...)), config, []string{"docker.io/library/app:v1"}},
		"layout and docker": {Tar(both...), config, []string{"docker.io/library/app:v1", "localhost:5000/app:v2"}},
		"docker, old form":  {Tar(dockerFiles(t, []string{"app:v1"}, plain)...), configName(t, plain), []string{"docker.io/library/app:v1"}},
		"without a name":    {Tar(layoutFiles(t, img, "")...), config, nil},
	} {
		t.Run(what, func(t *testing.T) {
			got, err := e.Load(t.Context(), bytes.NewReader(c.archive), nil)
			if err != nil || len(got) != 1 {
				t.Fatalf("Load = %d images, %v", len(got), err)
			}
			if got[0].ID.String() != c.id.String() || !slices.Equal(got[0].Names, c.names) || got[0].Target.Digest == "" {
				t.Errorf("image %s %v, want %s %v", got[0].ID, got[0].Names, c.id, c.names)
			}
			if tree := e.tree(got[0]); tree["etc/new"].Size != 3 || tree["etc/old"].Mode != 0 {
				t.Errorf("tree: %v", tree)
			}
			if _, err := e.Remove(t.Context(), got[0].ID.String(), store.RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
			for _, n := range c.names {
				if _, err := e.Get(t.Context(), n); !errdefs.Is(err, errdefs.NotFound) {
					t.Errorf("%s: %v", n, err)
				}
			}
			e.wantEmpty()
		})
	}
}

func configName(t testing.TB, img v1.Image) v1.Hash {
	t.Helper()
	h, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestLoadInAnyOrder(t *testing.T) {
	e := newEnv(t)
	one := Image(t, runtime.GOARCH, baseLayer)
	two := Image(t, runtime.GOARCH, baseLayer, topLayer)
	files := dockerFiles(t, []string{"one:v1", "two:v1"}, one, two)
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, seed))
		r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
		got, err := e.load(files...)
		if err != nil || len(got) != 2 || got[0].ID.String() != configName(t, one).String() || got[1].ID.String() != configName(t, two).String() {
			t.Fatalf("seed %d: %v, %v", seed, got, err)
		}
		for _, name := range []string{"one:v1", "two:v1"} {
			if _, err := e.Remove(t.Context(), name, store.RemoveOptions{}); err != nil {
				t.Error(err)
			}
		}
		e.wantEmpty()
	}
}

func TestPulledAndLoadedImageIsOne(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	img := Image(t, runtime.GOARCH, Gzip(baseLayer), Gzip(topLayer))
	name := reg.Push(t, "app:v1", img)
	if _, err := e.load(layoutFiles(t, img, "app:loaded")...); err != nil {
		t.Fatal(err)
	}
	pulled, err := e.pull(name)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := e.Images(t.Context()); err != nil || len(list) != 1 || len(list[0].Names) != 3 {
		t.Errorf("Images = %+v, %v", list, err)
	}
	if _, err := e.Remove(t.Context(), "app:loaded", store.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if tree := e.tree(pulled); tree["etc/new"].Size != 3 {
		t.Errorf("tree: %v", tree)
	}
}

func TestHostileArchives(t *testing.T) {
	e := newEnv(t)
	img := Image(t, runtime.GOARCH, Gzip(baseLayer))
	good := layoutFiles(t, img, "app:v1")
	with := func(change func(f *File) bool) []byte {
		var out []File
		for _, f := range good {
			if change(&f) {
				out = append(out, f)
			}
		}
		return Tar(out...)
	}
	layer := blobFile(blobsOf(t, img)[0])
	index := func(s string) []byte {
		return with(func(f *File) bool {
			if f.Name == "index.json" {
				f.Data = s
			}
			return true
		})
	}
	deep := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`
	self := digest.FromString("self")
	for what, archive := range map[string][]byte{
		"nothing":   nil,
		"empty":     Tar(),
		"not a tar": bytes.Repeat([]byte("x"), 2000),
		"cut":       Tar(good...)[:3000],
		"cut gzip":  Gzip(Tar(good...))[:500],
		"xz":        []byte("\xfd7zXZ\x00rest of it"),
		"no index":  with(func(f *File) bool { return f.Name != "index.json" }),
		"no layer":  with(func(f *File) bool { return f.Name != layer.Name }),
		"a blob that is not its name": with(func(f *File) bool {
			if f.Name == layer.Name {
				f.Data = "other"
			}
			return true
		}),
		"a blob with a bad name": Tar(append(good, File{Name: "blobs/sha256/xyz"})...),
		"blob out of the tree":   Tar(append(good, File{Name: "blobs/sha256/../../../../etc/x", Data: "x"}, File{Name: "manifest.json", Data: `[{"Config":"../../../../etc/passwd"}]`})...),
		"index is no JSON":       index("{"),
		"bad digest":             index(`{"manifests":[{"digest":"sha256:../../x"}]}`),
		"bad name":               index(strings.Replace(string(JSON(t, json.RawMessage(good[3].Data))), "app:v1", "APP//:", 1)),
		"an index in itself":     Tar(File{Name: "index.json", Data: deep + `{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"` + self.String() + `"}]}`}),
		"a link to itself":       Tar(File{Name: "manifest.json", Link: "manifest.json"}),
		"links in a ring":        Tar(File{Name: "a", Link: "b"}, File{Name: "b", Link: "a"}, File{Name: "manifest.json", Data: `[{"Config":"a","Layers":["b"]}]`}),
		"a hard link":            Tar(File{Name: "c", Data: "{}"}, File{Name: "manifest.json", Type: tar.TypeLink, Link: "/etc/passwd"}),
		"config is no JSON":      Tar(File{Name: "c", Data: "x"}, File{Name: "manifest.json", Data: `[{"Config":"c"}]`}),
		"layers are not the config's": Tar(File{Name: "c", Data: `{"rootfs":{"diff_ids":[]}}`}, File{Name: "l", Data: "x"},
			File{Name: "manifest.json", Data: `[{"Config":"c","Layers":["l"]}]`}),
	} {
		t.Run(what, func(t *testing.T) {
			got, err := e.Load(t.Context(), bytes.NewReader(archive), nil)
			if err == nil || len(got) != 0 {
				t.Errorf("Load = %v, %v", got, err)
			}
			if c := errdefs.ClassOf(err); c != errdefs.Invalid && c != errdefs.Unimplemented {
				t.Errorf("class %q: %v", c, err)
			}
			e.wantEmpty()
		})
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := e.Load(ctx, bytes.NewReader(Tar(good...)), nil); !errors.Is(err, gone) {
		t.Errorf("canceled: %v", err)
	}
	e.wantEmpty()
}

func TestRemoveFollowsDockersRules(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	add := func(names ...string) store.Image {
		t.Helper()
		got, err := e.load(layoutFiles(t, Image(t, runtime.GOARCH, Gzip(Tar(File{Name: "x", Data: names[0]}))), names[0])...)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names[1:] {
			if err := e.Tag(ctx, got[0].ID, ref(t, n)); err != nil {
				t.Fatal(err)
			}
		}
		return got[0]
	}
	const id = "0123456789abcdef0123"
	usedBy := func(running bool) func(digest.Digest) (string, bool, bool) {
		return func(digest.Digest) (string, bool, bool) { return id, running, true }
	}
	for what, c := range map[string]struct {
		names   []string
		by      string // "ID", "short", or a name
		o       store.RemoveOptions
		want    []string // what is untagged, then "image" if it is deleted
		refused string   // with SHORT for the image
	}{
		"last name":             {names: []string{"a:1"}, by: "a:1", want: []string{"a:1", "image"}},
		"one of two names":      {names: []string{"a:1", "a:2"}, by: "a:2", want: []string{"a:2"}},
		"latest":                {names: []string{"a", "b"}, by: "a", want: []string{"a:latest"}},
		"by ID":                 {names: []string{"a:1"}, by: "ID", want: []string{"a:1", "image"}},
		"by a short ID":         {names: []string{"a:1"}, by: "short", want: []string{"a:1", "image"}},
		"by ID, two tags":       {names: []string{"a:1", "b:1"}, by: "ID", refused: "conflict: unable to delete SHORT (must be forced) - image is referenced in multiple repositories"},
		"by ID, forced":         {names: []string{"a:1", "b:1"}, by: "ID", o: store.RemoveOptions{Force: true}, want: []string{"a:1", "b:1", "image"}},
		"stopped container":     {names: []string{"a:1"}, by: "a:1", o: store.RemoveOptions{InUse: usedBy(false)}, refused: `conflict: unable to remove repository reference "a:1" (must force) - container 0123456789ab is using its referenced image SHORT`},
		"stopped, two names":    {names: []string{"a:1", "a:2"}, by: "a:1", o: store.RemoveOptions{InUse: usedBy(false)}, want: []string{"a:1"}},
		"stopped, by ID":        {names: []string{"a:1"}, by: "ID", o: store.RemoveOptions{InUse: usedBy(false)}, refused: "conflict: unable to delete SHORT (must be forced) - image is being used by stopped container 0123456789ab"},
		"stopped, forced":       {names: []string{"a:1"}, by: "a:1", o: store.RemoveOptions{Force: true, InUse: usedBy(false)}, want: []string{"a:1", "image"}},
		"running, by ID":        {names: []string{"a:1"}, by: "ID", o: store.RemoveOptions{Force: true, InUse: usedBy(true)}, refused: "conflict: unable to delete SHORT (cannot be forced) - image is being used by running container 0123456789ab"},
		"running, name, forced": {names: []string{"a:1"}, by: "a:1", o: store.RemoveOptions{Force: true, InUse: usedBy(true)}, want: []string{"a:1"}},
		"missing":               {names: []string{"a:1"}, by: "zz", refused: "No such image: zz:latest"},
	} {
		t.Run(what, func(t *testing.T) {
			img := add(c.names...)
			by := map[string]string{"ID": img.ID.String(), "short": img.ID.Encoded()[:12]}[c.by]
			if by == "" {
				by = c.by
			}
			removed, err := e.Remove(ctx, by, c.o)
			if c.refused != "" {
				want := strings.ReplaceAll(c.refused, "SHORT", img.ID.Encoded()[:12])
				if errdefs.Sentence(err) != want || len(removed) != 0 {
					t.Errorf("err = %v, want %q; removed %v", err, want, removed)
				}
				if now, err := e.Get(ctx, img.ID.String()); err != nil || len(now.Names) != len(c.names) {
					t.Errorf("a refused removal changed something: %v, %v", now.Names, err)
				}
			} else if err != nil {
				t.Error(err)
			}
			var got []string
			for _, r := range removed {
				switch {
				case r.Untagged != "":
					got = append(got, r.Untagged)
				case r.Deleted == img.ID.String():
					got = append(got, "image")
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("removed %v, want %v", got, c.want)
			}
			if _, err := e.Remove(ctx, img.ID.String(), store.RemoveOptions{Force: true}); err != nil && !errdefs.Is(err, errdefs.NotFound) {
				t.Error(err)
			}
			e.wantEmpty()
		})
	}
}

func TestUnpackingIsRefusedWhereMemoryIsShort(t *testing.T) {
	e := newEnv(t)
	files := layoutFiles(t, Image(t, runtime.GOARCH, Gzip(baseLayer)), "app")
	e.UnpackMemory(store.MaxUnpackMemory)
	if _, err := e.load(files...); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("err = %v, want Unavailable", err)
	}
	e.UnpackMemory(-store.MaxUnpackMemory)
	if _, err := e.load(files...); err != nil {
		t.Error(err)
	}
}

func TestNamesOfAnArchiveAreBounded(t *testing.T) {
	e := newEnv(t)
	long := strings.Repeat("n", 4000)
	many := make([]File, 8500)
	for i := range many {
		many[i] = File{Name: fmt.Sprintf("%s%d", long, i), Link: "x"}
	}
	for what, c := range map[string]struct {
		files []File
		want  string
	}{
		"name":          {[]File{{Name: strings.Repeat("n/", 2048) + "x", Data: "x"}}, "4096 bytes"},
		"link's target": {[]File{{Name: "l", Link: strings.Repeat("n", 4097)}}, "4096 bytes"},
		"all names":     {many, "33554432 bytes"},
		"enough names":  {many[:1000], "holds no image"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := e.load(c.files...)
			if !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(errdefs.Sentence(err), c.want) {
				t.Errorf("err = %v, want Invalid with %q", err, c.want)
			}
		})
	}
}

func TestSizesAddUp(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	shared := manyLayers(2, 400_000)
	var ids []digest.Digest
	for i := range 3 {
		own := Gzip(Tar(File{Name: "own", Data: strings.Repeat(fmt.Sprint(i), 100_000*(i+1))}))
		got, err := e.load(layoutFiles(t, Image(t, runtime.GOARCH, append(slices.Clone(shared), own)...), fmt.Sprintf("app%d", i))...)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, got[0].ID)
		sizes, err := e.LayerSizes(ctx, got[0])
		if err != nil || len(sizes) != 3 || sizes[0]+sizes[1]+sizes[2] != got[0].Size {
			t.Errorf("layers %v, size %d, %v", sizes, got[0].Size, err)
		}
	}
	total, err := e.Usage(ctx)
	if err != nil || total < 800_000+600_000 || total > 1_000_000+700_000 {
		t.Errorf("Usage = %d, %v", total, err)
	}
	free, err := e.Reclaimable(ctx, func(id digest.Digest) bool { return id == ids[0] })
	if err != nil || free < 500_000 || free > 560_000 {
		t.Errorf("Reclaimable = %d, %v; want the own layers of two images", free, err)
	}
	all, err := e.Reclaimable(ctx, func(digest.Digest) bool { return false })
	if err != nil || all != total {
		t.Errorf("Reclaimable without containers = %d, %v; want %d", all, err, total)
	}
}

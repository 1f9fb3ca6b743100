//go:build linux

package image_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store/image"
	"dhow/internal/errdefs"
)

func entry(name, platform string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name), Size: 1}
	if platform != "" {
		p := platforms.MustParse(platform)
		d.Platform = &p
	}
	return d
}

func TestChoose(t *testing.T) {
	attestation := entry("attestation", "linux/amd64")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	artifact := entry("artifact", "linux/amd64")
	artifact.MediaType = "application/vnd.example"
	for _, c := range []struct {
		want    string
		entries []ocispec.Descriptor
		first   string // "" = none
	}{
		{"linux/amd64", []ocispec.Descriptor{entry("arm", "linux/arm64"), entry("x", "linux/amd64")}, "x"},
		{"linux/arm64", []ocispec.Descriptor{entry("x", "linux/amd64"), entry("v8", "linux/arm64/v8")}, "v8"},
		{"linux/arm64/v8", []ocispec.Descriptor{entry("bare", "linux/arm64")}, "bare"},
		{"linux/arm64", []ocispec.Descriptor{entry("v7", "linux/arm/v7"), entry("64", "linux/arm64")}, "64"},
		{"linux/arm64", []ocispec.Descriptor{entry("v6", "linux/arm/v6"), entry("v7", "linux/arm/v7")}, "v7"},
		{"linux/arm/v6", []ocispec.Descriptor{entry("v7", "linux/arm/v7"), entry("v5", "linux/arm/v5")}, "v5"},
		{"linux/amd64", []ocispec.Descriptor{entry("386", "linux/386"), entry("64", "linux/amd64")}, "64"},
		{"linux/amd64", []ocispec.Descriptor{entry("any", ""), entry("64", "linux/amd64")}, "64"},
		{"linux/amd64", []ocispec.Descriptor{entry("any", "")}, "any"},
		{"linux/amd64", []ocispec.Descriptor{attestation, artifact, entry("win", "windows/amd64")}, ""},
		{"linux/s390x", []ocispec.Descriptor{entry("x", "linux/amd64")}, ""},
	} {
		got, err := image.Choose(ocispec.Index{Manifests: c.entries}, platforms.MustParse(c.want))
		switch {
		case c.first == "" && !errdefs.Is(err, errdefs.NotFound):
			t.Errorf("%s: %v, %v", c.want, got, err)
		case c.first != "" && (err != nil || got[0].Digest != digest.FromString(c.first)):
			t.Errorf("%s: %v, %v; want %s first", c.want, got, err, c.first)
		}
	}
}

func TestDetectMediaType(t *testing.T) {
	for raw, want := range map[string]string{
		`{"schemaVersion":2,"mediaType":"application/x","config":{}}`:       "application/x",
		`{"schemaVersion":2,"config":{},"layers":[]}`:                       ocispec.MediaTypeImageManifest,
		`{"schemaVersion":2,"manifests":[]}`:                                ocispec.MediaTypeImageIndex,
		`{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}`:        "", // both at once is a trick
		`{"schemaVersion":1,"fsLayers":[],"signatures":[]}`:                 image.DockerSchema1Signed,
		`{"schemaVersion":1,"mediaType":"application/vnd.oci.x","name":""}`: image.DockerSchema1,
		`[]`: "", `{`: "", ``: "", `null`: "",
	} {
		if got := image.DetectMediaType([]byte(raw)); got != want {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
}

func TestBadManifestsAreInvalid(t *testing.T) {
	good := `{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"D","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"D","size":1}]}`
	good = strings.ReplaceAll(good, `"D"`, `"`+digest.FromString("x").String()+`"`)
	if _, err := image.ParseManifest([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{{`"size":1`, `"size":-1`}, {`"size":2`, `"size":"2"`}, {"sha256:", "sha256:../"}, {"sha256:", "sha512:"}, {".config.v1+json", ".plugin"}, {"layer.v1.tar+gzip", "other"}, {"}]}", "}"}} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if _, err := image.ParseManifest([]byte(bad)); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, bad := range []string{`{`, `{"rootfs":{"type":"tar"}}`, `{"rootfs":{"diff_ids":["sha256:x"]}}`, `[]`} {
		if _, err := image.ParseConfig([]byte(bad)); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("config %s: %v", bad, err)
		}
	}
}

func TestTable(t *testing.T) {
	d, err := db.Open(filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if err := errors.Join(image.Migrate(d), image.Migrate(d)); err != nil {
		t.Fatal(err)
	}
	var cache image.Cache
	in := func(fn func(image.Table) error) {
		t.Helper()
		if err := d.Update(func(tx *bbolt.Tx) error {
			table, err := cache.In(tx)
			if err != nil {
				return err
			}
			return fn(table)
		}); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(s string) ocispec.Descriptor {
		return ocispec.Descriptor{Digest: digest.FromString(s), Size: int64(len(s))}
	}
	configs := map[string][]byte{"a": []byte(`{"os":"linux","author":"a"}`), "b": []byte(`{"os":"linux","author":"b"}`)}
	id := func(k string) digest.Digest { return digest.FromBytes(configs[k]) }
	chain := digest.FromString("chain")
	in(func(tb image.Table) error {
		return errors.Join(
			tb.Put(image.Record{ID: id("a"), ChainID: chain, Blobs: []ocispec.Descriptor{blob("shared"), blob("own a")}, Targets: []ocispec.Descriptor{blob("t1")}}, configs["a"]),
			tb.Put(image.Record{ID: id("b"), ChainID: chain, Blobs: []ocispec.Descriptor{blob("shared"), blob("own b")}, Parent: id("a")}, configs["b"]),
			tb.Put(image.Record{ID: id("a"), Blobs: []ocispec.Descriptor{blob("second")}, Targets: []ocispec.Descriptor{blob("t2")}}, configs["a"]),
		)
	})
	in(func(tb image.Table) error {
		if err := tb.Put(image.Record{ID: id("a")}, configs["b"]); err == nil {
			t.Error("a config that is not the ID's was taken")
		}
		changed, err := tb.SetName("docker.io/library/x:1", id("a"), blob("t1"), time.Now())
		again, err2 := tb.SetName("docker.io/library/x:1", id("a"), blob("t1"), time.Now())
		moved, err3 := tb.SetName("docker.io/library/x:1", id("b"), blob("t3"), time.Now())
		if !changed || again || !moved {
			t.Errorf("changed: %v, %v, %v", changed, again, moved)
		}
		_, err4 := tb.SetName("docker.io/library/y:1", digest.FromString("nobody"), blob("t"), time.Now())
		if !errdefs.Is(err4, errdefs.NotFound) {
			t.Errorf("a name for nothing: %v", err4)
		}
		return errors.Join(err, err2, err3)
	})
	in(func(tb image.Table) error {
		if n := tb.Names(id("a")); len(n) != 0 {
			t.Errorf("names of a: %v", n)
		}
		got, target, err := tb.Lookup("docker.io/library/x:1")
		if got != id("b") || target.Digest != blob("t3").Digest {
			t.Errorf("Lookup = %s, %v", got, target)
		}
		a, err2 := tb.Describe(id("a"), ocispec.Descriptor{})
		if a.Image.Author != "a" || a.Target.Digest != blob("t1").Digest || a.ContentSize != int64(len("shared")+len("own a")+len("second")) || a.ChainID != chain {
			t.Errorf("Describe = %+v", a)
		}
		if !tb.OnChain(chain) || len(tb.Children(id("a"))) != 1 || len(tb.IDs("")) != 2 || len(tb.IDs(id("a").String()[:20])) != 1 {
			t.Error("indexes are wrong")
		}
		orphans, err3 := tb.Delete(id("a"))
		slices.Sort(orphans)
		want := []digest.Digest{blob("own a").Digest, blob("second").Digest}
		slices.Sort(want)
		if !slices.Equal(orphans, want) || !tb.OnChain(chain) {
			t.Errorf("orphans %v, want %v", orphans, want)
		}
		if _, err := tb.Describe(id("a"), ocispec.Descriptor{}); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("a deleted image from the cache: %v", err)
		}
		orphans, err4 := tb.Delete(id("b"))
		if len(orphans) != 2 || tb.OnChain(chain) || len(tb.Children(id("a"))) != 0 {
			t.Errorf("orphans %v", orphans)
		}
		_, _, lerr := tb.Lookup("docker.io/library/x:1")
		if !errdefs.Is(lerr, errdefs.NotFound) {
			t.Errorf("the name of a deleted image: %v", lerr)
		}
		return errors.Join(err, err2, err3, err4)
	})
}

//go:build linux

package storetest

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image makes an image of layers that are given as blobs: tar streams, plain,
// gzip or zstd.
func Image(t testing.TB, arch string, blobs ...[]byte) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	var adds []mutate.Addendum
	for _, b := range blobs {
		adds = append(adds, mutate.Addendum{Layer: newLayer(t, b), MediaType: types.OCILayer})
	}
	img, err := mutate.Append(img, adds...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", arch
	c.Config.Cmd = []string{"/bin/true"}
	img, err = mutate.ConfigFile(img, c)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// blobLayer is a layer whose blob is given byte for byte.
type blobLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (l blobLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func newLayer(t testing.TB, blob []byte) v1.Layer {
	t.Helper()
	diffID, _, err := v1.SHA256(Decompressed(t, blob))
	if err != nil {
		t.Fatal(err)
	}
	return blobLayer{static.NewLayer(blob, types.OCILayer), diffID}
}

// Registry is an honest registry on the loopback, whose answers a test may
// bend.
type Registry struct {
	*httptest.Server
	// Wrap, if it is set, handles each request; next is the honest answer.
	Wrap func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

// NewRegistry starts a registry over plain HTTP.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{}
	honest := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.Wrap != nil {
			r.Wrap(w, req, honest)
			return
		}
		honest.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

// Host returns the registry's host:port.
func (r *Registry) Host() string { return strings.TrimPrefix(r.URL, "http://") }

// Push puts an image or index into the registry as host/ref, and returns the
// full name.
func (r *Registry) Push(t testing.TB, ref string, what any) string {
	t.Helper()
	full := r.Host() + "/" + ref
	n, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	wrap := r.Wrap
	r.Wrap = nil
	defer func() { r.Wrap = wrap }()
	switch w := what.(type) {
	case v1.Image:
		err = remote.Write(n, w)
	case v1.ImageIndex:
		err = remote.WriteIndex(n, w)
	default:
		t.Fatalf("cannot push a %T", what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return full
}

// JSON encodes v.
func JSON(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

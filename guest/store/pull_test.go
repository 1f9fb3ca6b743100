//go:build linux

package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store"
	. "dhow/guest/store/storetest"
	"dhow/internal/errdefs"
)

func (e *env) pull(name string) (store.Image, error) {
	img, _, err := e.Pull(e.t.Context(), ref(e.t, name), store.PullOptions{})
	return img, err
}

// manyLayers returns n layers of about size bytes that compress badly.
func manyLayers(n, size int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		r := rand.New(rand.NewPCG(uint64(i), 7))
		files := []File{{Name: fmt.Sprintf("layer%d/", i)}}
		for j := range 4 {
			data := make([]byte, size/4)
			for k := range data {
				data[k] = byte(r.Uint32())
			}
			files = append(files, File{Name: fmt.Sprintf("layer%d/%d", i, j), Data: string(data)})
		}
		files = append(files, File{Name: "top", Data: fmt.Sprint(i)})
		out[i] = Gzip(Tar(files...))
	}
	return out
}

func index(t testing.TB, images map[string]v1.Image, more ...mutate.IndexAddendum) v1.ImageIndex {
	t.Helper()
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for platform, img := range images {
		parts := strings.Split(platform+"/", "/")
		more = append(more, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]},
		}})
	}
	return mutate.AppendManifests(idx, more...)
}

func TestIndexPlatforms(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	images := map[string]v1.Image{}
	for _, p := range []string{"linux/amd64", "linux/arm64/v8", "linux/arm/v7"} {
		images[p] = Image(t, strings.Split(p, "/")[1], Gzip(Tar(File{Name: "platform", Data: p})))
	}
	attestation := mutate.Annotations(mutate.MediaType(empty.Image, types.OCIManifestSchema1), map[string]string{"x": "y"}).(v1.Image)
	idx := index(t, images, mutate.IndexAddendum{Add: attestation, Descriptor: v1.Descriptor{
		Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}, Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
	}})
	name := reg.Push(t, "multi:v1", idx)
	want, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for ask, got := range map[string]string{"": "linux/" + runtime.GOARCH, "linux/arm64": "linux/arm64/v8", "linux/arm/v7": "linux/arm/v7"} {
		o := store.PullOptions{}
		if ask != "" {
			parts := strings.Split(ask+"/", "/")
			o.Platform = &ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
		}
		img, _, err := e.Pull(t.Context(), ref(t, name), o)
		if err != nil {
			t.Fatalf("%s: %v", ask, err)
		}
		if img.Target.Digest.String() != want.String() {
			t.Errorf("%s: target = %s, want the index %s", ask, img.Target.Digest, want)
		}
		if arch := img.Image.Architecture; !strings.HasPrefix(got, "linux/"+arch) {
			t.Errorf("asked for %q, got %s", ask, arch)
		}
	}
	_, _, err = e.Pull(t.Context(), ref(t, name), store.PullOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}})
	if want := "no matching manifest for linux/s390x in the manifest list entries"; errdefs.Sentence(err) != want || !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("err = %v, want %q", err, want)
	}
	byDigest := strings.Split(name, ":v1")[0] + "@" + want.String()
	img, err := e.pull(byDigest)
	if err != nil || img.Target.Digest.String() != want.String() {
		t.Errorf("by digest: %v", err)
	}
	if _, err := e.Get(t.Context(), byDigest); err != nil {
		t.Error(err)
	}
}

func TestSingleImageOfAnotherPlatformIsPulledWithAWarning(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	name := reg.Push(t, "foreign:v1", Image(t, "s390x", Gzip(baseLayer)))
	var warned []string
	img, _, err := e.Pull(t.Context(), ref(t, name), store.PullOptions{
		Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Progress: func(p store.Progress) {
			if p.ID == "" {
				warned = append(warned, p.Action)
			}
		},
	})
	want := fmt.Sprintf("WARNING: image with reference %s was found but does not provide the specified platform (linux/amd64)", name)
	if err != nil || img.Image.Architecture != "s390x" || len(warned) != 1 || warned[0] != want {
		t.Errorf("err = %v, warned %q", err, warned)
	}
}

func TestSharedLayersMoveNoBytes(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	base, top := Gzip(baseLayer), Gzip(topLayer)
	one := reg.Push(t, "one:v1", Image(t, runtime.GOARCH, base))
	two := reg.Push(t, "two:v1", Image(t, runtime.GOARCH, base, top))
	if _, err := e.pull(one); err != nil {
		t.Fatal(err)
	}
	var blobs atomic.Int32
	reg.Wrap = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
		}
		next.ServeHTTP(w, r)
	}
	var exists int
	img, _, err := e.Pull(t.Context(), ref(t, two), store.PullOptions{Progress: func(p store.Progress) {
		if p.Action == "Already exists" {
			exists++
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if blobs.Load() != 2 || exists != 1 { // config and top layer
		t.Errorf("%d blobs were asked for, %d layers existed", blobs.Load(), exists)
	}
	// Removing one image leaves what the other stands on.
	removed, err := e.Remove(t.Context(), two, store.RemoveOptions{})
	if err != nil || len(removed) != 4 {
		t.Errorf("Remove = %+v, %v; want two names, the image and its own layer", removed, err)
	}
	if left, err := e.Get(t.Context(), one); err != nil {
		t.Error(err)
	} else if got := e.tree(left); len(got) == 0 || got["etc/old"].Size != 3 {
		t.Errorf("tree of the other image: %v", got)
	}
	_ = img
	if _, err := e.Remove(t.Context(), one, store.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	e.wantEmpty()
}

func TestPullsOfTheSameLayersShareTheirDownloads(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	layers := manyLayers(8, 200_000)
	var names []string
	for i := range 6 {
		own := append(append([][]byte(nil), layers...), Gzip(Tar(File{Name: "own", Data: fmt.Sprint(i)})))
		names = append(names, reg.Push(t, fmt.Sprintf("app%d:v1", i), Image(t, runtime.GOARCH, own...)))
	}
	var mu sync.Mutex
	seen := map[string]int{}
	reg.Wrap = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if _, blob, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Header.Get("Range") == "" {
			mu.Lock()
			seen[blob]++
			mu.Unlock()
		}
		next.ServeHTTP(w, r)
	}
	var wg sync.WaitGroup
	for _, name := range append(names, names...) {
		wg.Go(func() {
			if _, _, err := e.Pull(context.Background(), ref(t, name), store.PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	layersSeen := 0
	for blob, n := range seen {
		if n > 1 && n != 2 { // a config may be read by both pulls of one image
			t.Errorf("%s was asked for %d times", blob, n)
		}
		layersSeen += min(n, 1)
	}
	if layersSeen != 8+6+6 {
		t.Errorf("%d blobs", layersSeen)
	}
	for _, name := range names {
		img, err := e.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.tree(img); got["top"].Size != 1 || len(got) != 1+8*5+2 {
			t.Errorf("%s has %d entries", name, len(got))
		}
		if _, err := e.Remove(t.Context(), name, store.RemoveOptions{}); err != nil {
			t.Error(err)
		}
	}
	e.wantEmpty()
}

func TestCancelOfOnePullLeavesTheOther(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	name := reg.Push(t, "app:v1", Image(t, runtime.GOARCH, manyLayers(3, 400_000)...))
	started, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	reg.Wrap = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Accept-Encoding") == "" {
			once.Do(func() { time.AfterFunc(50*time.Millisecond, func() { close(started) }) })
			select {
			case <-release:
			case <-time.After(250 * time.Millisecond):
			}
		}
		next.ServeHTTP(w, r)
	}
	gone := errors.New("the client is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, _, err := e.Pull(ctx, ref(t, name), store.PullOptions{}); first <- err }()
	<-started
	go func() { _, _, err := e.Pull(context.Background(), ref(t, name), store.PullOptions{}); second <- err }()
	time.Sleep(50 * time.Millisecond)
	cancel(gone)
	if err := <-first; !errors.Is(err, gone) {
		t.Errorf("canceled pull: %v", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the other pull: %v", err)
	}
	if _, err := e.Remove(t.Context(), name, store.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	e.wantEmpty()
}

func TestCancelLeavesNothing(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	name := reg.Push(t, "app:v1", Image(t, runtime.GOARCH, manyLayers(4, 400_000)...))
	for i := range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*i)*2*time.Millisecond)
		_, _, err := e.Pull(ctx, ref(t, name), store.PullOptions{})
		cancel()
		if err == nil {
			if _, err := e.Remove(t.Context(), name, store.RemoveOptions{}); err != nil {
				t.Error(err)
			}
		}
	}
	e.wantEmpty()
}

// bend changes the answers for layer blobs.
func bend(reg *Registry, blob string, fn func(w http.ResponseWriter, body []byte)) {
	reg.Wrap = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, blob) {
			next.ServeHTTP(w, r)
			return
		}
		rec := &recorder{}
		next.ServeHTTP(rec, r)
		fn(w, rec.Bytes())
	}
}

type recorder struct {
	bytes.Buffer
	h http.Header
}

func (r *recorder) Header() http.Header {
	if r.h == nil {
		r.h = http.Header{}
	}
	return r.h
}
func (r *recorder) WriteHeader(int) {}

func TestWrongBytesAreRefused(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	layers := manyLayers(2, 300_000)
	img := Image(t, runtime.GOARCH, layers...)
	name := reg.Push(t, "app:v1", img)
	ls, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := ls[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"a bit in the middle": {func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b }, "filesystem layer verification failed for digest " + d.String()},
		"the first byte":      {func(b []byte) []byte { b = bytes.Clone(b); b[0] ^= 1; return b }, "filesystem layer verification failed for digest " + d.String()},
		"other content":       {func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) }, "filesystem layer verification failed for digest " + d.String()},
		"shorter":             {func(b []byte) []byte { return b[:len(b)-1] }, "unexpected size of blob " + d.String()},
	} {
		t.Run(what, func(t *testing.T) {
			bend(reg, d.String(), func(w http.ResponseWriter, b []byte) {
				b = c.change(b)
				w.Header().Set("Content-Length", fmt.Sprint(len(b)))
				_, _ = w.Write(b)
			})
			_, err := e.pull(name)
			if !errdefs.Is(err, errdefs.Invalid) || !strings.HasPrefix(errdefs.Sentence(err), c.want) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
			e.wantEmpty()
		})
	}
	reg.Wrap = nil
	if _, err := e.pull(name); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// lyingImage has a config whose diff IDs are not those of its layers.
func TestLayersThatAreNotTheConfigsAreRefused(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	honest := Image(t, runtime.GOARCH, Gzip(baseLayer), Gzip(topLayer))
	c, err := honest.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	swapped := c.DeepCopy()
	swapped.RootFS.DiffIDs[0], swapped.RootFS.DiffIDs[1] = c.RootFS.DiffIDs[1], c.RootFS.DiffIDs[0]
	fewer := c.DeepCopy()
	fewer.RootFS.DiffIDs = fewer.RootFS.DiffIDs[:1]
	for what, config := range map[string]*v1.ConfigFile{"swapped": swapped, "fewer": fewer} {
		img, err := mutate.ConfigFile(honest, config)
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.pull(reg.Push(t, what+":v1", img))
		if want := "layers from manifest don't match image configuration"; errdefs.Sentence(err) != want {
			t.Errorf("%s: err = %v, want %q", what, err, want)
		}
		e.wantEmpty()
	}
}

func TestPullRefusals(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	img := Image(t, runtime.GOARCH, Gzip(baseLayer))
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS = "windows"
	windows, err := mutate.ConfigFile(img, c)
	if err != nil {
		t.Fatal(err)
	}
	artifact := mutate.ConfigMediaType(img, "application/vnd.example+json")
	odd, err := mutate.Append(img, mutate.Addendum{Layer: static.NewLayer([]byte("x"), "application/vnd.example.layer")})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		name, want string
		class      errdefs.Class
	}{
		"windows":  {reg.Push(t, "windows:v1", windows), `image operating system "windows" cannot be used on this platform: operating system is not supported`, errdefs.Invalid},
		"artifact": {reg.Push(t, "artifact:v1", artifact), `Encountered remote "application/vnd.example+json"(unknown) when fetching`, errdefs.Invalid},
		"layer":    {reg.Push(t, "odd:v1", odd), "unsupported media type application/vnd.example.layer", errdefs.Invalid},
		"missing":  {reg.Host() + "/odd:v2", "manifest for " + reg.Host() + "/odd:v2 not found: manifest unknown: Unknown manifest", errdefs.NotFound},
	} {
		_, err := e.pull(c.name)
		if errdefs.Sentence(err) != c.want || !errdefs.Is(err, c.class) {
			t.Errorf("%s: err = %v, want %q", what, err, c.want)
		}
	}
	reg.Wrap = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			_, _ = io.WriteString(w, `{"schemaVersion":1,"name":"x","tag":"v1","fsLayers":[{"blobSum":"sha256:a"}],"signatures":[{}]}`)
			return
		}
		next.ServeHTTP(w, r)
	}
	if _, err := e.pull(reg.Host() + "/old:v1"); !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), "schema 1 support has been removed. Suggest the author of "+reg.Host()+"/old:v1 to upgrade") {
		t.Errorf("schema 1: err = %v", err)
	}
	e.wantEmpty()
}

func TestBrokenConnections(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	var names []string
	shared := manyLayers(6, 300_000)
	for i := range 5 {
		names = append(names, reg.Push(t, fmt.Sprintf("app%d:v1", i), Image(t, runtime.GOARCH, append(shared[:3+i%4:3+i%4], Gzip(Tar(File{Name: "own", Data: fmt.Sprint(i)})))...)))
	}
	var n atomic.Uint32
	reg.Wrap = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if n.Add(1)%5 == 0 {
			next.ServeHTTP(&cutWriter{ResponseWriter: w, left: 70_000}, r)
			return
		}
		next.ServeHTTP(w, r)
	}
	var wg sync.WaitGroup
	for _, name := range append(names, names...) {
		wg.Go(func() {
			if _, _, err := e.Pull(context.Background(), ref(t, name), store.PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, name := range names {
		img, err := e.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.tree(img); len(got) != 1+(3+i%4)*5+2 {
			t.Errorf("%s has %d entries", name, len(got))
		}
	}
}

// cutWriter breaks the connection after some bytes, or at once.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func TestACrashInMidPullLeavesNothing(t *testing.T) {
	e := newEnv(t)
	root := filepath.Join(e.root, "store")
	// What a machine that lost power leaves behind.
	for _, f := range []string{"content/ingest/abc/data", "content/ingest/abc/state", "content/blobs/sha256/" + strings.Repeat("a", 64), "overlay/snapshots/77/fs/file"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, f), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	e.reopen()
	e.wantEmpty()
}

//go:build linux

package store_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store"
	"dhow/guest/store/registry"
	. "dhow/guest/store/storetest"
	"dhow/internal/testkit"
)

// env is a store in a directory of its own, which can be closed and opened
// again.
type env struct {
	*store.Store
	t    testing.TB
	root string
	db   *bbolt.DB
}

func newEnv(t testing.TB) *env {
	t.Helper()
	testkit.Kernel(t)
	e := &env{t: t, root: t.TempDir()}
	e.open()
	t.Cleanup(e.close)
	return e
}

func (e *env) open() {
	e.t.Helper()
	d, err := db.Open(filepath.Join(e.root, "meta.db"))
	if err != nil {
		e.t.Fatal(err)
	}
	e.db = d
	s, err := store.Open(context.Background(), store.Options{Root: filepath.Join(e.root, "store"), DB: d, Registry: registry.Options{
		ConnectTimeout: time.Second, HeaderTimeout: time.Second, StallTimeout: 300 * time.Millisecond, GiveUp: 3 * time.Second,
	}})
	if err != nil {
		e.t.Fatal(err)
	}
	e.Store = s
}

func (e *env) close() {
	if e.Store == nil {
		return
	}
	if err := e.Store.Close(); err != nil {
		e.t.Error(err)
	}
	if n := e.UnpackMemory(0); n != 0 {
		e.t.Errorf("%d bytes of memory are counted for layers that nobody unpacks", n)
	}
	if err := e.db.Close(); err != nil {
		e.t.Error(err)
	}
	e.Store = nil
}

func (e *env) reopen() {
	e.t.Helper()
	e.close()
	e.open()
}

func ref(t testing.TB, s string) reference.Named {
	t.Helper()
	n, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// tree returns the tree of a new container of an image, by its real mounts.
func (e *env) tree(img store.Image) map[string]Entry {
	e.t.Helper()
	NeedOverlay(e.t)
	ctx := context.Background()
	if err := e.PrepareContainer(ctx, "tree", img.ID); err != nil {
		e.t.Fatal(err)
	}
	mounts, err := e.ContainerMounts(ctx, "tree")
	if err != nil {
		e.t.Fatal(err)
	}
	var got map[string]Entry
	if err := WithMounts(e.t, mounts, func(root string) (err error) { got, err = ReadTree(root); return err }); err != nil {
		e.t.Fatal(err)
	}
	if err := e.RemoveContainer(ctx, "tree"); err != nil {
		e.t.Fatal(err)
	}
	return got
}

var (
	baseLayer = Tar(File{Name: "./"}, File{Name: "bin/"}, File{Name: "bin/sh", Data: "#!", Mode: 0o4755}, File{Name: "etc/"},
		File{Name: "etc/passwd", Data: "root"}, File{Name: "etc/old", Data: "old"})
	topLayer = Tar(File{Name: "etc/"}, File{Name: "etc/.wh.old"}, File{Name: "etc/new", Data: "new"})
)

func TestPullThenRunThenRemove(t *testing.T) {
	e := newEnv(t)
	reg := NewRegistry(t)
	name := reg.Push(t, "library/app:v1", Image(t, runtime.GOARCH, Gzip(baseLayer), Zstd(topLayer)))
	var actions []string
	img, newer, err := e.Pull(t.Context(), ref(t, name), store.PullOptions{Progress: func(p store.Progress) {
		actions = append(actions, p.ID+" "+p.Action)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !newer || len(img.Names) != 2 || img.Target.Digest == "" || img.Size == 0 {
		t.Errorf("newer = %v, image = %+v", newer, img)
	}
	if got := strings.Join(actions, "\n"); strings.Count(got, "Pulling fs layer") != 2 || strings.Count(got, "Pull complete") != 2 {
		t.Errorf("progress:\n%s", got)
	}
	check := func() {
		t.Helper()
		got := e.tree(img)
		for p, there := range map[string]bool{"bin/sh": true, "etc/passwd": true, "etc/new": true, "etc/old": false} {
			if _, ok := got[p]; ok != there {
				t.Errorf("%s: there = %v, want %v", p, ok, there)
			}
		}
		if m := got["bin/sh"].Mode; m&0o7777 != 0o4755 {
			t.Errorf("mode of bin/sh = %o", m)
		}
	}
	check()
	e.reopen()
	check()
	for _, q := range []string{name, img.ID.String(), img.ID.Encoded()[:12], img.Names[0], img.Names[1]} {
		if got, err := e.Get(t.Context(), q); err != nil || got.ID != img.ID {
			t.Errorf("Get(%q) = %v, %v", q, got.ID, err)
		}
	}
	reg.Wrap = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			t.Errorf("second pull asked for %s", r.URL.Path)
		}
		next.ServeHTTP(w, r)
	}
	if _, newer, err := e.Pull(t.Context(), ref(t, name), store.PullOptions{}); err != nil || newer {
		t.Errorf("second pull: newer = %v, err = %v", newer, err)
	}
	removed, err := e.Remove(t.Context(), name, store.RemoveOptions{})
	if err != nil || len(removed) != 5 {
		t.Errorf("Remove = %+v, %v; want two names, the image and two layers", removed, err)
	}
	e.wantEmpty()
}

// wantEmpty waits until nothing is left of any image, blob or layer.
func (e *env) wantEmpty() {
	e.t.Helper()
	var left []string
	for range 100 {
		left = nil
		for _, dir := range []string{"content/blobs/sha256", "content/ingest", "overlay/snapshots", "overlay/trash"} {
			ents, err := os.ReadDir(filepath.Join(e.root, "store", dir))
			if err != nil {
				e.t.Fatal(err)
			}
			for _, ent := range ents {
				left = append(left, dir+"/"+ent.Name())
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	e.t.Errorf("left behind: %v", left)
}

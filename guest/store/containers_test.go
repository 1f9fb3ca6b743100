//go:build linux

package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store"
	. "dhow/guest/store/storetest"
	"dhow/internal/errdefs"
)

func TestAContainerKeepsItsLayers(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	got, err := e.load(layoutFiles(t, Image(t, runtime.GOARCH, Gzip(baseLayer), Gzip(topLayer)), "app")...)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.PrepareContainer(ctx, "c1", got[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := e.PrepareContainer(ctx, "c1", got[0].ID); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a key twice: %v", err)
	}
	removed, err := e.Remove(ctx, "app", store.RemoveOptions{Force: true})
	if err != nil || len(removed) != 2 {
		t.Errorf("Remove = %v, %v; the layers are in use", removed, err)
	}
	e.reopen()
	mounts, err := e.ContainerMounts(ctx, "c1")
	if err != nil {
		t.Fatal(err)
	}
	NeedOverlay(t)
	if err := WithMounts(t, mounts, func(root string) error {
		tree, err := ReadTree(root)
		if tree["etc/new"].Size != 3 {
			t.Errorf("tree: %v", tree)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if keys, err := e.Containers(ctx); err != nil || !slices.Equal(keys, []string{"c1"}) {
		t.Errorf("Containers = %v, %v", keys, err)
	}
	if err := errors.Join(e.RemoveContainer(ctx, "c1"), e.RemoveContainer(ctx, "c1")); err != nil {
		t.Error(err)
	}
	e.wantEmpty()
	if err := e.PrepareContainer(ctx, "c2", got[0].ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("container of a removed image: %v", err)
	}
}

// A container that outlives its image shares its layers with a container and
// with another image.
func TestRemovingAContainerLeavesWhatOthersNeed(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	var ids []digest.Digest
	for i, layers := range [][][]byte{{Gzip(baseLayer), Gzip(topLayer)}, {Gzip(baseLayer)}} {
		got, err := e.load(layoutFiles(t, Image(t, runtime.GOARCH, layers...), fmt.Sprintf("app%d", i))...)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, got[0].ID)
	}
	if err := errors.Join(e.PrepareContainer(ctx, "c1", ids[0]), e.PrepareEphemeral(ctx, "c2", ids[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Remove(ctx, "app0", store.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	e.removeContainerAndWait("c1", 3) // two layers and c2
	if _, err := e.ContainerMounts(ctx, "c2"); err != nil {
		t.Error(err)
	}
	boom := errors.New("boom")
	if err := db.Update(ctx, e.db, func(ctx context.Context, _ *bbolt.Tx) error {
		return errors.Join(e.RemoveContainer(ctx, "c2"), boom)
	}); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := e.PrepareContainer(ctx, "c3", ids[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := e.ContainerMounts(ctx, "c2"); err != nil {
		t.Errorf("a removal that was rolled back: %v", err)
	}
	e.removeContainerAndWait("c2", 2) // the layer of the second image and c3
	if _, err := e.ContainerMounts(ctx, "c3"); err != nil {
		t.Error(err)
	}
	e.removeContainerAndWait("c3", 1)
	if _, err := e.Remove(ctx, "app1", store.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	e.wantEmpty()
}

// removeContainerAndWait removes a container and waits until n snapshots are
// left. Then it looks whether they stay.
func (e *env) removeContainerAndWait(key string, n int) {
	e.t.Helper()
	if err := e.RemoveContainer(e.t.Context(), key); err != nil {
		e.t.Fatal(err)
	}
	var ents []os.DirEntry
	for settled, tries := 0, 0; settled < 5 && tries < 200; tries++ {
		time.Sleep(10 * time.Millisecond)
		var err error
		if ents, err = os.ReadDir(filepath.Join(e.root, "store/overlay/snapshots")); err != nil {
			e.t.Fatal(err)
		}
		if settled++; len(ents) != n {
			settled = 0
		}
	}
	if len(ents) != n {
		e.t.Errorf("after the removal of %s there are %v, want %d snapshots", key, ents, n)
	}
}

// Images and containers go at the same time, and the locks of the leases and of
// the database are taken in one order.
func TestRemovalsRunTogether(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	for range 10 {
		got, err := e.load(layoutFiles(t, Image(t, runtime.GOARCH, Gzip(baseLayer), Gzip(topLayer)), "app")...)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if err := e.PrepareContainer(ctx, fmt.Sprint(i), got[0].ID); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				// As the engine does: in its own transaction.
				if err := db.Update(ctx, e.db, func(ctx context.Context, _ *bbolt.Tx) error {
					return e.RemoveContainer(ctx, fmt.Sprint(i))
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if _, err := e.Remove(ctx, "app", store.RemoveOptions{Force: true}); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		e.wantEmpty()
	}
}

//go:build linux

package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store/snapshot"
	"dhow/guest/store/storetest"
	"dhow/internal/errdefs"
	"dhow/internal/testkit"
)

func open(t testing.TB, dir string) (*snapshot.Overlay, *bbolt.DB) {
	t.Helper()
	d, err := db.Open(filepath.Join(dir, "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	o, err := snapshot.OpenOverlay(context.Background(), filepath.Join(dir, "overlay"), d, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return o, d
}

func TestOverlay(t *testing.T) {
	storetest.Snapshots(t, func(t *testing.T) snapshot.Snapshotter { o, _ := open(t, t.TempDir()); return o })
}

func TestPlain(t *testing.T) {
	storetest.Snapshots(t, func(t *testing.T) snapshot.Snapshotter { return storetest.NewPlain(t.TempDir()) })
}

// dirs lists what is on disk.
func dirs(t testing.TB, dir, sub string) (out []string) {
	t.Helper()
	ents, err := os.ReadDir(filepath.Join(dir, "overlay", sub))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		out = append(out, e.Name())
	}
	return out
}

func TestRollbackLeavesNoDirectory(t *testing.T) {
	testkit.Kernel(t)
	dir := t.TempDir()
	o, d := open(t, dir)
	boom := errors.New("boom")
	for range 3 { // the number is given again each time
		err := db.Update(t.Context(), d, func(ctx context.Context, _ *bbolt.Tx) error {
			if _, err := o.Prepare(ctx, "a", ""); err != nil {
				return err
			}
			if _, err := o.Stat(ctx, "a"); err != nil {
				t.Errorf("not visible inside the transaction: %v", err)
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
	}
	if got := dirs(t, dir, "snapshots"); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if _, err := o.Prepare(t.Context(), "a", ""); err != nil {
		t.Error(err)
	}
	if err := o.Cleanup(t.Context()); err != nil || len(dirs(t, dir, "trash")) != 0 {
		t.Errorf("Cleanup = %v, left %v", err, dirs(t, dir, "trash"))
	}
}

func TestRemovalInATransactionThatFailsTakesNothing(t *testing.T) {
	testkit.Kernel(t)
	dir := t.TempDir()
	o, d := open(t, dir)
	if _, err := o.Prepare(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	_ = db.Update(t.Context(), d, func(ctx context.Context, _ *bbolt.Tx) error {
		if err := o.Remove(ctx, "a"); err != nil {
			t.Error(err)
		}
		return errors.New("boom")
	})
	if _, err := o.Stat(t.Context(), "a"); err != nil || len(dirs(t, dir, "snapshots")) != 1 {
		t.Errorf("Stat = %v, directories %v", err, dirs(t, dir, "snapshots"))
	}
}

func TestBootReconciles(t *testing.T) {
	testkit.Kernel(t)
	dir := t.TempDir()
	o, d := open(t, dir)
	for _, key := range []string{"base-active", "lost", "kept"} {
		parent := ""
		if key != "base-active" {
			parent = "base"
		}
		if _, err := o.Prepare(t.Context(), key, parent); err != nil {
			t.Fatal(err)
		}
		if key == "base-active" {
			if err := o.Commit(t.Context(), "base", key); err != nil {
				t.Fatal(err)
			}
		}
	}
	lost, err := o.Dir(t.Context(), "lost")
	if err != nil {
		t.Fatal(err)
	}
	kept, _ := o.Dir(t.Context(), "kept")
	if err := errors.Join(
		os.RemoveAll(filepath.Dir(lost)),                                  // its mkdir did not reach the disk
		os.MkdirAll(filepath.Join(dir, "overlay/snapshots/99/fs"), 0o755), // its record did not
		os.WriteFile(filepath.Join(kept, "f"), nil, 0o644),
		d.Close(),
	); err != nil {
		t.Fatal(err)
	}
	o, _ = open(t, dir)
	for _, want := range []string{lost, filepath.Join(filepath.Dir(lost), "work"), filepath.Join(kept, "f")} {
		if _, err := os.Stat(want); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "overlay/snapshots/99")); err == nil {
		t.Error("a directory without a record is still there")
	}
	if err := o.Cleanup(t.Context()); err != nil || len(dirs(t, dir, "trash")) != 0 {
		t.Errorf("Cleanup = %v, left %v", err, dirs(t, dir, "trash"))
	}
	if m, err := o.Mounts(t.Context(), "lost"); err != nil || len(m) != 1 {
		t.Errorf("Mounts = %v, %v", m, err)
	}
}

func TestBootNeverDiscardsData(t *testing.T) {
	testkit.Kernel(t)
	dir := t.TempDir()
	o, d := open(t, dir)
	ctx := t.Context()
	_, err := o.Prepare(ctx, "b", "")
	if err == nil {
		err = o.Commit(ctx, "base", "b")
	}
	where := make(map[string]string)
	for _, key := range []string{"no work", "work is a file", "fs is a file"} {
		if err == nil {
			_, err = o.Prepare(ctx, key, "base")
		}
		if err == nil {
			where[key], err = o.Dir(ctx, key)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(where[key], "data"), []byte("precious"), 0o600)
		}
	}
	work := func(key string) string { return filepath.Join(filepath.Dir(where[key]), "work") }
	if err := errors.Join(err,
		os.Remove(work("no work")),
		os.Remove(work("work is a file")),
		os.WriteFile(work("work is a file"), nil, 0o600),
		os.RemoveAll(where["fs is a file"]),
		os.WriteFile(where["fs is a file"], []byte("precious"), 0o600),
		d.Close(),
	); err != nil {
		t.Fatal(err)
	}
	o, _ = open(t, dir)
	for _, f := range []string{filepath.Join(where["no work"], "data"), filepath.Join(where["work is a file"], "data"), where["fs is a file"]} {
		if raw, err := os.ReadFile(f); err != nil || string(raw) != "precious" {
			t.Errorf("%s: %q, %v", f, raw, err)
		}
	}
	if fi, err := os.Stat(work("no work")); err != nil || !fi.IsDir() {
		t.Errorf("no work directory was made: %v", err)
	}
	if got := dirs(t, dir, "trash"); len(got) != 0 {
		t.Errorf("in the trash: %v", got)
	}
	if _, err := o.Prepare(ctx, "next", "base"); err != nil {
		t.Error(err)
	}
}

func TestVolatileCanBeMountedAgain(t *testing.T) {
	storetest.NeedOverlay(t)
	dir := t.TempDir()
	o, _ := open(t, dir)
	ctx := t.Context()
	_, err := o.Prepare(ctx, "b", "")
	if err == nil {
		err = o.Commit(ctx, "base", "b")
	}
	if err == nil {
		_, err = o.Prepare(ctx, "c", "base", snapshot.WithLabels(map[string]string{snapshot.LabelVolatile: "1"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		m, err := o.Mounts(ctx, "c")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(strings.Join(m[0].Options, ","), "volatile") {
			t.Errorf("mounts = %+v", m)
		}
		err = storetest.WithMounts(t, m, func(root string) error {
			return os.WriteFile(filepath.Join(root, fmt.Sprint(i)), nil, 0o644)
		})
		if err != nil {
			t.Fatalf("mount %d: %v", i, err)
		}
	}
	if u, err := o.Usage(ctx, "c"); err != nil || u.Inodes != 3 {
		t.Errorf("usage = %+v, %v", u, err)
	}
}

func TestDamagedRecordIsAnError(t *testing.T) {
	testkit.Kernel(t)
	o, d := open(t, t.TempDir())
	if _, err := o.Prepare(t.Context(), "a", "", snapshot.WithLabels(map[string]string{"k": "v"})); err != nil {
		t.Fatal(err)
	}
	records := func(tx *bbolt.Tx) *bbolt.Bucket { return tx.Bucket([]byte("snapshots")).Bucket([]byte("records")) }
	var whole []byte
	_ = d.View(func(tx *bbolt.Tx) error { whole = append(whole, records(tx).Get([]byte("a"))...); return nil })
	for n := range whole {
		if err := d.Update(func(tx *bbolt.Tx) error { return records(tx).Put([]byte("a"), whole[:n]) }); err != nil {
			t.Fatal(err)
		}
		if _, err := o.Stat(t.Context(), "a"); err == nil || errdefs.Is(err, errdefs.NotFound) {
			t.Fatalf("a record cut to %d of %d bytes: err = %v", n, len(whole), err)
		}
	}
}

//go:build linux

package db_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/internal/errdefs"
)

func open(t *testing.T) *bbolt.DB {
	t.Helper()
	d, err := db.Open(filepath.Join(t.TempDir(), "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestNestedUpdatesAreOneTransaction(t *testing.T) {
	d := open(t)
	if err := db.Migrate(d, "a", func(tx *bbolt.Tx) error { _, err := db.Create(tx, "a"); return err }); err != nil {
		t.Fatal(err)
	}
	put := func(ctx context.Context, key string) error {
		return db.Update(ctx, d, func(_ context.Context, tx *bbolt.Tx) error {
			b, err := db.Bucket(tx, "a")
			if err != nil {
				return err
			}
			return b.Put([]byte(key), []byte("v"))
		})
	}
	boom := errors.New("boom")
	var trace []string
	err := db.Update(t.Context(), d, func(ctx context.Context, _ *bbolt.Tx) error {
		db.OnRollback(ctx, d, func() { trace = append(trace, "rollback 1") })
		db.OnRollback(ctx, d, func() { trace = append(trace, "rollback 2") })
		db.OnCommit(ctx, d, func() { trace = append(trace, "commit") })
		if err := put(ctx, "x"); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("err = %v", err)
	}
	if want := []string{"rollback 2", "rollback 1"}; !slices.Equal(trace, want) {
		t.Errorf("trace = %v, want %v", trace, want)
	}
	get := func() (v []byte) {
		_ = db.View(t.Context(), d, func(tx *bbolt.Tx) error {
			v = slices.Clone(tx.Bucket([]byte("a")).Get([]byte("x")))
			return nil
		})
		return v
	}
	if get() != nil {
		t.Error("the inner write survived the outer rollback")
	}
	trace = nil
	err = db.Update(t.Context(), d, func(ctx context.Context, _ *bbolt.Tx) error {
		db.OnRollback(ctx, d, func() { trace = append(trace, "rollback") })
		db.OnCommit(ctx, d, func() { trace = append(trace, "commit") })
		return put(ctx, "x")
	})
	if err != nil || string(get()) != "v" || !slices.Equal(trace, []string{"commit"}) {
		t.Errorf("err = %v, value = %q, trace = %v", err, get(), trace)
	}
}

func TestAPanicRollsBack(t *testing.T) {
	d := open(t)
	called := false
	func() {
		defer func() { _ = recover() }()
		_ = db.Update(t.Context(), d, func(ctx context.Context, _ *bbolt.Tx) error {
			db.OnRollback(ctx, d, func() { called = true })
			panic("x")
		})
	}()
	if !called {
		t.Error("the rollback hook was not called")
	}
	if err := d.Update(func(*bbolt.Tx) error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestMigrateRunsMissingStepsOnceAndRefusesTheFuture(t *testing.T) {
	d := open(t)
	var ran []int
	step := func(n int) func(*bbolt.Tx) error {
		return func(*bbolt.Tx) error { ran = append(ran, n); return nil }
	}
	for _, steps := range [][]func(*bbolt.Tx) error{{step(0)}, {step(0), step(1), step(2)}, {step(0), step(1), step(2)}} {
		if err := db.Migrate(d, "p", steps...); err != nil {
			t.Fatal(err)
		}
	}
	if want := []int{0, 1, 2}; !slices.Equal(ran, want) {
		t.Errorf("ran = %v, want %v", ran, want)
	}
	if err := db.Migrate(d, "p", step(0)); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a newer schema: err = %v, want Conflict", err)
	}
}

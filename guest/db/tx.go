//go:build linux

package db

import (
	"context"

	"go.etcd.io/bbolt"
)

// session is the transaction that a context carries, with what follows it.
type session struct {
	tx       *bbolt.Tx
	commit   []func()
	rollback []func()
}

// sessionKey keys a context's session by its database.
type sessionKey struct{ db *bbolt.DB }

// Update runs fn in a write transaction of d: the one that ctx carries, or a
// new one that is committed when fn returns nil. The context that fn gets
// carries the transaction; it must not outlive fn, nor be used by other
// goroutines. In a joined transaction fn's error does not roll back by itself:
// the function that started the transaction must return it on.
func Update(ctx context.Context, d *bbolt.DB, fn func(context.Context, *bbolt.Tx) error) error {
	if s := sessionOf(ctx, d); s != nil {
		return fn(ctx, s.tx)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s := &session{}
	done := false
	defer func() {
		after := s.commit
		if !done {
			// Also when fn panics: what it made on disk must not stay.
			after = s.rollback
		}
		for i := len(after) - 1; i >= 0; i-- {
			after[i]()
		}
	}()
	err := d.Update(func(tx *bbolt.Tx) error {
		s.tx = tx
		return fn(context.WithValue(ctx, sessionKey{d}, s), tx)
	})
	done = err == nil
	return err
}

// View runs fn in a read transaction of d, or in the transaction that ctx
// carries. Byte slices that fn reads are valid only inside it.
func View(ctx context.Context, d *bbolt.DB, fn func(*bbolt.Tx) error) error {
	if s := sessionOf(ctx, d); s != nil {
		return fn(s.tx)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return d.View(fn)
}

// OnCommit has fn called after the transaction that ctx carries for d is
// committed, last registered first. It must be called inside Update.
func OnCommit(ctx context.Context, d *bbolt.DB, fn func()) {
	s := sessionOf(ctx, d)
	s.commit = append(s.commit, fn)
}

// OnRollback has fn called if the transaction that ctx carries for d is not
// committed, last registered first. It must be called inside Update.
func OnRollback(ctx context.Context, d *bbolt.DB, fn func()) {
	s := sessionOf(ctx, d)
	s.rollback = append(s.rollback, fn)
}

func sessionOf(ctx context.Context, d *bbolt.DB) *session {
	s, _ := ctx.Value(sessionKey{d}).(*session)
	return s
}

//go:build linux

package store

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store/content"
	"dhow/guest/store/image"
	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

// Keys of active snapshots. Committed ones are named by their chain ID.
const (
	unpackPrefix    = "unpack/"
	containerPrefix = "container/"
)

// What leases hold.
func heldBlob(d digest.Digest) string { return "blob/" + string(d) }
func heldLayer(chain string) string   { return "layer/" + chain }
func heldKey(key string) string       { return "key/" + key }

// sweep removes every blob and layer that no record and no lease needs.
func (s *Store) sweep(ctx context.Context) error {
	return s.leases.Sweep(func() error {
		return errors.Join(s.sweepSnapshots(ctx), s.sweepBlobs(ctx))
	})
}

func (s *Store) sweepBlobs(ctx context.Context) error {
	var all []digest.Digest
	err := s.content.Walk(ctx, func(i content.Info) error { all = append(all, i.Digest); return nil })
	if err != nil {
		return err
	}
	return s.dropUnneeded(ctx, all)
}

// dropUnneeded deletes those of some blobs that no image needs. The caller is
// in a sweep.
func (s *Store) dropUnneeded(ctx context.Context, all []digest.Digest) error {
	var orphans []digest.Digest
	err := s.view(ctx, func(t image.Table) error {
		for _, d := range all {
			if !t.NeedsBlob(d) {
				orphans = append(orphans, d)
			}
		}
		return nil
	})
	if err != nil || len(orphans) == 0 {
		return err
	}
	return s.dropBlobs(ctx, orphans)
}

// dropBlobs deletes blobs that had no record when the caller looked, unless
// they are held. The caller is in a sweep, or removed the record itself.
func (s *Store) dropBlobs(ctx context.Context, orphans []digest.Digest) error {
	return s.leases.Collect(func(held func(string) bool) error {
		var errs []error
		for _, d := range orphans {
			if held(heldBlob(d)) {
				continue
			}
			if err := s.content.Delete(ctx, d); !errdefs.Is(err, errdefs.NotFound) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

func (s *Store) sweepSnapshots(ctx context.Context) error {
	var found []snapshot.Info
	parents := make(map[string]bool)
	err := s.snaps.Walk(ctx, func(_ context.Context, i snapshot.Info) error {
		parents[i.Parent] = true
		if i.Kind == snapshot.Committed || strings.HasPrefix(i.Name, unpackPrefix) {
			found = append(found, i)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = s.view(ctx, func(t image.Table) error {
		found = slices.DeleteFunc(found, func(i snapshot.Info) bool {
			return i.Kind == snapshot.Committed && (parents[i.Name] || t.OnChain(digest.Digest(i.Name)))
		})
		return nil
	})
	if err != nil || len(found) == 0 {
		return err // most often there is nothing, and so nothing to write
	}
	return s.leases.Collect(func(held func(string) bool) error {
		return db.Update(ctx, s.db, func(ctx context.Context, tx *bbolt.Tx) error {
			t, err := s.images.In(tx)
			if err != nil {
				return err
			}
			for _, i := range found {
				if err := s.dropSnapshot(ctx, t, i, held); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// dropSnapshot removes a snapshot that a sweep found, unless it is held.
func (s *Store) dropSnapshot(ctx context.Context, t image.Table, i snapshot.Info, held func(string) bool) error {
	if i.Kind == snapshot.Committed {
		_, err := s.dropChain(ctx, t, i.Name, held)
		return err
	}
	if held(heldKey(i.Name)) {
		return nil
	}
	err := s.snaps.Remove(ctx, i.Name)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil
	}
	return err
}

// dropChain removes the layer chain and those below it, as far as no image, no
// other snapshot and no lease needs them, and returns their names, top first.
func (s *Store) dropChain(ctx context.Context, t image.Table, chain string, held func(string) bool) (removed []string, err error) {
	for chain != "" && !t.OnChain(digest.Digest(chain)) && !held(heldLayer(chain)) {
		info, err := s.snaps.Stat(ctx, chain)
		if errdefs.Is(err, errdefs.NotFound) {
			return removed, nil
		}
		if err != nil {
			return removed, err
		}
		err = s.snaps.Remove(ctx, chain)
		if errors.Is(err, snapshot.ErrHasChildren) {
			return removed, nil
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, chain)
		chain = info.Parent
	}
	return removed, nil
}

// sweepSoon sweeps in the background, after work that failed.
func (s *Store) sweepSoon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sweeping {
		s.again = true
	}
	if s.sweeping || s.closed {
		return
	}
	s.sweeping = true
	s.wg.Go(func() {
		for {
			if err := errors.Join(s.sweep(s.ctx), s.snaps.Cleanup(s.ctx)); err != nil && s.ctx.Err() == nil {
				s.log.Warn("sweep", "error", err)
			}
			s.mu.Lock()
			if !s.again || s.closed {
				s.sweeping = false
				s.mu.Unlock()
				return
			}
			s.again = false
			s.mu.Unlock()
		}
	})
}

// freeSpace deletes, in the background, the files of removed snapshots.
func (s *Store) freeSpace() {
	s.background(func() {
		if err := s.snaps.Cleanup(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("free the space of removed layers", "error", err)
		}
	})
}

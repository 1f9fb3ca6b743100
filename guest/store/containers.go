//go:build linux

package store

import (
	"context"
	"errors"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store/image"
	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

// PrepareContainer makes the writable snapshot of a container on an image. It
// joins the metadata transaction that ctx carries (see db.Update), so that it
// and the container's record become durable together.
func (s *Store) PrepareContainer(ctx context.Context, key string, id digest.Digest) error {
	return s.prepareContainer(ctx, key, id)
}

// PrepareEphemeral is PrepareContainer for a container that is removed when it
// ends: its files are not kept over a crash of the machine, and nothing waits
// for the disk.
func (s *Store) PrepareEphemeral(ctx context.Context, key string, id digest.Digest) error {
	return s.prepareContainer(ctx, key, id, snapshot.WithLabels(map[string]string{snapshot.LabelVolatile: "1"}))
}

func (s *Store) prepareContainer(ctx context.Context, key string, id digest.Digest, opts ...snapshot.Opt) error {
	return db.Update(ctx, s.db, func(ctx context.Context, tx *bbolt.Tx) error {
		t, err := s.images.In(tx)
		if err != nil {
			return err
		}
		r, err := t.Record(id)
		if err != nil {
			return err
		}
		_, err = s.snaps.Prepare(ctx, containerPrefix+key, string(r.ChainID), opts...)
		return err
	})
}

// ContainerMounts returns the mounts of a container's root, as data.
func (s *Store) ContainerMounts(ctx context.Context, key string) ([]snapshot.Mount, error) {
	return s.snaps.Mounts(ctx, containerPrefix+key)
}

// ContainerUsage returns what the container itself has written.
func (s *Store) ContainerUsage(ctx context.Context, key string) (snapshot.Usage, error) {
	return s.snaps.Usage(ctx, containerPrefix+key)
}

// RemoveContainer removes a container's snapshot; one that is gone is no
// error. It joins the metadata transaction that ctx carries. The space is freed
// in the background, that of the layers too if their image is gone and this was
// the last container on them.
func (s *Store) RemoveContainer(ctx context.Context, key string) error {
	return db.Update(ctx, s.db, func(ctx context.Context, tx *bbolt.Tx) error {
		var abandoned string
		// Before the removal, for it runs after what the removal registers.
		db.OnCommit(ctx, s.db, func() {
			if abandoned == "" {
				s.freeSpace()
			} else {
				s.background(func() { s.dropAbandoned(abandoned) })
			}
		})
		parent, err := s.snaps.RemoveChild(ctx, containerPrefix+key)
		if errdefs.Is(err, errdefs.NotFound) {
			return nil
		}
		if err != nil || parent == "" {
			return err
		}
		needed, err := image.OnChain(tx, digest.Digest(parent))
		if !needed {
			abandoned = parent
		}
		return err
	})
}

// dropAbandoned removes the layers that an image left to its containers, as
// far as nobody needs them, and frees their space. It is a transaction after
// the container's own because the leases come before the database, always. If
// the machine goes down in between, the next boot sweeps.
func (s *Store) dropAbandoned(chain string) {
	err := s.leases.Collect(func(held func(string) bool) error {
		return db.Update(s.ctx, s.db, func(ctx context.Context, tx *bbolt.Tx) error {
			t, err := s.images.In(tx)
			if err != nil {
				return err
			}
			_, err = s.dropChain(ctx, t, chain, held)
			return err
		})
	})
	if err = errors.Join(err, s.snaps.Cleanup(s.ctx)); err != nil && s.ctx.Err() == nil {
		s.log.Warn("remove the layers that a container left", "error", err)
	}
}

// Containers returns the keys of all containers that have a snapshot.
func (s *Store) Containers(ctx context.Context) (keys []string, err error) {
	err = s.snaps.Walk(ctx, func(_ context.Context, i snapshot.Info) error {
		if key, ok := strings.CutPrefix(i.Name, containerPrefix); ok {
			keys = append(keys, key)
		}
		return nil
	})
	return keys, err
}

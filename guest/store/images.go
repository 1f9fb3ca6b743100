//go:build linux

package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store/content"
	"dhow/guest/store/image"
	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

func ignoreExists(err error) error {
	if errors.Is(err, content.ErrExists) {
		return nil
	}
	return err
}

func (s *Store) view(ctx context.Context, fn func(image.Table) error) error {
	return db.View(ctx, s.db, func(tx *bbolt.Tx) error {
		t, err := s.images.In(tx)
		if err != nil {
			return err
		}
		return fn(t)
	})
}

// Images returns all images, in the order of their IDs.
func (s *Store) Images(ctx context.Context) (out []Image, err error) {
	err = s.view(ctx, func(t image.Table) error {
		for _, id := range t.IDs("") {
			img, err := t.Describe(id, ocispec.Descriptor{})
			if err != nil {
				return err
			}
			out = append(out, img)
		}
		return nil
	})
	return out, err
}

// Get finds an image by name (familiar or full, :latest understood), by
// name@digest, by ID, or by an unambiguous beginning of its ID. It is NotFound
// with docker's "No such image" otherwise.
func (s *Store) Get(ctx context.Context, nameOrID string) (img Image, err error) {
	err = s.view(ctx, func(t image.Table) (err error) {
		img, err = find(t, nameOrID)
		return err
	})
	return img, err
}

func find(t image.Table, nameOrID string) (img Image, err error) {
	ref, err := reference.ParseAnyReference(nameOrID)
	if err != nil {
		return img, errdefs.Wrap(errdefs.Invalid, err, "%s", err)
	}
	named, ok := ref.(reference.Named)
	if !ok {
		if d, ok := ref.(reference.Digested); ok && t.Has(d.Digest()) {
			return t.Describe(d.Digest(), ocispec.Descriptor{})
		}
		return img, image.NotFound(nameOrID)
	}
	key, err := nameKey(named)
	if err != nil {
		return img, err
	}
	id, target, err := t.Lookup(key)
	if err == nil {
		return t.Describe(id, target)
	}
	if !errdefs.Is(err, errdefs.NotFound) {
		return img, err
	}
	if id, ok := byPrefix(t, nameOrID); ok {
		return t.Describe(id, ocispec.Descriptor{})
	}
	return img, image.NotFound(reference.FamiliarString(reference.TagNameOnly(named)))
}

// nameKey returns the full reference that a name is stored under: a digest
// counts more than a tag.
func nameKey(named reference.Named) (string, error) {
	if d, ok := named.(reference.Digested); ok {
		c, err := reference.WithDigest(reference.TrimNamed(named), d.Digest())
		if err != nil {
			return "", err
		}
		return c.String(), nil
	}
	return reference.TagNameOnly(named).String(), nil
}

// byPrefix finds the one image whose ID begins with s.
func byPrefix(t image.Table, s string) (digest.Digest, bool) {
	hex := strings.TrimPrefix(s, "sha256:")
	if hex == "" || strings.Trim(hex, "0123456789abcdef") != "" {
		return "", false
	}
	ids := t.IDs("sha256:" + hex)
	if len(ids) != 1 {
		return "", false
	}
	return ids[0], true
}

// Tag points ref to the image. A name that pointed elsewhere moves.
func (s *Store) Tag(ctx context.Context, id digest.Digest, ref reference.Named) error {
	if _, ok := ref.(reference.Digested); ok {
		return errdefs.New(errdefs.Invalid, "refusing to create a tag with a digest reference")
	}
	return db.Update(ctx, s.db, func(_ context.Context, tx *bbolt.Tx) error {
		t, err := s.images.In(tx)
		if err != nil {
			return err
		}
		r, err := t.Record(id)
		if err != nil {
			return err
		}
		var target ocispec.Descriptor
		if len(r.Targets) > 0 {
			target = r.Targets[0]
		}
		_, err = t.SetName(reference.TagNameOnly(ref).String(), id, target, time.Now())
		return err
	})
}

// LayerSizes returns the bytes on disk that each layer of the image takes,
// bottom first.
func (s *Store) LayerSizes(ctx context.Context, img Image) ([]int64, error) {
	var out []int64
	err := db.View(ctx, s.db, func(*bbolt.Tx) error {
		for _, c := range img.ChainIDs() {
			u, err := s.snaps.Usage(ctx, string(c))
			if err != nil {
				return err
			}
			out = append(out, u.Size)
		}
		return nil
	})
	return out, err
}

// Usage returns the bytes on disk of all layers of all images, each counted
// once.
func (s *Store) Usage(ctx context.Context) (total int64, err error) {
	err = s.snaps.Walk(ctx, func(ctx context.Context, i snapshot.Info) error {
		if i.Kind != snapshot.Committed {
			return nil
		}
		u, err := s.snaps.Usage(ctx, i.Name)
		if errdefs.Is(err, errdefs.NotFound) {
			return nil
		}
		total += u.Size
		return err
	})
	return total, err
}

// Reclaimable returns the bytes on disk of the layers that only images need
// which used does not report.
func (s *Store) Reclaimable(ctx context.Context, used func(digest.Digest) bool) (int64, error) {
	images, err := s.Images(ctx)
	if err != nil {
		return 0, err
	}
	needed := make(map[digest.Digest]bool)
	for _, i := range images {
		if used(i.ID) {
			for _, c := range i.ChainIDs() {
				needed[c] = true
			}
		}
	}
	var total int64
	for _, i := range images {
		chains := i.ChainIDs()
		for n, c := range slices.Backward(chains) {
			if needed[c] {
				break
			}
			needed[c] = true
			u, err := s.snaps.Usage(ctx, string(chains[n]))
			if err != nil && !errdefs.Is(err, errdefs.NotFound) {
				return 0, err
			}
			total += u.Size
		}
	}
	return total, nil
}

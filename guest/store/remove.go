//go:build linux

package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store/image"
	"dhow/internal/errdefs"
)

// RemoveOptions change what Remove does.
type RemoveOptions struct {
	Force bool
	// NoPrune keeps parents without a name, which otherwise go with their last
	// child.
	NoPrune bool
	// InUse tells which container uses an image: one that runs if there is one.
	// nil: none does. It must not call the store.
	InUse func(digest.Digest) (containerID string, running, used bool)
}

// Removed is one line of what Remove did: a name, or an image or layer.
type Removed struct{ Untagged, Deleted string }

// Remove removes an image by docker's rules. By a name it takes that name away,
// and the image too if it was the last; by an ID it removes the image with all
// its names, unless they are in several repositories. An image that a running
// container uses, or that has children, cannot be removed; one that a stopped
// container uses, only by force. The refusals are Conflict, in docker's words.
//
// What is returned is durable; the bytes are freed in the background.
func (s *Store) Remove(ctx context.Context, nameOrID string, o RemoveOptions) (removed []Removed, err error) {
	if o.InUse == nil {
		o.InUse = func(digest.Digest) (string, bool, bool) { return "", false, false }
	}
	var orphans []digest.Digest
	err = s.leases.Sweep(func() error {
		// Nobody may take what this transaction finds to be free.
		err := s.leases.Collect(func(held func(string) bool) error {
			return db.Update(ctx, s.db, func(ctx context.Context, tx *bbolt.Tx) error {
				t, err := s.images.In(tx)
				if err != nil {
					return err
				}
				r := remover{s: s, t: t, o: o, held: held}
				err = r.remove(ctx, nameOrID)
				removed, orphans = r.out, r.orphans
				return err
			})
		})
		if err != nil {
			removed = nil
			return err
		}
		return s.dropBlobs(ctx, orphans)
	})
	s.freeSpace()
	return removed, err
}

// remover is one Remove, in its transaction.
type remover struct {
	s       *Store
	t       image.Table
	o       RemoveOptions
	held    func(string) bool
	out     []Removed
	orphans []digest.Digest
}

func (r *remover) remove(ctx context.Context, nameOrID string) error {
	img, err := find(r.t, nameOrID)
	if err != nil {
		return err
	}
	refs, err := parseAll(img.Names)
	if err != nil {
		return err
	}
	if isIDPrefix(img.ID, nameOrID) {
		if single(refs) {
			if err := r.conflict(img.ID, r.o.Force, true); err != nil {
				return err
			}
			if err := r.untagAll(refs); err != nil {
				return err
			}
		}
		return r.delete(ctx, img.ID, r.o.Force, false)
	}
	named, err := reference.ParseNormalizedNamed(nameOrID)
	if err != nil {
		return errdefs.Wrap(errdefs.Invalid, err, "%s", err)
	}
	if !r.o.Force && single(refs) {
		if id, _, used := r.o.InUse(img.ID); used {
			return errdefs.New(errdefs.Conflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
				reference.FamiliarString(reference.TagNameOnly(named)), shortName(id), shortID(img.ID))
		}
	}
	key, err := nameKey(named)
	if err != nil {
		return err
	}
	if refs, err = r.untag(refs, key); err != nil {
		return err
	}
	if len(refs) > 0 {
		return nil
	}
	return r.delete(ctx, img.ID, r.o.Force, true)
}

// untag removes one name, and the names by digest of its repository if it was
// the last tag there. It returns the names that are left.
func (r *remover) untag(refs []reference.Named, key string) (left []reference.Named, err error) {
	var gone reference.Named
	for _, ref := range refs {
		if ref.String() == key {
			gone = ref
		} else {
			left = append(left, ref)
		}
	}
	if gone == nil {
		return nil, image.NotFound(key)
	}
	if err := r.untagAll([]reference.Named{gone}); err != nil || isDigested(gone) {
		return left, err
	}
	var digests, others []reference.Named
	for _, ref := range left {
		switch {
		case ref.Name() != gone.Name():
			others = append(others, ref)
		case isDigested(ref):
			digests = append(digests, ref)
		default:
			return left, nil // the repository has another tag for the image
		}
	}
	return others, r.untagAll(digests)
}

func (r *remover) untagAll(refs []reference.Named) error {
	for _, ref := range refs {
		if err := r.t.RemoveName(ref.String()); err != nil {
			return err
		}
		r.out = append(r.out, Removed{Untagged: reference.FamiliarString(ref)})
	}
	return nil
}

// delete removes an image, unless something speaks against it. quiet says that
// the caller has done something already: then only what would leave an image
// without a name and without a user is worth an error.
func (r *remover) delete(ctx context.Context, id digest.Digest, force, quiet bool) error {
	if err := r.conflict(id, force, false); err != nil {
		_, _, used := r.o.InUse(id)
		if quiet && (used || len(r.t.Names(id)) > 0) {
			return nil
		}
		return err
	}
	refs, err := parseAll(r.t.Names(id))
	if err != nil {
		return err
	}
	if err := r.untagAll(refs); err != nil {
		return err
	}
	rec, err := r.t.Record(id)
	if err != nil {
		return err
	}
	orphans, err := r.t.Delete(id)
	if err != nil {
		return err
	}
	r.orphans = append(r.orphans, orphans...)
	r.out = append(r.out, Removed{Deleted: string(id)})
	layers, err := r.s.dropChain(ctx, r.t, string(rec.ChainID), r.held)
	for _, l := range layers {
		r.out = append(r.out, Removed{Deleted: l})
	}
	if err != nil || r.o.NoPrune || rec.Parent == "" || !r.t.Has(rec.Parent) {
		return err
	}
	// The parent goes as well, if nothing but this child kept it.
	err = r.delete(ctx, rec.Parent, false, true)
	if errdefs.Is(err, errdefs.Conflict) {
		return nil
	}
	return err
}

// conflict returns what speaks against removing the image. ignoreNames leaves
// its names out.
func (r *remover) conflict(id digest.Digest, force, ignoreNames bool) error {
	refuse := func(how, why string) error {
		return errdefs.New(errdefs.Conflict, "conflict: unable to delete %s (%s) - %s", shortID(id), how, why)
	}
	if len(r.t.Children(id)) > 0 {
		return refuse("cannot be forced", "image has dependent child images")
	}
	container, running, used := r.o.InUse(id)
	if running {
		return refuse("cannot be forced", "image is being used by running container "+shortName(container))
	}
	if force {
		return nil
	}
	if !ignoreNames && len(r.t.Names(id)) > 0 {
		return refuse("must be forced", "image is referenced in multiple repositories")
	}
	if used {
		return refuse("must be forced", "image is being used by stopped container "+shortName(container))
	}
	return nil
}

func shortName(id string) string { return id[:min(12, len(id))] }

func isDigested(ref reference.Named) bool {
	_, ok := ref.(reference.Digested)
	return ok
}

func parseAll(names []string) ([]reference.Named, error) {
	out := make([]reference.Named, len(names))
	for i, n := range names {
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return nil, fmt.Errorf("name %q in the database: %w", n, err)
		}
		out[i] = ref
	}
	return out, nil
}

// isIDPrefix reports whether s is the beginning of the ID, with or without its
// algorithm.
func isIDPrefix(id digest.Digest, s string) bool {
	return strings.HasPrefix(string(id), s) || strings.HasPrefix(id.Encoded(), s)
}

// single reports whether all names are in one repository and at most one of
// them is a tag.
func single(refs []reference.Named) bool {
	if len(refs) <= 1 {
		return true
	}
	repos := make(map[string]bool)
	tags := 0
	for _, ref := range refs {
		repos[ref.Name()] = true
		if !isDigested(ref) {
			tags++
		}
	}
	return len(repos) == 1 && tags <= 1
}

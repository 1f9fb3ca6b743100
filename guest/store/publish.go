//go:build linux

package store

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"dhow/guest/db"
	"dhow/guest/store/content"
	"dhow/guest/store/image"
	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

// newImage is an image that is ready but for its record.
type newImage struct {
	record image.Record // without ChainID, Size and Created
	config []byte
	names  []string // full references that are to point to it
	target ocispec.Descriptor
}

// publish makes an image visible: it waits for its layers, syncs the file
// system once, and commits the layers and the record in one transaction. It
// reports whether the first name is new or pointed elsewhere before.
func (s *Store) publish(ctx context.Context, n newImage, jobs []*layerJob) (img Image, newer bool, err error) {
	config, err := image.ParseConfig(n.config)
	if err != nil {
		return img, false, err
	}
	if err := waitJobs(ctx, jobs); err != nil {
		return img, false, err
	}
	// Everything written so far becomes durable here: blobs, and the files of
	// the layers. From the transaction on it is known to be.
	if err := s.content.Sync(ctx); err != nil {
		return img, false, err
	}
	r := n.record
	chains := image.ChainIDs(config.RootFS.DiffIDs)
	if len(chains) > 0 {
		r.ChainID = chains[len(chains)-1]
	}
	if config.Created != nil {
		r.Created = *config.Created
	}
	r.Targets = []ocispec.Descriptor{n.target}
	err = db.Update(ctx, s.db, func(ctx context.Context, tx *bbolt.Tx) error {
		t, err := s.images.In(tx)
		if err != nil {
			return err
		}
		if err := s.commitLayers(ctx, jobs); err != nil {
			return err
		}
		if r.Size, err = s.chainSize(ctx, chains); err != nil {
			return err
		}
		if err := t.Put(r, n.config); err != nil {
			return err
		}
		for i, name := range n.names {
			changed, err := t.SetName(name, r.ID, n.target, time.Now())
			if err != nil {
				return err
			}
			newer = newer || (i == 0 && changed)
		}
		img, err = t.Describe(r.ID, n.target)
		return err
	})
	return img, newer, err
}

// waitJobs waits for layers. It returns as soon as one has failed, with its
// error.
func waitJobs(ctx context.Context, jobs []*layerJob) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, j := range jobs {
		g.Go(func() error {
			select {
			case <-j.done:
				return j.err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}
	return g.Wait()
}

// commitLayers commits the layers that nobody has committed yet, bottom first,
// in the transaction of ctx.
func (s *Store) commitLayers(ctx context.Context, jobs []*layerJob) error {
	for _, j := range jobs {
		err := s.snaps.Commit(ctx, string(j.w.chain), j.key,
			snapshot.WithParent(string(j.w.parent)), snapshot.WithUsage(j.usage))
		if err == nil || errors.Is(err, snapshot.ErrExists) {
			continue
		}
		if errdefs.Is(err, errdefs.NotFound) {
			if _, serr := s.snaps.Stat(ctx, string(j.w.chain)); serr == nil {
				continue // committed by another pull of the same layer
			}
		}
		return err
	}
	return nil
}

func (s *Store) chainSize(ctx context.Context, chains []digest.Digest) (total int64, err error) {
	for _, c := range chains {
		u, err := s.snaps.Usage(ctx, string(c))
		if err != nil {
			return 0, err
		}
		total += u.Size
	}
	return total, nil
}

// keepBlob stores a small blob that is in memory, if the store does not have
// it. It becomes durable by publish.
func (s *Store) keepBlob(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	unlock, err := s.blobs.lock(ctx, string(d.Digest))
	if err != nil {
		return err
	}
	defer unlock()
	name := "blob-" + string(d.Digest)
	w, err := s.content.Writer(ctx, name, ocispec.Descriptor{Digest: d.Digest, Size: int64(len(raw))})
	if err != nil {
		return ignoreExists(err)
	}
	_, err = w.Write(raw)
	if err == nil {
		err = w.Commit(ctx, int64(len(raw)), d.Digest, content.Deferred)
	}
	return s.end(w, name, err)
}

// end closes a writer, and drops its ingest unless it was committed: a download
// that breaks goes on by itself, so one that failed has no use any more.
func (s *Store) end(w content.Writer, name string, err error) error {
	if err = errors.Join(err, w.Close()); err != nil {
		err = errors.Join(err, s.content.Abort(context.Background(), name))
	}
	return err
}

// readBlob reads a small blob of the store.
func (s *Store) readBlob(ctx context.Context, d digest.Digest, limit int64) (raw []byte, err error) {
	r, err := s.content.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if r.Size() > limit {
		return nil, errdefs.New(errdefs.Invalid, "blob %s is larger than %d bytes", d, limit)
	}
	raw = make([]byte, r.Size())
	_, err = io.ReadFull(io.NewSectionReader(r, 0, r.Size()), raw)
	return raw, err
}

// layersOf pairs the layers of a manifest with the diff IDs of its config.
func layersOf(blobs []ocispec.Descriptor, diffIDs []digest.Digest, fetch fetchFunc) ([]wantedLayer, error) {
	if len(blobs) != len(diffIDs) {
		return nil, errdefs.New(errdefs.Invalid, "layers from manifest don't match image configuration")
	}
	chains := image.ChainIDs(diffIDs)
	out := make([]wantedLayer, len(blobs))
	for i, b := range blobs {
		out[i] = wantedLayer{chain: chains[i], diffID: diffIDs[i], blob: b, fetch: fetch}
		if i > 0 {
			out[i].parent = chains[i-1]
		}
	}
	return out, nil
}

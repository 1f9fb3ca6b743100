//go:build linux

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store/content"
	"dhow/guest/store/gc"
	"dhow/guest/store/layer"
	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

// wantedLayer is one layer that a pull or load needs.
type wantedLayer struct {
	chain  digest.Digest
	parent digest.Digest // chain ID of the layer below, "" for the base
	diffID digest.Digest
	blob   ocispec.Descriptor
	fetch  fetchFunc
}

// fetchFunc opens a blob that the store does not have.
type fetchFunc func(context.Context, ocispec.Descriptor) io.ReadCloser

// layerJob makes one layer: from its blob, wherever that is, to an unpacked
// directory that only lacks its commit. Whoever wants the same layer meanwhile
// shares the job; it is canceled when nobody wants it any more.
type layerJob struct {
	s      *Store
	w      wantedLayer
	key    string // of the active snapshot
	parent *layerJob
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the fields below are final
	err    error
	usage  snapshot.Usage

	reserved int64 // bytes of Store.memory; used by run only

	// Guarded by Store.mu.
	refs int

	mu    sync.Mutex
	feeds map[*feed]struct{}
	last  Progress
	sent  time.Time
}

// startLayers returns the jobs of the layers that the store does not have,
// bottom first; new ones are running when it returns. Each must be given back
// by releaseLayers.
func (s *Store) startLayers(ctx context.Context, lease *gc.Lease, layers []wantedLayer, f *feed) ([]*layerJob, error) {
	for _, w := range layers {
		lease.Hold(heldLayer(string(w.chain)))
		lease.Hold(heldBlob(w.blob.Digest))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errdefs.New(errdefs.Unavailable, "the store is being closed")
	}
	var all, fresh []*layerJob
	var below *layerJob
	for _, w := range layers {
		j := s.jobs[string(w.chain)]
		if j == nil {
			_, err := s.snaps.Stat(ctx, string(w.chain))
			if err == nil {
				f.report(Progress{ID: shortID(w.blob.Digest), Action: actionExists})
				below = nil
				continue
			}
			if !errdefs.Is(err, errdefs.NotFound) {
				return nil, err
			}
			s.seq++
			j = &layerJob{
				s: s, w: w, key: fmt.Sprintf("%s%s/%d", unpackPrefix, w.chain, s.seq), parent: below,
				done: make(chan struct{}), feeds: make(map[*feed]struct{}),
			}
			fresh = append(fresh, j)
		}
		all, below = append(all, j), j
	}
	if err := s.prepare(ctx, lease, fresh); err != nil {
		return nil, err
	}
	for _, j := range fresh {
		s.jobs[string(j.w.chain)] = j
	}
	for _, j := range all {
		j.refs++
		j.join(f)
	}
	for _, j := range fresh {
		var jctx context.Context
		jctx, j.cancel = context.WithCancelCause(s.ctx)
		s.wg.Go(func() { j.run(jctx) })
	}
	return all, nil
}

// prepare makes the snapshots of new jobs, in one transaction.
func (s *Store) prepare(ctx context.Context, lease *gc.Lease, fresh []*layerJob) error {
	if len(fresh) == 0 {
		return nil
	}
	for _, j := range fresh {
		// Before the transaction: Remove takes the leases first as well.
		lease.Hold(heldKey(j.key))
	}
	return db.Update(ctx, s.db, func(ctx context.Context, _ *bbolt.Tx) error {
		for _, j := range fresh {
			if _, err := s.snaps.Prepare(ctx, j.key, ""); err != nil {
				return err
			}
		}
		return nil
	})
}

// releaseLayers gives jobs back. What nobody else wants is canceled, and its
// snapshot removed unless it was committed.
func (s *Store) releaseLayers(jobs []*layerJob, f *feed) {
	var last []*layerJob
	s.mu.Lock()
	for _, j := range jobs {
		j.leave(f)
		if j.refs--; j.refs == 0 {
			last = append(last, j)
			s.forget(j)
		}
	}
	s.mu.Unlock()
	for _, j := range last {
		j.cancel(context.Canceled)
	}
	for _, j := range last {
		<-j.done
	}
	if len(last) == 0 {
		return
	}
	if err := s.removeKeys(context.Background(), last); err != nil {
		s.log.Warn("remove a half made layer", "error", err)
	}
}

// removeKeys removes the snapshots of jobs that were not committed.
func (s *Store) removeKeys(ctx context.Context, jobs []*layerJob) error {
	var left []string
	for _, j := range jobs {
		_, err := s.snaps.Stat(ctx, j.key)
		if err == nil {
			left = append(left, j.key)
		}
	}
	if len(left) == 0 {
		return nil
	}
	err := db.Update(ctx, s.db, func(ctx context.Context, _ *bbolt.Tx) error {
		for _, key := range left {
			if err := s.snaps.Remove(ctx, key); err != nil {
				return err
			}
		}
		return nil
	})
	s.freeSpace()
	return err
}

// forget takes a job out of the ones to share. The caller holds s.mu.
func (s *Store) forget(j *layerJob) {
	if s.jobs[string(j.w.chain)] == j {
		delete(s.jobs, string(j.w.chain))
	}
}

// run makes the layer.
func (j *layerJob) run(ctx context.Context) {
	j.err = j.make(ctx)
	if j.err != nil {
		if cause := context.Cause(ctx); cause != nil {
			j.err = cause
		}
		j.s.mu.Lock()
		j.s.forget(j) // the next one who wants it tries anew
		j.s.mu.Unlock()
	} else {
		j.report(Progress{ID: j.id(), Action: actionComplete})
	}
	j.cancel(nil)
	close(j.done)
}

// maxUnpackMemory bounds, in bytes, what all layers that are being unpacked
// keep in memory. One alone may take layer.DefaultLimits.
const maxUnpackMemory = 192 << 20

// reserve counts memory for the job's layer.
func (j *layerJob) reserve(n int64) error {
	j.reserved += n
	if j.s.memory.Add(n) > maxUnpackMemory {
		return errdefs.New(errdefs.Unavailable,
			"the directories of the layers that are being unpacked take more than %d MiB of memory", maxUnpackMemory>>20)
	}
	return nil
}

// unreserve gives back what the layer's Tree took, which must be dropped.
func (j *layerJob) unreserve() {
	j.s.memory.Add(-j.reserved)
	j.reserved = 0
}

func (j *layerJob) make(ctx context.Context) error {
	defer j.unreserve()
	dir, err := j.s.snaps.Dir(ctx, j.key)
	if err != nil {
		return err
	}
	u, err := j.stream(ctx, dir)
	if err != nil {
		return err
	}
	if u.DiffID != j.w.diffID {
		return errdefs.New(errdefs.Invalid, "layers from manifest don't match image configuration")
	}
	lower, err := j.lower(ctx)
	if err != nil {
		return err
	}
	defer lower.Close()
	err = layer.ErrNeedsParent
	if u.Tree != nil {
		err = u.Tree.Finish(ctx, lower)
	}
	if errors.Is(err, layer.ErrNeedsParent) {
		if u, err = j.again(ctx, dir, lower); err == nil {
			err = u.Tree.Finish(ctx, lower)
		}
	}
	if err != nil {
		return err
	}
	j.usage = u.Tree.Usage()
	return nil
}

// stream feeds the blob to the unpacker and, if the store does not have it, to
// the content store, at the same time.
func (j *layerJob) stream(ctx context.Context, dir string) (u layer.Unpacked, err error) {
	select {
	case j.s.streams <- struct{}{}:
	default:
		j.report(Progress{ID: j.id(), Action: actionWaiting})
		select {
		case j.s.streams <- struct{}{}:
		case <-ctx.Done():
			return u, context.Cause(ctx)
		}
	}
	defer func() { <-j.s.streams }()
	unlock, err := j.s.blobs.lock(ctx, string(j.w.blob.Digest))
	if err != nil {
		return u, err
	}
	defer unlock()
	o := layer.Options{Limits: j.s.limits, Reserve: j.reserve}
	if o.Lower, err = j.knownLower(ctx); err != nil {
		return u, err
	}
	if o.Lower != nil {
		defer o.Lower.Close()
	}
	for {
		name := "layer-" + string(j.w.blob.Digest)
		w, err := j.s.content.Writer(ctx, name, j.w.blob)
		if errors.Is(err, content.ErrExists) {
			return j.fromContent(ctx, dir, o)
		}
		if err != nil {
			return u, err
		}
		var resumed bool
		u, resumed, err = j.download(ctx, dir, w, o)
		if err = j.s.end(w, name, err); !resumed || !errors.Is(err, content.ErrMismatch) {
			return u, err
		}
		// Bytes put together from several responses do not fit: once more, from
		// the start. A mismatch of one response alone is final.
		j.s.log.Warn("a resumed download does not match its digest, starting over", "blob", j.w.blob.Digest)
		j.unreserve()
		if err := empty(dir); err != nil {
			return u, err
		}
	}
}

// knownLower returns the layers below if they are there already.
func (j *layerJob) knownLower(ctx context.Context) (*layer.Lower, error) {
	if j.parent != nil {
		return nil, nil
	}
	return j.lower(ctx)
}

// lower waits for the layers below and returns them.
func (j *layerJob) lower(ctx context.Context) (*layer.Lower, error) {
	var dirs []string
	p := j.parent
	for ; p != nil; p = p.parent {
		select {
		case <-p.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if p.err != nil {
			return nil, p.err
		}
		dir, err := j.s.jobDir(ctx, p)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
		if p.parent == nil && p.w.parent != "" {
			below, err := j.s.snaps.Dirs(ctx, string(p.w.parent))
			if err != nil {
				return nil, err
			}
			dirs = append(dirs, below...)
		}
	}
	if j.parent == nil && j.w.parent != "" {
		below, err := j.s.snaps.Dirs(ctx, string(j.w.parent))
		if err != nil {
			return nil, err
		}
		dirs = below
	}
	return layer.OpenLower(dirs)
}

// jobDir returns the directory of a finished job, which another one may have
// committed meanwhile.
func (s *Store) jobDir(ctx context.Context, j *layerJob) (string, error) {
	dir, err := s.snaps.Dir(ctx, j.key)
	if errdefs.Is(err, errdefs.NotFound) {
		dir, err = s.snaps.Dir(ctx, string(j.w.chain))
	}
	return dir, err
}

// download reads the blob from where the caller of the job gets it.
func (j *layerJob) download(ctx context.Context, dir string, w content.Writer, o layer.Options) (u layer.Unpacked, resumed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body := j.w.fetch(ctx, j.w.blob)
	defer func() { _ = body.Close() }()
	src := &countingReader{r: body, report: func(n int64) {
		j.reportBytes(Progress{ID: j.id(), Action: actionDownload, Current: n, Total: j.w.blob.Size})
	}}
	var unpackErr error
	err = layer.FanOut(ctx, src,
		func(r io.Reader) error { return j.keep(ctx, w, r) },
		func(r io.Reader) error {
			u, unpackErr = layer.Unpack(ctx, dir, r, o)
			if errno := syscall.Errno(0); errors.As(unpackErr, &errno) {
				cancel(unpackErr) // a full disk: there is no use in going on
				return unpackErr
			}
			// Bad bytes: the rest is read all the same, for whether they are the
			// registry's fault or the image's is told by the digest of all.
			return nil
		})
	if err == nil {
		err = unpackErr
	}
	if r, ok := body.(interface{ Resumed() bool }); ok {
		resumed = r.Resumed()
	}
	return u, resumed, err
}

// keep writes the blob to the content store and checks it.
func (j *layerJob) keep(ctx context.Context, w content.Writer, r io.Reader) error {
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	j.report(Progress{ID: j.id(), Action: actionVerify})
	err := w.Commit(ctx, j.w.blob.Size, j.w.blob.Digest, content.Deferred)
	if errors.Is(err, content.ErrMismatch) {
		return errdefs.Wrap(errdefs.Invalid, err, "filesystem layer verification failed for digest %s", j.w.blob.Digest)
	}
	if err != nil {
		return err
	}
	j.report(Progress{ID: j.id(), Action: actionDownloaded})
	j.report(Progress{ID: j.id(), Action: actionExtract, Current: j.w.blob.Size, Total: j.w.blob.Size})
	return nil
}

func (j *layerJob) fromContent(ctx context.Context, dir string, o layer.Options) (u layer.Unpacked, err error) {
	r, err := j.s.content.Open(ctx, j.w.blob.Digest)
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	j.report(Progress{ID: j.id(), Action: actionDownloaded})
	src := &countingReader{r: io.NewSectionReader(r, 0, r.Size()), report: func(n int64) {
		j.reportBytes(Progress{ID: j.id(), Action: actionExtract, Current: n, Total: r.Size()})
	}}
	return layer.Unpack(ctx, dir, src, o)
}

// again unpacks the layer anew, now that what it lies on is known.
func (j *layerJob) again(ctx context.Context, dir string, lower *layer.Lower) (layer.Unpacked, error) {
	j.unreserve()
	if err := empty(dir); err != nil {
		return layer.Unpacked{}, err
	}
	return j.fromContent(ctx, dir, layer.Options{Lower: lower, Limits: j.s.limits, Reserve: j.reserve})
}

// empty removes all that is in a directory.
func empty(dir string) error {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (j *layerJob) id() string { return shortID(j.w.blob.Digest) }

// shortID is how docker names a layer: twelve digits of its blob's digest.
func shortID(d digest.Digest) string {
	e := d.Encoded()
	return e[:min(12, len(e))]
}

func (j *layerJob) join(f *feed) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.feeds[f] = struct{}{}
	f.report(Progress{ID: j.id(), Action: actionStart})
	if j.last.Action != "" {
		f.report(j.last)
	}
}

func (j *layerJob) leave(f *feed) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.feeds, f)
}

func (j *layerJob) report(p Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last = p
	for f := range j.feeds {
		f.report(p)
	}
}

func (j *layerJob) reportBytes(p Progress) {
	j.mu.Lock()
	due := time.Since(j.sent) >= progressInterval
	if due {
		j.sent = time.Now()
	}
	j.mu.Unlock()
	if due {
		j.report(p)
	}
}

// countingReader tells how much was read.
type countingReader struct {
	r      io.Reader
	n      int64
	report func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if n > 0 {
		c.report(c.n)
	}
	return n, err
}

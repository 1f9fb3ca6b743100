//go:build linux

package content

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/internal/durable"
)

// Writer implements Store.
func (l *Local) Writer(ctx context.Context, ref string, expected ocispec.Descriptor) (_ Writer, err error) {
	if expected.Digest != "" {
		switch _, err := l.Info(ctx, expected.Digest); {
		case err == nil:
			return nil, Exists(expected.Digest)
		case Check(expected.Digest) != nil:
			return nil, err
		}
	}
	if err := l.lock(ref); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.unlock(ref)
		}
	}()
	dir := l.ingest(ref)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	w := &writer{l: l, ref: ref, dir: dir, f: f, hash: sha256.New(), limit: expected.Size, busy: true}
	if err := w.resume(expected); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return w, nil
}

type writer struct {
	l     *Local
	ref   string
	dir   string
	f     *os.File
	hash  hash.Hash
	off   int64
	limit int64 // announced size, 0 = unknown
	busy  bool  // holds the lock of ref
}

// resume reads what an earlier writer left, or writes the state of a new
// ingest.
func (w *writer) resume(expected ocispec.Descriptor) error {
	raw, err := os.ReadFile(filepath.Join(w.dir, "state"))
	var s ingestState
	if err == nil && json.Unmarshal(raw, &s) == nil && s.Expected.Digest == expected.Digest {
		w.off, err = io.Copy(w.hash, w.f)
		if err != nil {
			return err
		}
		if w.limit == 0 || w.off <= w.limit {
			return nil
		}
		// Longer than it may become: not a beginning of this blob.
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.Reset(); err != nil {
		return err
	}
	s = ingestState{Ref: w.ref, Started: time.Now().UTC(), Expected: ocispec.Descriptor{
		MediaType: expected.MediaType, Digest: expected.Digest, Size: expected.Size,
	}}
	raw, err = json.Marshal(s)
	if err != nil {
		return err
	}
	// Not synced: a crash drops all ingests.
	return os.WriteFile(filepath.Join(w.dir, "state"), raw, 0o600)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.limit > 0 && w.off+int64(len(p)) > w.limit {
		return 0, SizeMismatch(w.ref, w.off+int64(len(p)), w.limit)
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.off += int64(n)
	return n, err
}

func (w *writer) Digest() digest.Digest { return digest.NewDigest(digest.SHA256, w.hash) }

func (w *writer) Offset() int64 { return w.off }

func (w *writer) Reset() error {
	w.hash.Reset()
	w.off = 0
	if err := w.f.Truncate(0); err != nil {
		return err
	}
	_, err := w.f.Seek(0, io.SeekStart)
	return err
}

func (w *writer) Commit(ctx context.Context, size int64, want digest.Digest, opts ...CommitOpt) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer func() {
		if errors.Is(err, ErrMismatch) {
			err = errors.Join(err, w.Reset())
		}
	}()
	if size >= 0 && size != w.off {
		return SizeMismatch(w.ref, w.off, size)
	}
	got := w.Digest()
	if want == "" {
		want = got
	}
	if got != want {
		return DigestMismatch(w.ref, got, want)
	}
	target := w.l.blob(want)
	if _, err := os.Lstat(target); err == nil {
		return w.finish()
	}
	data := filepath.Join(w.dir, "data")
	if IsDeferred(opts) {
		err = os.Rename(data, target)
	} else {
		if err = w.f.Sync(); err == nil {
			err = durable.Rename(data, target)
		}
	}
	if err != nil {
		return fmt.Errorf("commit %s: %w", w.ref, err)
	}
	return w.finish()
}

// finish ends a committed ingest.
func (w *writer) finish() error {
	err := w.f.Close()
	err = errors.Join(err, os.RemoveAll(w.dir))
	w.release()
	return err
}

func (w *writer) Close() error {
	if !w.busy {
		return nil
	}
	err := w.f.Close()
	w.release()
	return err
}

func (w *writer) release() {
	w.busy = false
	w.l.unlock(w.ref)
}

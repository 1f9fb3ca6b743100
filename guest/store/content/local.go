//go:build linux

package content

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"dhow/internal/errdefs"
)

// Local is the Store in a directory of a file system.
type Local struct {
	root string
	mu   sync.Mutex
	open map[string]struct{} // refs that have a writer
}

var _ Store = (*Local)(nil)

// OpenLocal opens the store at root, and makes it if it is missing.
func OpenLocal(root string) (*Local, error) {
	for _, dir := range []string{"blobs/sha256", "ingest"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open content store: %w", err)
		}
	}
	return &Local{root: root, open: make(map[string]struct{})}, nil
}

func (l *Local) blobs() string { return filepath.Join(l.root, "blobs", "sha256") }

// blob returns the path of a blob. d has passed Check: 64 hex digits.
func (l *Local) blob(d digest.Digest) string { return filepath.Join(l.blobs(), d.Encoded()) }

// ingest returns the directory of a ref, which may hold any bytes.
func (l *Local) ingest(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return filepath.Join(l.root, "ingest", hex.EncodeToString(sum[:16]))
}

// Info implements Store.
func (l *Local) Info(_ context.Context, d digest.Digest) (Info, error) {
	if err := Check(d); err != nil {
		return Info{}, err
	}
	fi, err := os.Lstat(l.blob(d))
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, NotFound(d)
	}
	if err != nil {
		return Info{}, err
	}
	return info(d, fi), nil
}

func info(d digest.Digest, fi fs.FileInfo) Info {
	return Info{Digest: d, Size: fi.Size(), CreatedAt: fi.ModTime()}
}

// Open implements Store.
func (l *Local) Open(_ context.Context, d digest.Digest) (ReaderAt, error) {
	if err := Check(d); err != nil {
		return nil, err
	}
	f, err := os.Open(l.blob(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, NotFound(d)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &reader{f, fi.Size()}, nil
}

type reader struct {
	*os.File
	size int64
}

func (r *reader) Size() int64 { return r.size }

// Delete implements Store.
func (l *Local) Delete(_ context.Context, d digest.Digest) error {
	if err := Check(d); err != nil {
		return err
	}
	err := os.Remove(l.blob(d))
	if errors.Is(err, fs.ErrNotExist) {
		return NotFound(d)
	}
	return err
}

// Walk implements Store.
func (l *Local) Walk(ctx context.Context, fn func(Info) error) error {
	ents, err := os.ReadDir(l.blobs())
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := ctx.Err(); err != nil {
			return err
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if d.Validate() != nil {
			continue // not ours
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := fn(info(d, fi)); err != nil {
			return err
		}
	}
	return nil
}

// Sync implements Store: one syncfs, whatever the number of blobs.
func (l *Local) Sync(context.Context) error {
	f, err := os.Open(l.root)
	if err != nil {
		return err
	}
	if err = unix.Syncfs(int(f.Fd())); err != nil {
		err = &os.PathError{Op: "syncfs", Path: l.root, Err: err}
	}
	return errors.Join(err, f.Close())
}

// ingestState is the content of an ingest's state file.
type ingestState struct {
	Ref      string             `json:"ref"`
	Expected ocispec.Descriptor `json:"expected"`
	Started  time.Time          `json:"started"`
}

// Ingests implements Store.
func (l *Local) Ingests(ctx context.Context, fn func(Ingest) error) error {
	ents, err := os.ReadDir(filepath.Join(l.root, "ingest"))
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := ctx.Err(); err != nil {
			return err
		}
		in, err := readIngest(filepath.Join(l.root, "ingest", e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := fn(in); err != nil {
			return err
		}
	}
	return nil
}

func readIngest(dir string) (Ingest, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "state"))
	if err != nil {
		return Ingest{}, err
	}
	var s ingestState
	if err := json.Unmarshal(raw, &s); err != nil {
		return Ingest{}, fmt.Errorf("ingest %s: %w", dir, err)
	}
	fi, err := os.Lstat(filepath.Join(dir, "data"))
	if err != nil {
		return Ingest{}, err
	}
	return Ingest{Ref: s.Ref, Offset: fi.Size(), Expected: s.Expected, StartedAt: s.Started, UpdatedAt: fi.ModTime()}, nil
}

// Abort implements Store.
func (l *Local) Abort(_ context.Context, ref string) error {
	if err := l.lock(ref); err != nil {
		return err
	}
	defer l.unlock(ref)
	return os.RemoveAll(l.ingest(ref))
}

// DropIngests removes what an earlier life of the machine left half written.
// It is for boot, before there is any writer.
func (l *Local) DropIngests() error {
	dir := filepath.Join(l.root, "ingest")
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

func (l *Local) lock(ref string) error {
	if ref == "" {
		return errdefs.New(errdefs.Invalid, "an ingest needs a name")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, taken := l.open[ref]; taken {
		return Busy(ref)
	}
	l.open[ref] = struct{}{}
	return nil
}

func (l *Local) unlock(ref string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, ref)
}

//go:build linux

package content

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store is a set of blobs, each known by its digest.
//
// All methods may be called from many goroutines. A blob is visible whole or
// not at all: between Writer.Commit's success and Delete's it can be opened,
// and every byte that is read belongs to it. An open ReaderAt stays readable
// after Delete.
//
// Errors: a digest that is malformed or not sha256 is Invalid; a blob that is
// not there is NotFound.
type Store interface {
	// Info returns size and time of the blob.
	Info(ctx context.Context, d digest.Digest) (Info, error)

	// Open opens the blob for reading.
	Open(ctx context.Context, d digest.Digest) (ReaderAt, error)

	// Writer starts, or resumes, the ingest of a blob under ref, a name that
	// the caller chooses. A writer that was closed without Commit leaves its
	// bytes, and the next Writer of the same ref continues behind them. There
	// is one writer for a ref at a time: a second is refused as Conflict.
	//
	// expected may be empty. A digest in it that the store has already makes
	// Writer fail with ErrExists; a size in it bounds what may be written.
	Writer(ctx context.Context, ref string, expected ocispec.Descriptor) (Writer, error)

	// Abort drops the ingest of ref, if there is one. It is Conflict while a
	// writer is open.
	Abort(ctx context.Context, ref string) error

	// Ingests calls fn for every ingest that was left or is open.
	Ingests(ctx context.Context, fn func(Ingest) error) error

	// Delete removes the blob. Deleting one that is not there is NotFound.
	Delete(ctx context.Context, d digest.Digest) error

	// Walk calls fn for every blob, in the order of the digests, until fn
	// fails. A blob deleted while Walk runs may or may not be seen.
	Walk(ctx context.Context, fn func(Info) error) error

	// Sync makes all blobs committed with Deferred durable.
	Sync(ctx context.Context) error
}

// Info describes a blob. Size is in bytes.
type Info struct {
	Digest    digest.Digest
	Size      int64
	CreatedAt time.Time
}

// Ingest describes a blob that is not complete. Offset is the number of bytes
// it has.
type Ingest struct {
	Ref       string
	Offset    int64
	Expected  ocispec.Descriptor
	StartedAt time.Time
	UpdatedAt time.Time
}

// ReaderAt reads a blob. Size is in bytes.
type ReaderAt interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Writer writes one blob. It is for one goroutine.
type Writer interface {
	// Write appends. It fails as Invalid, and writes nothing, if the blob
	// would become larger than the size it was announced with.
	io.Writer

	// Close ends the writer. Without Commit before it, the bytes stay for the
	// next Writer of the same ref. Close may be called twice.
	io.Closer

	// Digest returns the digest of all bytes so far.
	Digest() digest.Digest

	// Offset returns the number of bytes so far.
	Offset() int64

	// Reset drops all bytes, to start over.
	Reset() error

	// Commit checks that the bytes have the given size (if it is not negative)
	// and digest (if it is not empty) and makes the blob visible. On a
	// mismatch the error is an *errdefs.Error of class Invalid that wraps
	// ErrMismatch, nothing is visible and the bytes are dropped. To commit a
	// blob that is there already is no error. After a successful Commit only
	// Close may be called.
	Commit(ctx context.Context, size int64, d digest.Digest, opts ...CommitOpt) error
}

// CommitOpt changes what Commit does.
type CommitOpt func(*commitConfig)

type commitConfig struct{ deferred bool }

// Deferred makes Commit return before the blob is durable. The caller calls
// Store.Sync before it lets any durable metadata name the blob.
func Deferred(c *commitConfig) { c.deferred = true }

// IsDeferred reports whether Deferred is among opts; for implementations.
func IsDeferred(opts []CommitOpt) bool {
	var c commitConfig
	for _, o := range opts {
		o(&c)
	}
	return c.deferred
}

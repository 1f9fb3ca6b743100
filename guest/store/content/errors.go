//go:build linux

package content

import (
	"errors"

	"github.com/opencontainers/go-digest"

	"dhow/internal/errdefs"
)

// ErrExists is the cause of the Conflict that Writer returns for a blob that
// the store has.
var ErrExists = errors.New("content: blob exists")

// ErrMismatch is the cause of the error that Commit returns for bytes that are
// not what was promised.
var ErrMismatch = errors.New("content: bytes do not match")

// Check returns Invalid unless d is a well-formed sha256 digest. It guards
// every use of a digest as a file name.
func Check(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return errdefs.Wrap(errdefs.Invalid, err, "invalid digest %q", string(d))
	}
	if d.Algorithm() != digest.SHA256 {
		return errdefs.New(errdefs.Invalid, "digest %s: only sha256 is supported", d)
	}
	return nil
}

// NotFound returns the error for a blob that is not there.
func NotFound(d digest.Digest) error {
	return errdefs.New(errdefs.NotFound, "content %s: not found", d)
}

// Exists returns the error for a blob that is there already.
func Exists(d digest.Digest) error {
	return errdefs.Wrap(errdefs.Conflict, ErrExists, "content %s: already exists", d)
}

// Busy returns the error for a second writer of one ingest.
func Busy(ref string) error {
	return errdefs.New(errdefs.Conflict, "ingest %s is being written", ref)
}

// SizeMismatch returns the error for a blob of another size than promised.
func SizeMismatch(ref string, got, want int64) error {
	return errdefs.Wrap(errdefs.Invalid, ErrMismatch, "unexpected size of %s: %d bytes, want %d", ref, got, want)
}

// DigestMismatch returns the error for a blob of another digest than promised.
func DigestMismatch(ref string, got, want digest.Digest) error {
	return errdefs.Wrap(errdefs.Invalid, ErrMismatch, "unexpected digest of %s: %s, want %s", ref, got, want)
}

//go:build linux

package db

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"dhow/internal/errdefs"
)

// lockTimeout bounds the wait for the file lock: only a second agent on the
// same data disk can hold it, and that one is a mistake to be reported.
const lockTimeout = 5 * time.Second

// Open opens the database file at path, and makes it if it is missing. It
// fails with Unavailable if another process holds the file.
func Open(path string) (*bbolt.DB, error) {
	d, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:      lockTimeout,
		FreelistType: bbolt.FreelistMapType,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errdefs.Wrap(errdefs.Unavailable, err, "the metadata database %s is in use by another process", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open metadata database %s: %w", path, err)
	}
	return d, nil
}

var schemaBucket = []byte("schema")

// Migrate brings the buckets of one part (a package) to its newest schema, in
// one transaction: steps[i] leads from version i to version i+1, steps[0]
// makes the buckets of an empty database. A database whose version of the part
// is higher than len(steps) was written by a newer dhow and is refused as
// Conflict, unchanged.
func Migrate(d *bbolt.DB, part string, steps ...func(*bbolt.Tx) error) error {
	have, err := version(d, part)
	if err != nil || have == uint64(len(steps)) {
		return err
	}
	if have > uint64(len(steps)) {
		return errdefs.New(errdefs.Conflict,
			"the data disk was written by a newer dhow (%s schema %d, this one knows %d): update dhow", part, have, len(steps))
	}
	return d.Update(func(tx *bbolt.Tx) error {
		for i := have; i < uint64(len(steps)); i++ {
			if err := steps[i](tx); err != nil {
				return fmt.Errorf("migrate %s from schema %d: %w", part, i, err)
			}
		}
		b, err := tx.CreateBucketIfNotExists(schemaBucket)
		if err != nil {
			return err
		}
		return b.Put([]byte(part), binary.BigEndian.AppendUint64(nil, uint64(len(steps))))
	})
}

func version(d *bbolt.DB, part string) (v uint64, err error) {
	err = d.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(schemaBucket)
		if b == nil {
			return nil
		}
		switch raw := b.Get([]byte(part)); len(raw) {
		case 0:
		case 8:
			v = binary.BigEndian.Uint64(raw)
		default:
			return fmt.Errorf("schema version of %s: %d bytes, want 8", part, len(raw))
		}
		return nil
	})
	return v, err
}

// Bucket returns the bucket at path, or an error that names it. Migrate makes
// buckets; a missing one is a fault, not an empty one.
func Bucket(tx *bbolt.Tx, path ...string) (*bbolt.Bucket, error) {
	if len(path) == 0 {
		return nil, errors.New("bucket: empty path")
	}
	b := tx.Bucket([]byte(path[0]))
	for _, name := range path[1:] {
		if b == nil {
			break
		}
		b = b.Bucket([]byte(name))
	}
	if b == nil {
		return nil, fmt.Errorf("bucket %q is missing from the metadata database", path)
	}
	return b, nil
}

// Create makes the buckets of path that are missing, and returns the last.
func Create(tx *bbolt.Tx, path ...string) (*bbolt.Bucket, error) {
	if len(path) == 0 {
		return nil, errors.New("bucket: empty path")
	}
	b, err := tx.CreateBucketIfNotExists([]byte(path[0]))
	for _, name := range path[1:] {
		if err != nil {
			break
		}
		b, err = b.CreateBucketIfNotExists([]byte(name))
	}
	if err != nil {
		return nil, fmt.Errorf("make bucket %q: %w", path, err)
	}
	return b, nil
}

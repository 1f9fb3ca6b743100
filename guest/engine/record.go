//go:build linux

package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
)

// Record is what the engine keeps of a container.
type Record struct {
	ID      string
	Name    string // without a slash
	Created time.Time
	ImageID digest.Digest // "" for an image that was given none
	// Manifest is that of the image at creation, nil for none.
	Manifest   *ocispec.Descriptor `json:",omitempty"`
	Config     *container.Config
	HostConfig *container.HostConfig
	Networks   map[string]*network.EndpointSettings
	State      State
	// RestartCount is how often the restart policy brought it back.
	RestartCount int `json:",omitempty"`
	// Stopped by a person: a policy does not bring it back when the agent starts.
	ManuallyStopped bool `json:",omitempty"`
}

// The engine's buckets. bucketEngine holds its identity under keyID.
const (
	bucketContainers = "containers"
	bucketEngine     = "engine"
	keyID            = "id"
)

// migrations lead from an empty database to the newest schema of the part
// "engine".
var migrations = []func(*bbolt.Tx) error{
	func(tx *bbolt.Tx) error {
		if _, err := db.Create(tx, bucketContainers); err != nil {
			return err
		}
		b, err := db.Create(tx, bucketEngine)
		if err != nil {
			return err
		}
		return b.Put([]byte(keyID), []byte(newUUID()))
	},
}

// machineID is the identity that `info` shows: it lives and dies with the data.
func (e *Engine) machineID(ctx context.Context) (id string, err error) {
	err = db.View(ctx, e.o.DB, func(tx *bbolt.Tx) error {
		b, err := db.Bucket(tx, bucketEngine)
		if err == nil {
			id = string(b.Get([]byte(keyID)))
		}
		return err
	})
	return id, err
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// putRecord writes r in the transaction that ctx carries, or in its own.
func putRecord(ctx context.Context, d *bbolt.DB, r *Record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return db.Update(ctx, d, func(_ context.Context, tx *bbolt.Tx) error {
		b, err := db.Bucket(tx, bucketContainers)
		if err != nil {
			return err
		}
		return b.Put([]byte(r.ID), raw)
	})
}

// deleteRecord removes the record of id, if there is one.
func deleteRecord(ctx context.Context, d *bbolt.DB, id string) error {
	return db.Update(ctx, d, func(_ context.Context, tx *bbolt.Tx) error {
		b, err := db.Bucket(tx, bucketContainers)
		if err != nil {
			return err
		}
		return b.Delete([]byte(id))
	})
}

// broken is a record that cannot be used, with what could be read of it.
type broken struct {
	*Record
	err error
}

// readRecords returns all records, those that cannot be used apart: they stand
// for somebody's data.
func readRecords(ctx context.Context, d *bbolt.DB) (list []*Record, bad []broken, err error) {
	err = db.View(ctx, d, func(tx *bbolt.Tx) error {
		b, err := db.Bucket(tx, bucketContainers)
		if err != nil {
			return err
		}
		return b.ForEach(func(k, v []byte) error {
			r := new(Record)
			err := json.Unmarshal(v, r)
			switch _, known := transitions[r.State.Status]; {
			case err != nil:
			case r.Config == nil || r.HostConfig == nil || r.ID != string(k):
				err = errors.New("it is not complete")
			case !known:
				err = fmt.Errorf("its status %q is not known", r.State.Status)
			default:
				list = append(list, r)
				return nil
			}
			r.ID = string(k)
			bad = append(bad, broken{r, fmt.Errorf("the container's record cannot be read: %w", err)})
			return nil
		})
	})
	return list, bad, err
}

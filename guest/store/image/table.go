//go:build linux

package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/internal/errdefs"
)

const part = "image"

var buckets = []string{"records", "configs", "names", "namesof", "chains", "blobs", "children"}

// Migrate makes the buckets.
func Migrate(d *bbolt.DB) error {
	return db.Migrate(d, part, func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := db.Create(tx, part, name); err != nil {
				return err
			}
		}
		return nil
	})
}

// Table is the image metadata as one transaction sees it. Its errors are
// NotFound for what is not there.
type Table struct {
	records, configs, names, namesOf, chains, blobs, children *bbolt.Bucket

	cache *Cache
}

// Cache keeps decoded images between transactions: a container's start asks
// for its image more than once, and decoding JSON is most of the answer. Its
// zero value is ready.
type Cache struct {
	mu     sync.Mutex
	images map[digest.Digest]cached
}

// cached is an image as decoded from a record; a record that was written since
// has other bytes.
type cached struct {
	record []byte
	image  Image // without Names and Target
	target ocispec.Descriptor
}

const maxCached = 128

func (c *Cache) get(id digest.Digest, record []byte) (cached, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.images[id]
	return e, ok && bytes.Equal(e.record, record)
}

func (c *Cache) put(id digest.Digest, e cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.images == nil || len(c.images) >= maxCached {
		c.images = make(map[digest.Digest]cached)
	}
	c.images[id] = e
}

// In returns the table of a transaction.
func (c *Cache) In(tx *bbolt.Tx) (Table, error) {
	t := Table{cache: c}
	for i, p := range []**bbolt.Bucket{&t.records, &t.configs, &t.names, &t.namesOf, &t.chains, &t.blobs, &t.children} {
		b, err := db.Bucket(tx, part, buckets[i])
		if err != nil {
			return t, err
		}
		*p = b
	}
	return t, nil
}

// nameRecord is the value of a name.
type nameRecord struct {
	ID     digest.Digest      `json:"id"`
	Target ocispec.Descriptor `json:"target"`
}

func pair(a, b string) []byte { return []byte(a + "\x00" + b) }

// second returns the second halves of all keys of b whose first half is a.
func second(b *bbolt.Bucket, a string) []string {
	var out []string
	prefix := pair(a, "")
	c := b.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		out = append(out, string(k[len(prefix):]))
	}
	return out
}

// anySecond reports whether b has a key whose first half is a.
func anySecond(b *bbolt.Bucket, a string) bool {
	prefix := pair(a, "")
	k, _ := b.Cursor().Seek(prefix)
	return bytes.HasPrefix(k, prefix)
}

// NotFound returns the error for an image that is not there, in docker's words.
func NotFound(ref string) error {
	return errdefs.New(errdefs.NotFound, "No such image: %s", ref)
}

// Record returns the record of an image.
func (t Table) Record(id digest.Digest) (r Record, err error) {
	raw := t.records.Get([]byte(id))
	if raw == nil {
		return r, NotFound(string(id))
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("record of image %s: %w", id, err)
	}
	return r, nil
}

// Has reports whether the image is there.
func (t Table) Has(id digest.Digest) bool { return t.records.Get([]byte(id)) != nil }

// Config returns a copy of an image's config.
func (t Table) Config(id digest.Digest) []byte { return bytes.Clone(t.configs.Get([]byte(id))) }

// Put makes an image visible, or adds what r has in targets and blobs to the
// image that is there.
func (t Table) Put(r Record, config []byte) error {
	if digest.FromBytes(config) != r.ID {
		return fmt.Errorf("config of image %s does not have its digest", r.ID)
	}
	if t.Has(r.ID) {
		old, err := t.Record(r.ID)
		if err != nil {
			return err
		}
		old.Targets = WithoutDuplicates(append(old.Targets, r.Targets...))
		old.Blobs = WithoutDuplicates(append(old.Blobs, r.Blobs...))
		r = old
	}
	if r.ChainID != "" {
		if err := t.chains.Put(pair(string(r.ChainID), string(r.ID)), nil); err != nil {
			return err
		}
	}
	if r.Parent != "" {
		if err := t.children.Put(pair(string(r.Parent), string(r.ID)), nil); err != nil {
			return err
		}
	}
	for _, b := range r.Blobs {
		if err := t.blobs.Put(pair(string(b.Digest), string(r.ID)), nil); err != nil {
			return err
		}
	}
	if err := t.configs.Put([]byte(r.ID), config); err != nil {
		return err
	}
	return t.put(r)
}

func (t Table) put(r Record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return t.records.Put([]byte(r.ID), raw)
}

// Lookup returns what a full reference points to.
func (t Table) Lookup(name string) (id digest.Digest, target ocispec.Descriptor, err error) {
	raw := t.names.Get([]byte(name))
	if raw == nil {
		return "", target, NotFound(name)
	}
	var n nameRecord
	if err := json.Unmarshal(raw, &n); err != nil {
		return "", target, fmt.Errorf("record of name %s: %w", name, err)
	}
	return n.ID, n.Target, nil
}

// SetName points a full reference to an image that is there, and reports
// whether it did not point there before. An image that loses its name by that
// stays, without one.
func (t Table) SetName(name string, id digest.Digest, target ocispec.Descriptor, now time.Time) (changed bool, err error) {
	old, _, err := t.Lookup(name)
	switch {
	case err == nil && old != id:
		if err := t.namesOf.Delete(pair(string(old), name)); err != nil {
			return false, err
		}
	case err != nil && !errdefs.Is(err, errdefs.NotFound):
		return false, err
	}
	r, err := t.Record(id)
	if err != nil {
		return false, err
	}
	raw, err := json.Marshal(nameRecord{ID: id, Target: target})
	if err != nil {
		return false, err
	}
	if err := t.names.Put([]byte(name), raw); err != nil {
		return false, err
	}
	r.Tagged = now.UTC()
	return old != id, errors.Join(t.namesOf.Put(pair(string(id), name), nil), t.put(r))
}

// RemoveName removes a name.
func (t Table) RemoveName(name string) error {
	id, _, err := t.Lookup(name)
	if err != nil {
		return err
	}
	return errors.Join(t.names.Delete([]byte(name)), t.namesOf.Delete(pair(string(id), name)))
}

// Names returns the names of an image, sorted.
func (t Table) Names(id digest.Digest) []string { return second(t.namesOf, string(id)) }

// Children returns the images that were committed from an image.
func (t Table) Children(id digest.Digest) []string { return second(t.children, string(id)) }

// OnChain reports whether an image has the layer as its topmost.
func (t Table) OnChain(chain digest.Digest) bool { return anySecond(t.chains, string(chain)) }

// OnChain is Table.OnChain for those who need nothing else of the table: to
// open it takes longer.
func OnChain(tx *bbolt.Tx, chain digest.Digest) (bool, error) {
	b, err := db.Bucket(tx, part, "chains")
	return err == nil && anySecond(b, string(chain)), err
}

// NeedsBlob reports whether an image needs the blob.
func (t Table) NeedsBlob(d digest.Digest) bool { return anySecond(t.blobs, string(d)) }

// IDs returns the IDs of all images that begin with prefix, sorted.
func (t Table) IDs(prefix string) []digest.Digest {
	var out []digest.Digest
	c := t.records.Cursor()
	for k, _ := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, _ = c.Next() {
		out = append(out, digest.Digest(k))
	}
	return out
}

// Delete removes an image and its names, and returns the blobs that no other
// image needs.
func (t Table) Delete(id digest.Digest) (orphans []digest.Digest, err error) {
	r, err := t.Record(id)
	if err != nil {
		return nil, err
	}
	for _, name := range t.Names(id) {
		if err := t.RemoveName(name); err != nil {
			return nil, err
		}
	}
	errs := []error{t.records.Delete([]byte(id)), t.configs.Delete([]byte(id))}
	if r.ChainID != "" {
		errs = append(errs, t.chains.Delete(pair(string(r.ChainID), string(id))))
	}
	if r.Parent != "" {
		errs = append(errs, t.children.Delete(pair(string(r.Parent), string(id))))
	}
	for _, b := range r.Blobs {
		errs = append(errs, t.blobs.Delete(pair(string(b.Digest), string(id))))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, b := range r.Blobs {
		if !t.NeedsBlob(b.Digest) {
			orphans = append(orphans, b.Digest)
		}
	}
	return slices.Compact(orphans), nil
}

// Describe returns the image as its users see it. target overrides the first
// thing that it was pulled as, if it has a digest.
func (t Table) Describe(id digest.Digest, target ocispec.Descriptor) (Image, error) {
	raw := t.records.Get([]byte(id))
	e, ok := t.cache.get(id, raw)
	if !ok {
		var err error
		if e, err = t.decode(id); err != nil {
			return Image{}, err
		}
		e.record = bytes.Clone(raw)
		t.cache.put(id, e)
	}
	img := e.image
	img.Names, img.Target = t.Names(id), target
	if target.Digest == "" {
		img.Target = e.target
	}
	return img, nil
}

func (t Table) decode(id digest.Digest) (e cached, err error) {
	r, err := t.Record(id)
	if err != nil {
		return e, err
	}
	config := t.Config(id)
	decoded, err := ParseConfig(config)
	if err != nil {
		return e, fmt.Errorf("image %s: %w", id, err)
	}
	e.image = Image{
		ID: id, Manifest: r.Manifest, Config: config, Image: decoded,
		ChainID: r.ChainID, Size: r.Size, Created: r.Created, Parent: r.Parent, LastTagged: r.Tagged,
	}
	for _, b := range r.Blobs {
		e.image.ContentSize += b.Size
	}
	if len(r.Targets) > 0 {
		e.target = r.Targets[0]
	}
	return e, nil
}

//go:build linux

package snapshot

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"dhow/guest/db"
)

// record is what the database keeps of a snapshot. The encoding is binary: a
// container's start reads one record per layer, and JSON would be most of that
// time on an emulated CPU.
type record struct {
	id      uint64 // directory
	kind    Kind
	parent  string
	created int64 // ns since 1970
	updated int64
	usage   Usage
	labels  map[string]string
}

const recordVersion = 1

func (r record) encode() []byte {
	b := make([]byte, 0, 64+len(r.parent))
	b = append(b, recordVersion, byte(r.kind))
	b = binary.AppendUvarint(b, r.id)
	b = appendString(b, r.parent)
	for _, v := range []int64{r.created, r.updated, r.usage.Inodes, r.usage.Size, r.usage.Bytes} {
		b = binary.AppendVarint(b, v)
	}
	b = binary.AppendUvarint(b, uint64(len(r.labels)))
	for _, k := range slices.Sorted(maps.Keys(r.labels)) {
		b = appendString(b, k)
		b = appendString(b, r.labels[k])
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decode reads a record; strings are copied out of raw.
func decode(raw []byte) (r record, err error) {
	d := decoder{raw}
	if v := d.byte(); v != recordVersion {
		return r, fmt.Errorf("snapshot record of version %d, want %d", v, recordVersion)
	}
	r.kind = Kind(d.byte())
	r.id = d.uvarint()
	r.parent = d.string()
	for _, p := range []*int64{&r.created, &r.updated, &r.usage.Inodes, &r.usage.Size, &r.usage.Bytes} {
		*p = d.varint()
	}
	for n := d.uvarint(); n > 0 && d.rest != nil; n-- {
		if r.labels == nil {
			r.labels = make(map[string]string)
		}
		k := d.string()
		r.labels[k] = d.string()
	}
	if d.rest == nil {
		return r, fmt.Errorf("snapshot record is cut short")
	}
	return r, nil
}

// decoder reads a record; rest becomes nil at the first thing that is missing.
type decoder struct{ rest []byte }

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.rest = nil
		return 0
	}
	v := d.rest[0]
	d.rest = d.rest[1:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	return v * uint64(d.take(n))
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.rest)
	return v * int64(d.take(n))
}

// take skips n bytes and returns 1, or 0 if n is no length.
func (d *decoder) take(n int) int {
	if n <= 0 {
		d.rest = nil
		return 0
	}
	d.rest = d.rest[n:]
	return 1
}

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.rest = nil
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}

func (r record) info(key string) Info {
	return Info{
		Name: key, Kind: r.kind, Parent: r.parent, Labels: r.labels,
		Created: time.Unix(0, r.created).UTC(), Updated: time.Unix(0, r.updated).UTC(),
	}
}

// The buckets: snapshots/key → record, and an index snapshots/parent\0key of
// who has which parent.
const (
	bucketPart     = "snapshots"
	bucketRecords  = "records"
	bucketChildren = "children"
)

func makeBuckets(tx *bbolt.Tx) error {
	for _, name := range []string{bucketRecords, bucketChildren} {
		if _, err := db.Create(tx, bucketPart, name); err != nil {
			return err
		}
	}
	return nil
}

// table gives typed access to the buckets inside one transaction.
type table struct{ records, children *bbolt.Bucket }

func openTable(tx *bbolt.Tx) (table, error) {
	r, err := db.Bucket(tx, bucketPart, bucketRecords)
	if err != nil {
		return table{}, err
	}
	c, err := db.Bucket(tx, bucketPart, bucketChildren)
	return table{r, c}, err
}

func (t table) get(key string) (record, error) {
	raw := t.records.Get([]byte(key))
	if raw == nil {
		return record{}, NotFound(key)
	}
	r, err := decode(raw)
	if err != nil {
		return r, fmt.Errorf("snapshot %s: %w", key, err)
	}
	return r, nil
}

func (t table) has(key string) bool { return t.records.Get([]byte(key)) != nil }

func childKey(parent, key string) []byte { return []byte(parent + "\x00" + key) }

func (t table) put(key string, r record) error {
	if r.parent != "" {
		if err := t.children.Put(childKey(r.parent, key), nil); err != nil {
			return err
		}
	}
	return t.records.Put([]byte(key), r.encode())
}

func (t table) remove(key string, r record) error {
	if r.parent != "" {
		if err := t.children.Delete(childKey(r.parent, key)); err != nil {
			return err
		}
	}
	return t.records.Delete([]byte(key))
}

func (t table) hasChildren(key string) bool {
	prefix := childKey(key, "")
	k, _ := t.children.Cursor().Seek(prefix)
	return len(k) >= len(prefix) && string(k[:len(prefix)]) == string(prefix)
}

// chain returns the ids of the ancestors of a snapshot whose parent is given,
// nearest first.
func (t table) chain(parent string) ([]uint64, error) {
	var ids []uint64
	for parent != "" {
		r, err := t.get(parent)
		if err != nil {
			return nil, err
		}
		ids = append(ids, r.id)
		parent = r.parent
	}
	return ids, nil
}

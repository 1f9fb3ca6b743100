//go:build linux

package storetest

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store/content"
	"dhow/internal/errdefs"
)

// Memory is a content.Store in memory.
type Memory struct {
	mu      sync.Mutex
	blobs   map[digest.Digest]memoryBlob
	ingests map[string]*memoryIngest
}

type memoryBlob struct {
	raw []byte
	at  time.Time
}

type memoryIngest struct {
	content.Ingest
	raw  []byte
	open bool
}

var _ content.Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{blobs: make(map[digest.Digest]memoryBlob), ingests: make(map[string]*memoryIngest)}
}

func (m *Memory) get(d digest.Digest) (memoryBlob, error) {
	if err := content.Check(d); err != nil {
		return memoryBlob{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[d]
	if !ok {
		return b, content.NotFound(d)
	}
	return b, nil
}

// Info implements content.Store.
func (m *Memory) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	b, err := m.get(d)
	if err != nil {
		return content.Info{}, err
	}
	return content.Info{Digest: d, Size: int64(len(b.raw)), CreatedAt: b.at}, nil
}

type memoryReader struct{ *bytes.Reader }

func (memoryReader) Close() error { return nil }

// Open implements content.Store.
func (m *Memory) Open(_ context.Context, d digest.Digest) (content.ReaderAt, error) {
	b, err := m.get(d)
	if err != nil {
		return nil, err
	}
	return memoryReader{bytes.NewReader(b.raw)}, nil
}

// Delete implements content.Store.
func (m *Memory) Delete(_ context.Context, d digest.Digest) error {
	if _, err := m.get(d); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, d)
	return nil
}

// Walk implements content.Store.
func (m *Memory) Walk(ctx context.Context, fn func(content.Info) error) error {
	m.mu.Lock()
	ds := slices.Sorted(maps.Keys(m.blobs))
	m.mu.Unlock()
	for _, d := range ds {
		i, err := m.Info(ctx, d)
		if errdefs.Is(err, errdefs.NotFound) {
			continue
		}
		if err == nil {
			err = fn(i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Sync implements content.Store.
func (m *Memory) Sync(context.Context) error { return nil }

// Ingests implements content.Store.
func (m *Memory) Ingests(_ context.Context, fn func(content.Ingest) error) error {
	m.mu.Lock()
	var all []content.Ingest
	for _, i := range m.ingests {
		i.Offset = int64(len(i.raw))
		all = append(all, i.Ingest)
	}
	m.mu.Unlock()
	for _, i := range all {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

// Abort implements content.Store.
func (m *Memory) Abort(_ context.Context, ref string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.ingests[ref]; i != nil && i.open {
		return content.Busy(ref)
	}
	delete(m.ingests, ref)
	return nil
}

// Writer implements content.Store.
func (m *Memory) Writer(ctx context.Context, ref string, expected ocispec.Descriptor) (content.Writer, error) {
	if ref == "" {
		return nil, errdefs.New(errdefs.Invalid, "an ingest needs a name")
	}
	if expected.Digest != "" {
		if _, err := m.get(expected.Digest); err == nil {
			return nil, content.Exists(expected.Digest)
		} else if errdefs.Is(err, errdefs.Invalid) {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.ingests[ref]
	if i != nil && i.open {
		return nil, content.Busy(ref)
	}
	if i == nil || i.Expected.Digest != expected.Digest || (expected.Size > 0 && int64(len(i.raw)) > expected.Size) {
		i = &memoryIngest{Ingest: content.Ingest{Ref: ref, StartedAt: time.Now()}}
		m.ingests[ref] = i
	}
	i.Expected, i.open = expected, true
	return &memoryWriter{m: m, i: i}, nil
}

type memoryWriter struct {
	m *Memory
	i *memoryIngest
}

func (w *memoryWriter) Write(p []byte) (int, error) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if n, limit := int64(len(w.i.raw)+len(p)), w.i.Expected.Size; limit > 0 && n > limit {
		return 0, content.SizeMismatch(w.i.Ref, n, limit)
	}
	w.i.raw = append(w.i.raw, p...)
	w.i.UpdatedAt = time.Now()
	return len(p), nil
}

func (w *memoryWriter) Digest() digest.Digest { return digest.FromBytes(w.i.raw) }
func (w *memoryWriter) Offset() int64         { return int64(len(w.i.raw)) }

func (w *memoryWriter) Reset() error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	w.i.raw = nil
	return nil
}

func (w *memoryWriter) Commit(ctx context.Context, size int64, want digest.Digest, _ ...content.CommitOpt) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	got := w.Digest()
	if want == "" {
		want = got
	}
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if n := int64(len(w.i.raw)); size >= 0 && size != n {
		w.i.raw = nil
		return content.SizeMismatch(w.i.Ref, n, size)
	}
	if got != want {
		w.i.raw = nil
		return content.DigestMismatch(w.i.Ref, got, want)
	}
	w.m.blobs[want] = memoryBlob{w.i.raw, time.Now()}
	delete(w.m.ingests, w.i.Ref)
	return nil
}

func (w *memoryWriter) Close() error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	w.i.open = false
	return nil
}

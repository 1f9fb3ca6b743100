//go:build linux

package store

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"dhow/guest/store/content"
	"dhow/guest/store/gc"
	"dhow/guest/store/image"
	"dhow/guest/store/layer"
	"dhow/guest/store/registry"
	"dhow/guest/store/snapshot"
)

// Image is an image of the store.
type Image = image.Image

// Options say where the store is and how it reaches registries.
type Options struct {
	Root    string    // directory, made if it is missing; its file system must be able to be overlayfs' upper layer
	DB      *bbolt.DB // stays the caller's
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	RootCAs *x509.CertPool // nil: the system's
	Log     *slog.Logger

	// Version is what registries are told in User-Agent, as dhow/<Version>.
	Version string
	// Limits bound what one layer unpacks to; zero: layer.DefaultLimits.
	Limits layer.Limits
	// Registry overrides the client's time-outs; its other fields are ignored.
	Registry registry.Options
}

// Store keeps images and container file systems. It may be used by many
// goroutines.
type Store struct {
	content *content.Local
	snaps   *snapshot.Overlay
	db      *bbolt.DB
	reg     *registry.Client
	leases  *gc.Leases
	images  image.Cache
	limits  layer.Limits
	log     *slog.Logger

	streams chan struct{} // one token per layer that is being streamed
	memory  atomic.Int64  // bytes that the layers being unpacked take; see reserve
	blobs   keyLock       // one download per blob

	ctx  context.Context // of the work that is shared between callers; ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	jobs     map[string]*layerJob // by chain ID
	seq      uint64               // of snapshot keys
	sweeping bool
	again    bool // sweep once more
	closed   bool
}

// Open opens the store below o.Root and removes what a crash left half done.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Root == "" || o.DB == nil {
		return nil, errors.New("open store: root and database are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := image.Migrate(o.DB); err != nil {
		return nil, err
	}
	blobs, err := content.OpenLocal(filepath.Join(o.Root, "content"))
	if err != nil {
		return nil, err
	}
	snaps, err := snapshot.OpenOverlay(ctx, filepath.Join(o.Root, "overlay"), o.DB, o.Log)
	if err != nil {
		return nil, err
	}
	reg := o.Registry
	reg.Dial, reg.RootCAs, reg.Log, reg.UserAgent = o.Dial, o.RootCAs, o.Log, strings.TrimSuffix("dhow/"+o.Version, "/")
	s := &Store{
		content: blobs, snaps: snaps, db: o.DB, reg: registry.New(reg), leases: gc.NewLeases(), limits: o.Limits, log: o.Log,
		// Three downloads at once, as docker; more only where more can unpack.
		streams: make(chan struct{}, max(3, runtime.GOMAXPROCS(0))),
		jobs:    make(map[string]*layerJob),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.recover(ctx); err != nil {
		s.stop()
		return nil, fmt.Errorf("recover store: %w", err)
	}
	return s, nil
}

// recover removes what was in flight when the machine went down. Only names
// are touched here; the bytes go in the background.
func (s *Store) recover(ctx context.Context) error {
	if err := s.content.DropIngests(); err != nil {
		return err
	}
	if err := s.sweep(ctx); err != nil {
		return err
	}
	s.freeSpace()
	return nil
}

// Close ends what is in flight, waits for it, and closes what Open opened. The
// database stays open.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
	s.reg.Close()
	return s.snaps.Close()
}

// background runs fn in a goroutine that Close waits for; after Close it does
// not run.
func (s *Store) background(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Go(fn)
	}
}

// keyLock is a set of locks by name, whose waiters give up with their context.
type keyLock struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock takes the lock of name and returns the function that gives it back.
func (k *keyLock) lock(ctx context.Context, name string) (func(), error) {
	for {
		k.mu.Lock()
		busy := k.held[name]
		if busy == nil {
			if k.held == nil {
				k.held = make(map[string]chan struct{})
			}
			done := make(chan struct{})
			k.held[name] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, name)
				k.mu.Unlock()
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

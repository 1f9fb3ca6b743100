//go:build linux

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store"
	"dhow/internal/errdefs"
)

// preload is the store, with the images that the machine's own image carries.
// They are loaded once, after the agent is ready; whoever asks for an image
// that is not there meanwhile waits for them. One that was removed stays
// removed until the machine's image changes.
type preload struct {
	*store.Store
	db      *bbolt.DB
	dir     string
	version string
	log     *slog.Logger
	done    chan struct{} // closed when all are loaded
}

const bucketPreload = "preload"

func newPreload(s *store.Store, d *bbolt.DB, dir, version string, log *slog.Logger) *preload {
	p := &preload{Store: s, db: d, dir: dir, version: version, log: log, done: make(chan struct{})}
	if dir == "" {
		close(p.done)
	}
	return p
}

// Get implements engine.Store.
func (p *preload) Get(ctx context.Context, nameOrID string) (store.Image, error) {
	img, err := p.Store.Get(ctx, nameOrID)
	if !errdefs.Is(err, errdefs.NotFound) || !p.wait(ctx) {
		return img, err
	}
	return p.Store.Get(ctx, nameOrID)
}

// Images implements engine.Store.
func (p *preload) Images(ctx context.Context) ([]store.Image, error) {
	p.wait(ctx)
	return p.Store.Images(ctx)
}

// wait returns whether it had to, and could.
func (p *preload) wait(ctx context.Context) bool {
	select {
	case <-p.done:
		return false
	default:
	}
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// run loads what is to be loaded.
func (p *preload) run(ctx context.Context) {
	if p.dir == "" {
		return
	}
	defer close(p.done)
	files, err := filepath.Glob(filepath.Join(p.dir, "*.tar"))
	if err != nil {
		return // the pattern is well formed
	}
	for _, f := range files {
		if err := p.load(ctx, f); err != nil {
			p.log.Error("load an image of the machine's own", "file", f, "err", err)
		}
	}
}

func (p *preload) load(ctx context.Context, file string) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	key := []byte(filepath.Base(file))
	mark := fmt.Sprintf("%s %d %d", p.version, st.Size(), st.ModTime().UnixNano())
	known := false
	err = p.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte(bucketPreload)); b != nil {
			known = string(b.Get(key)) == mark
		}
		return nil
	})
	if err != nil || known {
		return err
	}
	r, err := os.Open(file)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := p.Store.Load(ctx, r, nil); err != nil {
		return err
	}
	return db.Update(ctx, p.db, func(_ context.Context, tx *bbolt.Tx) error {
		b, err := db.Create(tx, bucketPreload)
		if err != nil {
			return err
		}
		return b.Put(key, []byte(mark))
	})
}

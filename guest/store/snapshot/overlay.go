//go:build linux

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"dhow/guest/db"
	"dhow/internal/errdefs"
)

// Overlay is the Snapshotter on overlayfs.
type Overlay struct {
	root    string
	db      *bbolt.DB
	log     *slog.Logger
	options []string // of every overlay mount
	cleanup sync.Mutex
}

var _ Snapshotter = (*Overlay)(nil)

// OpenOverlay opens the snapshotter whose directories are below root and whose
// metadata is in d, makes it if it is missing, and reconciles the two: see
// reconcile.
func OpenOverlay(ctx context.Context, root string, d *bbolt.DB, log *slog.Logger) (*Overlay, error) {
	o := &Overlay{root: root, db: d, log: log, options: kernelOptions()}
	for _, dir := range []string{o.snapshots(), o.trash()} {
		// 0711: a container's root is reached through here by its bind mount
		// only, yet a process that lost its privileges must be able to pass.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("open snapshots: %w", err)
		}
	}
	if err := db.Migrate(d, bucketPart, makeBuckets); err != nil {
		return nil, err
	}
	if err := o.reconcile(ctx); err != nil {
		return nil, fmt.Errorf("reconcile snapshots: %w", err)
	}
	return o, nil
}

// kernelOptions returns the overlay options that keep a layer's directory
// readable without its mount: no redirects, no metadata-only copies, no index.
// A kernel whose overlay module lacks one has it off for ever.
func kernelOptions() []string {
	var opts []string
	for _, name := range []string{"index", "redirect_dir", "metacopy"} {
		if _, err := os.Stat("/sys/module/overlay/parameters/" + name); err == nil {
			opts = append(opts, name+"=off")
		}
	}
	return opts
}

func (o *Overlay) snapshots() string { return filepath.Join(o.root, "snapshots") }
func (o *Overlay) trash() string     { return filepath.Join(o.root, "trash") }

func (o *Overlay) dir(id uint64) string {
	return filepath.Join(o.snapshots(), strconv.FormatUint(id, 10))
}

func (o *Overlay) view(ctx context.Context, fn func(table) error) error {
	return db.View(ctx, o.db, func(tx *bbolt.Tx) error {
		t, err := openTable(tx)
		if err != nil {
			return err
		}
		return fn(t)
	})
}

func (o *Overlay) update(ctx context.Context, fn func(context.Context, table) error) error {
	return db.Update(ctx, o.db, func(ctx context.Context, tx *bbolt.Tx) error {
		t, err := openTable(tx)
		if err != nil {
			return err
		}
		return fn(ctx, t)
	})
}

// Stat implements Snapshotter.
func (o *Overlay) Stat(ctx context.Context, key string) (info Info, err error) {
	err = o.view(ctx, func(t table) error {
		r, err := t.get(key)
		info = r.info(key)
		return err
	})
	return info, err
}

// Update implements Snapshotter.
func (o *Overlay) Update(ctx context.Context, info Info) (out Info, err error) {
	err = o.update(ctx, func(_ context.Context, t table) error {
		r, err := t.get(info.Name)
		if err != nil {
			return err
		}
		r.labels, r.updated = info.Labels, time.Now().UnixNano()
		out = r.info(info.Name)
		return t.put(info.Name, r)
	})
	return out, err
}

// Usage implements Snapshotter.
func (o *Overlay) Usage(ctx context.Context, key string) (Usage, error) {
	var r record
	err := o.view(ctx, func(t table) (err error) { r, err = t.get(key); return err })
	if err != nil || r.kind != Active {
		return r.usage, err
	}
	return diskUsage(ctx, filepath.Join(o.dir(r.id), "fs"))
}

// Mounts implements Snapshotter.
func (o *Overlay) Mounts(ctx context.Context, key string) (m []Mount, err error) {
	var r record
	err = o.view(ctx, func(t table) error {
		if r, err = t.get(key); err != nil {
			return err
		}
		if r.kind == Committed {
			return WrongKind(key, r.kind, "mount it")
		}
		ids, err := t.chain(r.parent)
		m = o.mounts(r, ids)
		return err
	})
	if err == nil && volatile(r) {
		// The kernel's mark of an earlier mount; it refuses the next one.
		err = removeIfThere(o.mark(r.id))
	}
	return m, err
}

// Prepare implements Snapshotter.
func (o *Overlay) Prepare(ctx context.Context, key, parent string, opts ...Opt) ([]Mount, error) {
	return o.create(ctx, Active, key, parent, opts)
}

// View implements Snapshotter.
func (o *Overlay) View(ctx context.Context, key, parent string, opts ...Opt) ([]Mount, error) {
	return o.create(ctx, View, key, parent, opts)
}

func (o *Overlay) create(ctx context.Context, kind Kind, key, parent string, opts []Opt) (m []Mount, err error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	err = o.update(ctx, func(ctx context.Context, t table) error {
		if t.has(key) {
			return Exists(key)
		}
		ids, err := o.parentChain(t, parent)
		if err != nil {
			return err
		}
		id, err := t.records.NextSequence()
		if err != nil {
			return err
		}
		now := time.Now().UnixNano()
		r := record{id: id, kind: kind, parent: parent, created: now, updated: now, labels: Apply(opts).Labels}
		// A view of layers needs no directory; a view of nothing does.
		if kind == Active || len(ids) == 0 {
			db.OnRollback(ctx, o.db, func() { o.discard(id) })
			if err := o.makeDir(r, ids); err != nil {
				return err
			}
		}
		m = o.mounts(r, ids)
		return t.put(key, r)
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (o *Overlay) parentChain(t table, parent string) ([]uint64, error) {
	if parent == "" {
		return nil, nil
	}
	p, err := t.get(parent)
	if err != nil {
		return nil, err
	}
	if p.kind != Committed {
		return nil, WrongKind(parent, p.kind, "be a parent")
	}
	return t.chain(parent)
}

// makeDir makes the directories of a snapshot. The top directory of the layer
// is the root of the mounted tree, so it looks as the parent's does.
func (o *Overlay) makeDir(r record, chain []uint64) (err error) {
	dir := o.dir(r.id)
	err = os.Mkdir(dir, 0o711)
	if errors.Is(err, fs.ErrExist) {
		o.discard(r.id) // no record has it, so nobody does
		err = os.Mkdir(dir, 0o711)
	}
	if err != nil {
		return err
	}
	top := filepath.Join(dir, "fs")
	if err := os.Mkdir(top, 0o755); err != nil {
		return err
	}
	if r.kind == Active && len(chain) > 0 {
		if err := os.Mkdir(filepath.Join(dir, "work"), 0o711); err != nil {
			return err
		}
	}
	if len(chain) == 0 {
		return os.Chmod(top, 0o755) // whatever the umask
	}
	return copyTop(filepath.Join(o.dir(chain[0]), "fs"), top)
}

// copyTop gives dst the owner, mode and times of src; both are directories of
// ours whose names no container can change.
func copyTop(src, dst string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "stat", Path: src, Err: err}
	}
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: dst, Err: err}
	}
	return os.Chtimes(dst, time.Unix(st.Atim.Unix()), time.Unix(st.Mtim.Unix()))
}

// Commit implements Snapshotter.
func (o *Overlay) Commit(ctx context.Context, name, key string, opts ...Opt) error {
	if err := CheckKey(name); err != nil {
		return err
	}
	opt := Apply(opts)
	return o.update(ctx, func(ctx context.Context, t table) error {
		r, err := t.get(key)
		if err != nil {
			return err
		}
		if r.kind != Active {
			return WrongKind(key, r.kind, "commit it")
		}
		if t.has(name) {
			return Exists(name)
		}
		if err := t.remove(key, r); err != nil {
			return err
		}
		if opt.Parent != nil && *opt.Parent != r.parent {
			if r.parent != "" {
				return errdefs.New(errdefs.Invalid, "snapshot %s has the parent %s: it cannot get the parent %s", key, r.parent, *opt.Parent)
			}
			if _, err := o.parentChain(t, *opt.Parent); err != nil {
				return err
			}
			r.parent = *opt.Parent
		}
		if opt.Labels != nil {
			r.labels = opt.Labels
		}
		if opt.Usage != nil {
			r.usage = *opt.Usage
		} else if r.usage, err = diskUsage(ctx, filepath.Join(o.dir(r.id), "fs")); err != nil {
			return err
		}
		r.kind, r.updated = Committed, time.Now().UnixNano()
		id := r.id
		db.OnCommit(ctx, o.db, func() {
			// Left behind by a crash here, it is a few empty directories.
			if err := os.RemoveAll(filepath.Join(o.dir(id), "work")); err != nil {
				o.log.Warn("remove work directory", "snapshot", name, "error", err)
			}
		})
		return t.put(name, r)
	})
}

// Remove implements Snapshotter.
func (o *Overlay) Remove(ctx context.Context, key string) error {
	_, err := o.RemoveChild(ctx, key)
	return err
}

// RemoveChild is Remove, and returns the name of the parent, "" if there is
// none.
func (o *Overlay) RemoveChild(ctx context.Context, key string) (parent string, err error) {
	err = o.update(ctx, func(ctx context.Context, t table) error {
		r, err := t.get(key)
		if err != nil {
			return err
		}
		if t.hasChildren(key) {
			return HasChildren(key)
		}
		parent = r.parent
		db.OnCommit(ctx, o.db, func() { o.discard(r.id) })
		return t.remove(key, r)
	})
	return parent, err
}

// discard moves a snapshot's directory into the trash, if it is there.
func (o *Overlay) discard(id uint64) {
	// The number alone is not unique: a rolled back transaction gives it back.
	name := fmt.Sprintf("%d-%d", id, time.Now().UnixNano())
	err := os.Rename(o.dir(id), filepath.Join(o.trash(), name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// The next boot finds a directory without a record, and discards it.
		o.log.Warn("move a removed snapshot to the trash", "id", id, "error", err)
	}
}

// Walk implements Snapshotter.
func (o *Overlay) Walk(ctx context.Context, fn func(context.Context, Info) error) error {
	var all []Info
	err := o.view(ctx, func(t table) error {
		return t.records.ForEach(func(k, v []byte) error {
			r, err := decode(v)
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", k, err)
			}
			all = append(all, r.info(string(k)))
			return nil
		})
	})
	// fn runs outside of the transaction: it may write.
	for _, info := range all {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		err = fn(ctx, info)
	}
	return err
}

// Cleanup implements Snapshotter.
func (o *Overlay) Cleanup(ctx context.Context) error {
	o.cleanup.Lock()
	defer o.cleanup.Unlock()
	ents, err := os.ReadDir(o.trash())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range ents {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, os.RemoveAll(filepath.Join(o.trash(), e.Name())))
	}
	return errors.Join(errs...)
}

// Close implements Snapshotter.
func (o *Overlay) Close() error { return nil }

// Dir returns the directory that holds the own files of a snapshot. It is for
// those who write a layer without mounting it.
func (o *Overlay) Dir(ctx context.Context, key string) (dir string, err error) {
	err = o.view(ctx, func(t table) error {
		r, err := t.get(key)
		dir = filepath.Join(o.dir(r.id), "fs")
		return err
	})
	return dir, err
}

// Dirs returns the directories of a snapshot and its ancestors, top first; none
// for "".
func (o *Overlay) Dirs(ctx context.Context, key string) (dirs []string, err error) {
	err = o.view(ctx, func(t table) error {
		ids, err := t.chain(key)
		for _, id := range ids {
			dirs = append(dirs, filepath.Join(o.dir(id), "fs"))
		}
		return err
	})
	return dirs, err
}

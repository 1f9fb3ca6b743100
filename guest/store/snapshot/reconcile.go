//go:build linux

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// reconcile makes directories and records agree after a crash. The database is
// right:
//
//   - a directory without a record was being made or removed: to the trash;
//   - an active snapshot without its files was just made, and nothing in it
//     was durable yet: an empty one;
//   - one that has its files and lacks only overlayfs' work directory gets that:
//     there is no data in it. What a snapshot has is never taken from it;
//   - a committed snapshot without its directory cannot come from a crash, for
//     Commit follows a sync: it is reported, and the images on it fail when
//     they are used.
func (o *Overlay) reconcile(ctx context.Context) error {
	ents, err := os.ReadDir(o.snapshots())
	if err != nil {
		return err
	}
	present := make(map[uint64]bool, len(ents))
	for _, e := range ents {
		id, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil {
			o.log.Warn("not a snapshot's directory", "name", e.Name())
			continue
		}
		present[id] = true
	}
	known := make(map[uint64]bool, len(present))
	err = o.view(ctx, func(t table) error {
		return t.records.ForEach(func(k, v []byte) error {
			r, err := decode(v)
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", k, err)
			}
			known[r.id] = true
			return o.repair(t, string(k), r, present[r.id])
		})
	})
	if err != nil {
		return err
	}
	for id := range present {
		if !known[id] {
			o.discard(id)
		}
	}
	return nil
}

func (o *Overlay) repair(t table, key string, r record, present bool) error {
	if r.kind == Committed {
		if !present {
			o.log.Error("the files of a committed snapshot are missing", "snapshot", key, "id", r.id)
		}
		return nil
	}
	chain, err := t.chain(r.parent)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", key, err)
	}
	if r.kind == View && len(chain) > 0 {
		return nil
	}
	dir := o.dir(r.id)
	here, err := isDir(filepath.Join(dir, "fs"))
	if err == nil && !here {
		o.log.Warn("the directory of a snapshot was lost in a crash: it is empty now", "snapshot", key)
		if present {
			o.discard(r.id) // at most a work directory
		}
		return o.makeDir(r, chain)
	}
	if err == nil && r.kind == Active && len(chain) > 0 {
		work := filepath.Join(dir, "work")
		if here, err = isDir(work); err == nil && !here {
			o.log.Warn("the work directory of a snapshot was lost", "snapshot", key)
			return os.Mkdir(work, 0o711)
		}
	}
	if err != nil {
		// Its container fails when it starts; the others must not.
		o.log.Error("the directory of a snapshot is damaged: it stays as it is", "snapshot", key, "error", err)
	}
	return nil
}

// isDir reports whether there is a directory. Anything else in its place is an
// error.
func isDir(path string) (bool, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil && !fi.IsDir() {
		err = &os.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
	}
	return err == nil, err
}

// mark returns the path of what the kernel leaves in the work directory of a
// volatile mount.
func (o *Overlay) mark(id uint64) string {
	return filepath.Join(o.dir(id), "work", "work", "incompat")
}

func removeIfThere(path string) error {
	err := os.RemoveAll(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// diskUsage adds up a directory tree, each inode once, without following
// symbolic links. A container may write while it runs: what vanishes is not
// counted.
func diskUsage(ctx context.Context, root string) (Usage, error) {
	w := usageWalk{ctx: ctx, links: make(map[uint64]struct{})}
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, &os.PathError{Op: "open", Path: root, Err: err}
	}
	err = w.dir(fd)
	return w.total, err
}

type usageWalk struct {
	ctx   context.Context
	total Usage
	links map[uint64]struct{} // inodes with several names that were counted
}

// dir counts the directory fd and all in it, and closes fd.
func (w *usageWalk) dir(fd int) error {
	f := os.NewFile(uintptr(fd), "")
	defer func() { _ = f.Close() }()
	if err := w.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	w.add(&st)
	for {
		// Some at a time: there may be millions.
		names, err := f.Readdirnames(512)
		for _, name := range names {
			if err := w.entry(fd, name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry counts one name in the directory fd, and all below it.
func (w *usageWalk) entry(fd int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		w.add(&st)
		return nil
	}
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	return w.dir(sub)
}

func (w *usageWalk) add(st *unix.Stat_t) {
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !dir && st.Nlink > 1 {
		if _, seen := w.links[st.Ino]; seen {
			return
		}
		w.links[st.Ino] = struct{}{}
	}
	w.total.Inodes++
	w.total.Size += st.Blocks * 512
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		w.total.Bytes += st.Size
	}
}

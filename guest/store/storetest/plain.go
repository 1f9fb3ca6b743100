//go:build linux

package storetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

// Plain is a snapshot.Snapshotter without overlayfs: an active snapshot is a
// whole copy of its parent. It cannot give a snapshot another parent at Commit
// unless that is empty, for the copy lacks the parent's files; it lays them
// below then.
type Plain struct {
	root string
	mu   sync.Mutex
	n    int
	all  map[string]*plainSnapshot
}

type plainSnapshot struct {
	info  snapshot.Info
	dir   string
	usage snapshot.Usage
}

var _ snapshot.Snapshotter = (*Plain)(nil)

// NewPlain returns an empty snapshotter in a directory.
func NewPlain(root string) *Plain {
	return &Plain{root: root, all: make(map[string]*plainSnapshot)}
}

func (p *Plain) get(key string) (*plainSnapshot, error) {
	s := p.all[key]
	if s == nil {
		return nil, snapshot.NotFound(key)
	}
	return s, nil
}

// Stat implements snapshot.Snapshotter.
func (p *Plain) Stat(_ context.Context, key string) (snapshot.Info, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.get(key)
	if err != nil {
		return snapshot.Info{}, err
	}
	return s.info, nil
}

// Update implements snapshot.Snapshotter.
func (p *Plain) Update(_ context.Context, info snapshot.Info) (snapshot.Info, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.get(info.Name)
	if err != nil {
		return info, err
	}
	s.info.Labels, s.info.Updated = maps.Clone(info.Labels), time.Now().UTC()
	return s.info, nil
}

// Usage implements snapshot.Snapshotter: what is there beyond the parent.
func (p *Plain) Usage(_ context.Context, key string) (snapshot.Usage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.get(key)
	if err != nil {
		return snapshot.Usage{}, err
	}
	if s.info.Kind != snapshot.Active {
		return s.usage, nil
	}
	own, err := treeUsage(s.dir)
	if err != nil || s.info.Parent == "" {
		return own, err
	}
	below, err := treeUsage(p.all[s.info.Parent].dir)
	return snapshot.Usage{Inodes: own.Inodes - below.Inodes, Size: own.Size - below.Size, Bytes: own.Bytes - below.Bytes}, err
}

func treeUsage(dir string) (u snapshot.Usage, err error) {
	seen := make(map[uint64]bool)
	err = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(name, &st)
		}
		if err != nil || seen[st.Ino] {
			return err
		}
		seen[st.Ino] = true
		u = u.Add(snapshot.Usage{Inodes: 1, Size: st.Blocks * 512})
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			u.Bytes += st.Size
		}
		return nil
	})
	return u, err
}

func (s *plainSnapshot) mounts() []snapshot.Mount {
	opt := "rw"
	if s.info.Kind == snapshot.View {
		opt = "ro"
	}
	return []snapshot.Mount{{Type: "bind", Source: s.dir, Options: []string{opt, "rbind"}}}
}

// Mounts implements snapshot.Snapshotter.
func (p *Plain) Mounts(_ context.Context, key string) ([]snapshot.Mount, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.get(key)
	if err != nil {
		return nil, err
	}
	if s.info.Kind == snapshot.Committed {
		return nil, snapshot.WrongKind(key, s.info.Kind, "mount it")
	}
	return s.mounts(), nil
}

// Prepare implements snapshot.Snapshotter.
func (p *Plain) Prepare(_ context.Context, key, parent string, opts ...snapshot.Opt) ([]snapshot.Mount, error) {
	return p.create(snapshot.Active, key, parent, opts)
}

// View implements snapshot.Snapshotter.
func (p *Plain) View(_ context.Context, key, parent string, opts ...snapshot.Opt) ([]snapshot.Mount, error) {
	return p.create(snapshot.View, key, parent, opts)
}

func (p *Plain) create(kind snapshot.Kind, key, parent string, opts []snapshot.Opt) ([]snapshot.Mount, error) {
	if err := snapshot.CheckKey(key); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all[key] != nil {
		return nil, snapshot.Exists(key)
	}
	p.n++
	now := time.Now().UTC()
	s := &plainSnapshot{
		dir:  filepath.Join(p.root, fmt.Sprint(p.n)),
		info: snapshot.Info{Name: key, Kind: kind, Parent: parent, Labels: snapshot.Apply(opts).Labels, Created: now, Updated: now},
	}
	if parent == "" {
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			return nil, err
		}
	} else {
		below, err := p.committed(parent)
		if err == nil {
			err = copyTree(below.dir, s.dir)
		}
		if err != nil {
			return nil, err
		}
	}
	p.all[key] = s
	return s.mounts(), nil
}

func (p *Plain) committed(name string) (*plainSnapshot, error) {
	s, err := p.get(name)
	if err == nil && s.info.Kind != snapshot.Committed {
		err = snapshot.WrongKind(name, s.info.Kind, "be a parent")
	}
	return s, err
}

// copyTree copies a tree, of those kinds of file that the suite makes.
func copyTree(from, to string) error {
	links := make(map[uint64]string)
	return filepath.WalkDir(from, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		if _, err := os.Lstat(dst); err == nil {
			return nil // laid over it
		}
		if first := links[st.Ino]; first != "" {
			return os.Link(first, dst)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = os.Mkdir(dst, 0o700)
		case unix.S_IFLNK:
			var target string
			if target, err = os.Readlink(name); err == nil {
				err = os.Symlink(target, dst)
			}
			return err
		default:
			var raw []byte
			if raw, err = os.ReadFile(name); err == nil {
				err = os.WriteFile(dst, raw, 0o600)
			}
			links[st.Ino] = dst
		}
		if err != nil {
			return err
		}
		return errors.Join(os.Chown(dst, int(st.Uid), int(st.Gid)), unix.Chmod(dst, st.Mode&0o7777))
	})
}

// Commit implements snapshot.Snapshotter.
func (p *Plain) Commit(ctx context.Context, name, key string, opts ...snapshot.Opt) error {
	if err := snapshot.CheckKey(name); err != nil {
		return err
	}
	o := snapshot.Apply(opts)
	usage, uerr := p.Usage(ctx, key)
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.get(key)
	if err != nil {
		return err
	}
	if s.info.Kind != snapshot.Active {
		return snapshot.WrongKind(key, s.info.Kind, "commit it")
	}
	if p.all[name] != nil {
		return snapshot.Exists(name)
	}
	if o.Usage != nil {
		usage, uerr = *o.Usage, nil
	}
	if uerr != nil {
		return uerr
	}
	info := s.info
	if o.Parent != nil && *o.Parent != info.Parent {
		if info.Parent != "" {
			return errdefs.New(errdefs.Invalid, "snapshot %s has the parent %s", key, info.Parent)
		}
		below, err := p.committed(*o.Parent)
		if err != nil {
			return err
		}
		if err := copyTree(below.dir, s.dir); err != nil {
			return err
		}
		info.Parent = *o.Parent
	}
	if o.Labels != nil {
		info.Labels = o.Labels
	}
	info.Name, info.Kind, info.Updated = name, snapshot.Committed, time.Now().UTC()
	s.info, s.usage = info, usage
	delete(p.all, key)
	p.all[name] = s
	return nil
}

// Remove implements snapshot.Snapshotter.
func (p *Plain) Remove(_ context.Context, key string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.get(key)
	if err != nil {
		return err
	}
	for _, other := range p.all {
		if other.info.Parent == key {
			return snapshot.HasChildren(key)
		}
	}
	delete(p.all, key)
	return os.RemoveAll(s.dir)
}

// Walk implements snapshot.Snapshotter.
func (p *Plain) Walk(ctx context.Context, fn func(context.Context, snapshot.Info) error) error {
	p.mu.Lock()
	var all []snapshot.Info
	for _, k := range slices.Sorted(maps.Keys(p.all)) {
		all = append(all, p.all[k].info)
	}
	p.mu.Unlock()
	for _, i := range all {
		if err := fn(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// Cleanup implements snapshot.Snapshotter.
func (p *Plain) Cleanup(context.Context) error { return nil }

// Close implements snapshot.Snapshotter.
func (p *Plain) Close() error { return nil }

//go:build linux

package layer

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// seal gives a directory its metadata; fd is open on it.
func (n *node) seal(fd int) error {
	if n.opaque {
		if err := unix.Fsetxattr(fd, xattrOpaque, []byte("y"), 0); err != nil {
			return fmt.Errorf("make %s opaque: %w", printable(n.path), os.NewSyscallError("setxattr", err))
		}
	}
	if !n.explicit {
		return nil
	}
	err := n.meta.set(fd)
	n.meta.xattrs = nil // they are on disk; a later seal restores the times
	return err
}

func (t *Tree) seal(n *node) error {
	fd, err := t.openNode(n)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return n.seal(fd)
}

// openNode opens a directory of the layer; the caller closes it.
func (t *Tree) openNode(n *node) (int, error) {
	fd, err := -1, error(nil)
	switch {
	case n.parent == nil:
		fd, err = openDir(unix.AT_FDCWD, t.dir)
	case n.parent.fd >= 0:
		fd, err = openDir(n.parent.fd, n.name())
	default:
		at, perr := t.openNode(n.parent)
		if perr != nil {
			return -1, perr
		}
		fd, err = openDir(at, n.name())
		_ = unix.Close(at)
	}
	return fd, os.NewSyscallError("open", err)
}

// Finish settles what depends on the layers below (see the package's
// documentation). It must be called once, when these are finished. The files
// are not synced.
func (t *Tree) Finish(ctx context.Context, lower *Lower) error {
	if !t.known {
		if err := t.checkLinks(ctx, lower); err != nil {
			return err
		}
	}
	for _, n := range t.dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		stale := !n.explicit
		if stale {
			if err := t.inherit(n, lower); err != nil {
				return err
			}
		}
		if len(n.whiteouts) > 0 {
			if err := t.pruneWhiteouts(n, lower); err != nil {
				return err
			}
			stale = true // its times were changed
		}
		if !stale {
			continue
		}
		// At once: attributes that were inherited are kept by nobody.
		if err := t.seal(n); err != nil {
			return err
		}
	}
	if !t.rootGone {
		return nil
	}
	if err := t.hideRoot(lower); err != nil {
		return err
	}
	return t.seal(t.root)
}

// checkLinks fails with ErrNeedsParent if a directory that was made on the way
// to a file is a symbolic link below: the file belongs behind the link.
func (t *Tree) checkLinks(ctx context.Context, lower *Lower) error {
	for p := range t.implied {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := lower.lookup(p)
		if err != nil {
			return err
		}
		if e.isLink() {
			return ErrNeedsParent
		}
	}
	return nil
}

// inherit gives a directory without an entry the metadata of the one below it,
// or that of a new directory.
func (t *Tree) inherit(n *node, lower *Lower) error {
	now := timespec(time.Now())
	n.meta = metadata{mode: 0o755, atime: now, mtime: now}
	n.explicit = true // from here on it is known
	if n == t.root {
		if len(lower.roots) == 0 {
			return nil
		}
		m, err := metadataOfFD(lower.roots[0])
		n.meta = m
		return err
	}
	if n.replaced || n.parent.hidden() {
		return nil
	}
	e, err := lower.lookup(n.path)
	if err != nil || !e.isDir() {
		return err
	}
	n.meta, err = e.metadata()
	return err
}

// pruneWhiteouts removes the whiteouts of a directory that hide nothing: in a
// directory that only one layer has, overlayfs lists them.
func (t *Tree) pruneWhiteouts(n *node, lower *Lower) error {
	fd, err := t.openNode(n)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	hidden := n.hidden()
	for base := range n.whiteouts {
		if !hidden {
			e, err := lower.lookup(n.join(base))
			if err != nil {
				return err
			}
			if e.found() {
				continue
			}
		}
		if err := unix.Unlinkat(fd, base, 0); err != nil {
			return os.NewSyscallError("unlink", err)
		}
	}
	return nil
}

// hideRoot hides all that the layers below have, name by name.
func (t *Tree) hideRoot(lower *Lower) error {
	fd, err := t.openNode(t.root)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return lower.names(func(name string) error {
		if n := t.dirs[name]; n != nil {
			n.opaque = true
			return t.seal(n)
		}
		err := unix.Mknodat(fd, name, unix.S_IFCHR, 0)
		if err != nil && err != unix.EEXIST {
			return os.NewSyscallError("whiteout", err)
		}
		return nil
	})
}

//go:build linux

package layer

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

// Limits bound what one layer may unpack to. A field that is zero is as in
// DefaultLimits.
type Limits struct {
	Entries int   // tar entries
	Bytes   int64 // bytes of files as ls counts them, so that holes count too
	Path    int   // bytes of one path
	Memory  int64 // bytes for the names and attributes of its directories and whiteouts
}

// DefaultLimits returns the limits for images from anywhere: far above what
// real images hold, low enough to end.
func DefaultLimits() Limits {
	return Limits{Entries: 20_000_000, Bytes: 512 << 30, Path: unix.PathMax, Memory: 128 << 20}
}

// Options say how to apply a layer.
type Options struct {
	// Lower is what the layer lies on; nil if that is not known yet. A base
	// layer has one without directories.
	Lower  *Lower
	Limits Limits
	// Reserve is told how many bytes of memory the layer takes, as it grows, or
	// fewer if n is negative; they are free when its Tree is dropped. It bounds
	// several layers together: an error from it ends Apply. It may be nil.
	Reserve func(n int64) error
}

// ErrNeedsParent says that a layer cannot be unpacked without knowing what it
// lies on. The directory holds a part of it and must be emptied before the
// layer is unpacked again, with Options.Lower.
var ErrNeedsParent = errors.New("the layer refers to files of the layers below it")

// Tree is a layer that was unpacked into a directory and waits for Finish.
type Tree struct {
	dir      string
	usage    snapshot.Usage
	dirs     map[string]*node
	root     *node
	implied  map[string]struct{} // directories that the tar implied, by path
	rootGone bool                // the root is opaque
	known    bool                // Options.Lower was given
}

// Usage returns what the layer takes on disk. It is exact after Finish but for
// the directories' own growth.
func (t *Tree) Usage() snapshot.Usage { return t.usage }

// Apply writes the entries of the tar stream r into the empty directory dir,
// reads r to its end and returns what Finish needs. The files are not synced.
// On an error dir holds a part of the layer; the caller discards it.
func Apply(ctx context.Context, dir string, r io.Reader, o Options) (*Tree, error) {
	d := DefaultLimits()
	o.Limits = Limits{
		Entries: cmp.Or(o.Limits.Entries, d.Entries), Bytes: cmp.Or(o.Limits.Bytes, d.Bytes),
		Path: cmp.Or(o.Limits.Path, d.Path), Memory: cmp.Or(o.Limits.Memory, d.Memory),
	}
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	root := &node{fd: fd}
	a := &applier{
		Tree: Tree{
			dir: dir, root: root, dirs: map[string]*node{"": root}, known: o.Lower != nil,
			implied: make(map[string]struct{}), usage: snapshot.Usage{Inodes: 1, Size: block},
		},
		lower: o.Lower, limits: o.Limits, left: o.Limits.Bytes, reserve: o.Reserve,
	}
	buf := bufPool.Get().(*[]byte)
	defer bufPool.Put(buf)
	a.buf = *buf
	defer a.closeFDs()
	if err := a.run(ctx, tar.NewReader(r)); err != nil {
		return nil, err
	}
	// What follows the end of the archive belongs to the stream and its hash.
	if err := discard(r, a.left); err != nil {
		return nil, err
	}
	if err := a.sealAll(root); err != nil {
		return nil, err
	}
	return &a.Tree, nil
}

// sealAll seals n and the directories in it, whose metadata is known. It goes
// down the tree, so that the parent of what it opens is open.
func (a *applier) sealAll(n *node) error {
	if n.explicit || n.opaque {
		fd, err := a.open(n)
		if err != nil {
			return err
		}
		if err := n.seal(fd); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return os.NewSyscallError("stat", err)
		}
		a.usage.Size += st.Blocks*512 - block // now that it is full
	}
	for _, kid := range n.kids {
		if kid.dead {
			continue
		}
		if err := a.sealAll(kid); err != nil {
			return err
		}
	}
	return nil
}

const copyBuffer = 256 << 10

var bufPool = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

func discard(r io.Reader, limit int64) error {
	n, err := io.Copy(io.Discard, io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = tooLarge()
	}
	return err
}

// applier is the state of one Apply.
type applier struct {
	Tree
	lower   *Lower
	limits  Limits
	left    int64 // bytes that files may still have
	memory  int64 // bytes that are charged; see charge
	reserve func(int64) error
	buf     []byte
	lru     lruList
	pinned  *node // stays open
}

func (a *applier) run(ctx context.Context, tr *tar.Reader) error {
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return StreamError(err)
		}
		if n >= a.limits.Entries {
			return errdefs.New(errdefs.Invalid, "layer has more than %d entries", a.limits.Entries)
		}
		if err := a.entry(h, tr); err != nil {
			return fmt.Errorf("%s: %w", printable(h.Name), err)
		}
	}
}

// StreamError makes what a tar reader says of bad input Invalid; errors of
// the stream below it keep their class.
func StreamError(err error) error {
	var classed *errdefs.Error
	if errors.As(err, &classed) {
		return err
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errdefs.Wrap(errdefs.Invalid, err, "invalid tar archive")
	}
	return err
}

// printable cuts a name for an error text.
func printable(name string) string {
	if len(name) > 200 {
		name = name[:100] + "…" + name[len(name)-100:]
	}
	return fmt.Sprintf("%q", name)
}

func pathTooLong(n, limit int) error {
	return errdefs.New(errdefs.Invalid, "a path in the layer has %d bytes: at most %d are allowed", n, limit)
}

func tooLarge() error { return errdefs.New(errdefs.Invalid, "layer is larger than the limit") }

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// clean returns name relative to the root, "" for the root itself.
func (a *applier) clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", errdefs.New(errdefs.Invalid, "a path in the layer holds a zero byte")
	}
	p := path.Clean(strings.TrimLeft(name, "/"))
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", errdefs.New(errdefs.Invalid, "a path in the layer leads out of it: %s", printable(name))
	}
	if len(p) > a.limits.Path {
		return "", pathTooLong(len(p), a.limits.Path)
	}
	if p == "." {
		p = ""
	}
	return p, nil
}

// entry applies one entry.
func (a *applier) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	p, err := a.clean(h.Name)
	if err != nil {
		return err
	}
	if p == "" {
		if h.Typeflag != tar.TypeDir {
			return errdefs.New(errdefs.Invalid, "the root of a layer is not a directory")
		}
		return a.describe(a.root, h)
	}
	dirPath, base := path.Split(p)
	dirPath = strings.TrimSuffix(dirPath, "/")
	if strings.HasPrefix(p, whiteoutMeta) && base != whiteoutOpaque {
		return nil // what aufs kept for itself
	}
	dir, err := a.parent(dirPath)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteout(dir, base)
	}
	return a.create(dir, base, h, r)
}

// whiteout applies a whiteout: it hides what the layers below have at its
// path, and nothing of this layer.
func (a *applier) whiteout(dir *node, base string) error {
	if strings.HasPrefix(base, whiteoutMeta) {
		if base != whiteoutOpaque {
			return nil
		}
		if dir == a.root {
			a.rootGone = true
		} else {
			dir.opaque = true
		}
		return nil
	}
	base = base[len(whiteoutPrefix):]
	switch base {
	case "", ".", "..":
		return errdefs.New(errdefs.Invalid, "whiteout of nothing")
	}
	if n := a.dirs[dir.join(base)]; n != nil {
		n.opaque, n.replaced = true, true
		return nil
	}
	if dir.hidden() {
		return nil // there is nothing below to hide
	}
	fd, err := a.open(dir)
	if err != nil {
		return err
	}
	switch err := unix.Mknodat(fd, base, unix.S_IFCHR, 0); err {
	case nil:
		cost := nameCost + int64(len(base))
		if dir.whiteouts == nil {
			dir.whiteouts = make(map[string]struct{})
			cost += whiteoutCost
		}
		if err := a.charge(cost); err != nil {
			return err
		}
		dir.whiteouts[strings.Clone(base)] = struct{}{} // not a part of the tar header
	case unix.EEXIST: // an entry of this layer, which hides it as well
	default:
		return sysError("whiteout", err)
	}
	return nil
}

func sysError(op string, err error) error {
	if _, ok := err.(unix.Errno); !ok {
		return err
	}
	switch err {
	case unix.ENAMETOOLONG, unix.EINVAL, unix.EILSEQ:
		return errdefs.Wrap(errdefs.Invalid, os.NewSyscallError(op, err), "the layer holds a name that cannot be used")
	}
	return os.NewSyscallError(op, err)
}

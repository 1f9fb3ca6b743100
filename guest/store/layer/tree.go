//go:build linux

package layer

import (
	"archive/tar"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dhow/internal/errdefs"
)

// node is a directory of the layer being applied. Its metadata is set last
// (seal), so that neither a set-group-ID bit nor a default ACL nor a missing
// permission has a say in how its children are made, and its times survive
// them.
type node struct {
	parent *node
	path   string // from the root, "" for the root
	fd     int    // -1: not open
	prev   *node  // neighbours in the list of open ones
	next   *node

	kids      []*node             // directories made in it, the removed ones as well
	whiteouts map[string]struct{} // names of the whiteouts in it
	dead      bool                // removed

	explicit bool // the tar has an entry for it
	opaque   bool // nothing of the layers below shows through
	replaced bool // it does not continue a directory below, only its path
	meta     metadata
}

// metadata is what chown, chmod, setxattr and utimensat set.
type metadata struct {
	uid, gid     uint32
	mode         uint32
	atime, mtime unix.Timespec
	xattrs       []xattr
}

type xattr struct{ name, value string }

func (n *node) join(base string) string {
	if n.path == "" {
		return base
	}
	return n.path + "/" + base
}

// hidden reports whether nothing of the layers below shows in the directory.
func (n *node) hidden() bool {
	for ; n != nil; n = n.parent {
		if n.opaque {
			return true
		}
	}
	return false
}

func (n *node) name() string { return n.path[strings.LastIndexByte(n.path, '/')+1:] }

// describe takes the directory's metadata from its entry.
func (a *applier) describe(n *node, h *tar.Header) error {
	m, err := metadataOf(h)
	if err != nil {
		return err
	}
	if err := a.charge(m.cost() - n.meta.cost()); err != nil {
		return err
	}
	m.own()
	n.explicit, n.meta = true, m
	return nil
}

func metadataOf(h *tar.Header) (m metadata, err error) {
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return m, errdefs.New(errdefs.Invalid, "owner %d:%d is out of range", h.Uid, h.Gid)
	}
	m = metadata{uid: uint32(h.Uid), gid: uint32(h.Gid), mode: uint32(h.Mode) & 0o7777, mtime: timespec(h.ModTime)}
	m.atime = m.mtime
	if !h.AccessTime.IsZero() {
		m.atime = timespec(h.AccessTime)
	}
	total := 0
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || strings.HasPrefix(name, "trusted.overlay.") {
			continue // overlayfs' own attributes are not a layer's to set
		}
		total += len(name) + len(v)
		if err := checkXattr(name, v, total); err != nil {
			return m, err
		}
		m.xattrs = append(m.xattrs, xattr{name, v})
	}
	return m, nil
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// maxLinks is how many symbolic links one path may run through, as in Linux.
const maxLinks = 40

// parent returns the directory at p, a clean path, for something to be made in
// it. What is missing is made; see walk.
func (a *applier) parent(p string) (*node, error) {
	if n := a.dirs[p]; n != nil {
		return n, nil
	}
	n, err := a.walk(p, true)
	if err == nil && n == nil {
		err = errdefs.New(errdefs.Invalid, "no such directory")
	}
	return n, err
}

// walk follows p from the root, through symbolic links. A directory that is
// missing in this layer is made if make is set; else walk returns nil for it.
func (a *applier) walk(p string, mkdir bool) (*node, error) {
	cur, rest, links := a.root, strings.Split(p, "/"), 0
	for len(rest) > 0 {
		c := rest[0]
		rest = rest[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			if cur.parent != nil {
				cur = cur.parent
			}
			continue
		}
		if n := a.dirs[cur.join(c)]; n != nil {
			cur = n
			continue
		}
		target, n, err := a.step(cur, c, mkdir)
		if err != nil {
			return nil, err
		}
		if n != nil {
			cur = n
			continue
		}
		if target == "" {
			return nil, nil
		}
		if links++; links > maxLinks {
			return nil, errdefs.New(errdefs.Invalid, "too many symbolic links in a path of the layer")
		}
		if target[0] == '/' {
			cur = a.root
		}
		rest = append(strings.Split(target, "/"), rest...)
		if len(rest) > 4*unix.PathMax {
			return nil, errdefs.New(errdefs.Invalid, "a path of the layer grows too long by symbolic links")
		}
	}
	return cur, nil
}

// step goes from cur to c, which is no known directory of this layer. It
// returns the target of a symbolic link, or the directory it made, or neither
// if c is missing and mkdir is not set.
func (a *applier) step(cur *node, c string, mkdir bool) (target string, n *node, err error) {
	fd, err := a.open(cur)
	if err != nil {
		return "", nil, err
	}
	var st unix.Stat_t
	replaced := false
	switch err := unix.Fstatat(fd, c, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && isWhiteout(&st):
		if !mkdir {
			return "", nil, nil
		}
		if err := a.unlink(cur, fd, c); err != nil {
			return "", nil, err
		}
		replaced = true
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK:
		target, err := readlink(fd, c)
		return target, nil, err
	case err == nil:
		return "", nil, errdefs.New(errdefs.Invalid, "%s is not a directory", printable(cur.join(c)))
	case err != unix.ENOENT:
		return "", nil, sysError("stat", err)
	case a.lower != nil && !cur.hidden():
		e, err := a.lower.lookup(cur.join(c))
		if err != nil {
			return "", nil, err
		}
		if e.isLink() {
			target, err := e.readlink()
			return target, nil, err
		}
	}
	if !mkdir {
		return "", nil, nil
	}
	hidden := cur.hidden()
	if n, err = a.mkdir(cur, fd, c); err != nil {
		return "", nil, err
	}
	switch {
	case replaced:
		n.opaque, n.replaced = true, true
	case !hidden:
		if err := a.charge(nameCost); err != nil { // the name itself is the node's
			return "", nil, err
		}
		a.implied[n.path] = struct{}{}
	}
	return "", n, nil
}

// mkdir makes the directory c in dir, whose descriptor is fd, where nothing
// is.
func (a *applier) mkdir(dir *node, fd int, c string) (*node, error) {
	if err := unix.Mkdirat(fd, c, 0o700); err != nil {
		return nil, err
	}
	p := dir.join(c)
	if len(p) > a.limits.Path {
		return nil, pathTooLong(len(p), a.limits.Path) // through symbolic links
	}
	if err := a.charge(dirCost + int64(len(p))); err != nil {
		return nil, err
	}
	if dir.path == "" {
		p = strings.Clone(p) // not a part of the tar header, which is up to 1 MiB large
	}
	n := &node{parent: dir, path: p, fd: -1}
	a.dirs[n.path] = n
	dir.kids = append(dir.kids, n)
	a.usage.Inodes++
	a.usage.Size += block
	return n, nil
}

// block is the unit of allocation that usage counts in, in bytes.
const block = 4096

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func readlink(fd int, name string) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(fd, name, buf[:])
	if err != nil {
		return "", os.NewSyscallError("readlink", err)
	}
	if n == 0 || n == len(buf) {
		return "", errdefs.New(errdefs.Invalid, "bad symbolic link")
	}
	return string(buf[:n]), nil
}

// openDir opens a directory by one name, without following a link.
func openDir(at int, name string) (int, error) {
	for {
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// maxOpen is how many directories one Apply keeps open.
const maxOpen = 128

// lruList holds the open directories, last used first, in a ring.
type lruList struct {
	head node // head.next is the last used, head.prev the one to close
	n    int
}

func (l *lruList) touch(n *node) {
	if l.head.next == n {
		return
	}
	if n.next != nil {
		l.unlink(n)
	}
	if l.head.next == nil {
		l.head.next, l.head.prev = &l.head, &l.head
	}
	n.next, n.prev = l.head.next, &l.head
	n.next.prev, l.head.next = n, n
	l.n++
}

func (l *lruList) unlink(n *node) {
	n.prev.next, n.next.prev = n.next, n.prev
	n.next, n.prev = nil, nil
	l.n--
}

// open returns a descriptor of the directory, which stays open until maxOpen
// others were used.
func (a *applier) open(n *node) (int, error) {
	if n.parent == nil {
		return n.fd, nil
	}
	if n.fd < 0 {
		at, err := a.open(n.parent)
		if err != nil {
			return -1, err
		}
		if n.fd, err = openDir(at, n.name()); err != nil {
			return -1, os.NewSyscallError("open", err)
		}
	}
	a.lru.touch(n)
	if a.lru.n > maxOpen {
		last := a.lru.head.prev
		if last == a.pinned {
			last = last.prev
		}
		a.close(last)
	}
	return n.fd, nil
}

func (a *applier) close(n *node) {
	if n.fd >= 0 {
		_ = unix.Close(n.fd)
		n.fd = -1
	}
	if n.next != nil {
		a.lru.unlink(n)
	}
}

func (a *applier) closeFDs() {
	for a.lru.n > 0 {
		a.close(a.lru.head.prev)
	}
	_ = unix.Close(a.root.fd)
	a.root.fd = -1
}

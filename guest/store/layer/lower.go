//go:build linux

package layer

import (
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Lower reads the merged tree of a stack of layers from their directories, by
// overlayfs' rules, without mounting them. It follows no symbolic link. It is
// for one goroutine at a time.
type Lower struct{ roots []int }

// OpenLower opens the stack whose directories are given, top first. An empty
// stack is what a base layer lies on.
func OpenLower(dirs []string) (*Lower, error) {
	l := &Lower{}
	for _, dir := range dirs {
		fd, err := openDir(unix.AT_FDCWD, dir)
		if err != nil {
			l.Close()
			return nil, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		l.roots = append(l.roots, fd)
	}
	return l, nil
}

// Close closes the directories.
func (l *Lower) Close() {
	for _, fd := range l.roots {
		_ = unix.Close(fd)
	}
	l.roots = nil
}

// lowerEntry is what the stack has at a path.
type lowerEntry struct {
	l    *Lower
	path string
	st   unix.Stat_t
	top  int // index of the layer whose entry it is, -1: none has it
}

func (e *lowerEntry) found() bool { return e.top >= 0 }
func (e *lowerEntry) is(format uint32) bool {
	return e.found() && e.st.Mode&unix.S_IFMT == format
}
func (e *lowerEntry) isDir() bool  { return e.is(unix.S_IFDIR) }
func (e *lowerEntry) isLink() bool { return e.is(unix.S_IFLNK) }

// lookup returns what the merged tree has at p, a clean path.
func (l *Lower) lookup(p string) (e lowerEntry, err error) {
	e = lowerEntry{l: l, path: p, top: -1}
	parts := strings.Split(p, "/")
	for i, root := range l.roots {
		// Each layer is asked for the whole path; it ends the search with a
		// whiteout, a file or an opaque directory anywhere on it.
		st, found, stop, err := lookupIn(root, parts)
		if err != nil {
			return e, err
		}
		if found {
			e.st, e.top = st, i
		}
		if found || stop {
			return e, nil
		}
	}
	return e, nil
}

// lookupIn looks for a path in one layer. stop says that the layers below have
// no say.
func lookupIn(root int, parts []string) (st unix.Stat_t, found, stop bool, err error) {
	at := root
	defer func() {
		if at != root {
			_ = unix.Close(at)
		}
	}()
	for i, c := range parts {
		last := i == len(parts)-1
		switch err := unix.Fstatat(at, c, &st, unix.AT_SYMLINK_NOFOLLOW); {
		case err == unix.ENOENT:
			return st, false, stop, nil
		case err != nil:
			return st, false, true, os.NewSyscallError("stat", err)
		case isWhiteout(&st):
			return st, false, true, nil
		case last:
			return st, true, true, nil
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return st, false, true, nil
		}
		next, err := openDir(at, c)
		if err != nil {
			return st, false, true, os.NewSyscallError("open", err)
		}
		if at != root {
			_ = unix.Close(at)
		}
		at = next
		if isOpaque(at) {
			stop = true
		}
	}
	return st, false, true, errors.New("lookup of an empty path")
}

const xattrOpaque = "trusted.overlay.opaque"

func isOpaque(fd int) bool {
	var v [2]byte
	n, err := unix.Fgetxattr(fd, xattrOpaque, v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

// names calls fn for the names in the root of the merged tree, until it fails.
// A name that a layer has is not looked for in those below it.
func (l *Lower) names(fn func(string) error) error {
	for i, root := range l.roots {
		fd, err := openDir(root, ".")
		if err != nil {
			return os.NewSyscallError("open", err)
		}
		f := os.NewFile(uintptr(fd), "")
		err = eachName(f, func(name string) error {
			var st unix.Stat_t
			for _, above := range l.roots[:i] {
				switch err := unix.Fstatat(above, name, &st, unix.AT_SYMLINK_NOFOLLOW); err {
				case nil:
					return nil
				case unix.ENOENT:
				default:
					return os.NewSyscallError("stat", err)
				}
			}
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return os.NewSyscallError("stat", err)
			}
			if isWhiteout(&st) {
				return nil
			}
			return fn(name)
		})
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// parentFD opens the directory that holds the entry; the caller closes it.
func (e *lowerEntry) parentFD() (fd int, base string, err error) {
	parts := strings.Split(e.path, "/")
	fd, err = openDir(e.l.roots[e.top], ".")
	for _, c := range parts[:len(parts)-1] {
		if err != nil {
			break
		}
		var next int
		next, err = openDir(fd, c)
		_ = unix.Close(fd)
		fd = next
	}
	if err != nil {
		return -1, "", os.NewSyscallError("open", err)
	}
	return fd, parts[len(parts)-1], nil
}

func (e *lowerEntry) readlink() (string, error) {
	fd, base, err := e.parentFD()
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	return readlink(fd, base)
}

// metadata reads the metadata of the entry, a directory.
func (e *lowerEntry) metadata() (metadata, error) {
	at, base, err := e.parentFD()
	if err != nil {
		return metadata{}, err
	}
	defer func() { _ = unix.Close(at) }()
	fd, err := openDir(at, base)
	if err != nil {
		return metadata{}, os.NewSyscallError("open", err)
	}
	defer func() { _ = unix.Close(fd) }()
	return metadataOfFD(fd)
}

// copyUp copies the entry, which is no directory, to the name base in the
// directory at, as overlayfs does before it changes a file of a layer below.
func (a *applier) copyUp(e lowerEntry, at int, base string) error {
	fromDir, fromBase, err := e.parentFD()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fromDir) }()
	m := metadataOfStat(&e.st)
	a.usage.Inodes++
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return a.copyFile(fromDir, fromBase, at, base)
	case unix.S_IFLNK:
		target, err := readlink(fromDir, fromBase)
		if err == nil {
			err = os.NewSyscallError("symlink", unix.Symlinkat(target, at, base))
		}
		if err != nil {
			return err
		}
		return m.setAt(at, base, true)
	}
	err = unix.Mknodat(at, base, e.st.Mode&unix.S_IFMT|0o600, int(e.st.Rdev))
	if err != nil {
		return os.NewSyscallError("mknod", err)
	}
	return m.setAt(at, base, false)
}

func (a *applier) copyFile(fromDir int, fromBase string, at int, base string) error {
	in, err := unix.Openat(fromDir, fromBase, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	src := os.NewFile(uintptr(in), fromBase)
	defer func() { _ = src.Close() }()
	out, err := unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return os.NewSyscallError("create", err)
	}
	dst := os.NewFile(uintptr(out), base)
	n, err := io.Copy(dst, src) // copy_file_range
	a.usage.Bytes += n
	a.usage.Size += (n + block - 1) / block * block
	if err == nil {
		var m metadata
		if m, err = metadataOfFD(in); err == nil {
			err = m.set(out)
		}
	}
	return errors.Join(err, dst.Close())
}

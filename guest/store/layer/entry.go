//go:build linux

package layer

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"dhow/internal/errdefs"
)

// create makes one entry in dir, in place of what this layer has there.
func (a *applier) create(dir *node, base string, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		return a.directory(dir, base, h)
	}
	if h.Typeflag == tar.TypeLink {
		return a.hardlink(dir, base, h)
	}
	m, err := metadataOf(h)
	if err != nil {
		return err
	}
	fd, err := a.open(dir)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, 0, tar.TypeGNUSparse, tar.TypeCont:
		return a.file(dir, fd, base, h, m, r)
	case tar.TypeSymlink:
		if h.Linkname == "" {
			return errdefs.New(errdefs.Invalid, "symbolic link without a target")
		}
		err = a.place(dir, fd, base, func() error { return unix.Symlinkat(h.Linkname, fd, base) })
		if len(h.Linkname) >= inlineLink {
			a.usage.Size += block
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = a.device(dir, fd, base, h)
	default:
		return errdefs.New(errdefs.Invalid, "unhandled tar header type %d", h.Typeflag)
	}
	if err != nil {
		return sysError("create", err)
	}
	a.usage.Inodes++
	return m.setAt(fd, base, h.Typeflag == tar.TypeSymlink)
}

// inlineLink is the length from which on ext4 stores a link's target in a
// block of its own.
const inlineLink = 60

// place does what makes the name base, and does it again after having removed
// what this layer had there.
func (a *applier) place(dir *node, fd int, base string, do func() error) error {
	err := do()
	if err != unix.EEXIST {
		return err
	}
	if err := a.remove(dir, fd, base); err != nil {
		return err
	}
	return do()
}

func (a *applier) directory(dir *node, base string, h *tar.Header) error {
	n := a.dirs[dir.join(base)]
	if n == nil {
		fd, err := a.open(dir)
		if err != nil {
			return err
		}
		n, err = a.mkdir(dir, fd, base)
		if err == unix.EEXIST {
			// A file or a whiteout of this layer: the directory below, if there
			// is one, is gone.
			if err := a.unlink(dir, fd, base); err != nil {
				return err
			}
			if n, err = a.mkdir(dir, fd, base); err == nil {
				n.opaque, n.replaced = true, true
			}
		}
		if err != nil {
			return sysError("mkdir", err)
		}
	}
	return a.describe(n, h)
}

func (a *applier) file(dir *node, at int, base string, h *tar.Header, m metadata, r io.Reader) error {
	if h.Size < 0 || h.Size > a.left {
		return tooLarge()
	}
	a.left -= h.Size
	fd := -1
	err := a.place(dir, at, base, func() (err error) {
		for {
			fd, err = unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
			if err != unix.EINTR {
				return err
			}
		}
	})
	if err != nil {
		return sysError("create", err)
	}
	a.usage.Inodes++
	a.usage.Bytes += h.Size
	size, err := a.fill(fd, r, h)
	a.usage.Size += size
	if err == nil {
		err = m.set(fd)
	}
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = os.NewSyscallError("close", cerr)
	}
	return err
}

// fill writes a file's content and returns the bytes that it takes on disk.
func (a *applier) fill(fd int, r io.Reader, h *tar.Header) (disk int64, err error) {
	if h.Size == 0 {
		return 0, nil
	}
	sparse := isSparse(h)
	var off int64
	for off < h.Size {
		want := min(h.Size-off, int64(len(a.buf)))
		n, err := io.ReadFull(r, a.buf[:want])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return disk, StreamError(err)
		}
		if sparse && zero(a.buf[:n]) {
			off += int64(n)
			continue
		}
		for b := a.buf[:n]; len(b) > 0; {
			w, err := unix.Pwrite(fd, b, off)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return disk, os.NewSyscallError("write", err)
			}
			b, off = b[w:], off+int64(w)
		}
		disk += (int64(n) + block - 1) / block * block
	}
	if sparse {
		if err := unix.Ftruncate(fd, h.Size); err != nil {
			return disk, os.NewSyscallError("truncate", err)
		}
	}
	return disk, nil
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func zero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func (a *applier) device(dir *node, fd int, base string, h *tar.Header) error {
	mode, dev := uint32(unix.S_IFIFO), 0
	if h.Typeflag != tar.TypeFifo {
		mode = unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return errdefs.New(errdefs.Invalid, "device number %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
			// overlayfs takes it for a whiteout, so it refuses to make one too.
			return errdefs.New(errdefs.Invalid, "character device 0:0 cannot be in a layer")
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	return a.place(dir, fd, base, func() error { return unix.Mknodat(fd, base, mode|0o600, dev) })
}

// hardlink gives a file another name. The file keeps its metadata, whatever
// the entry says: it is the same inode.
func (a *applier) hardlink(dir *node, base string, h *tar.Header) error {
	target, err := a.clean(h.Linkname)
	if err != nil {
		return err
	}
	if target == "" {
		return errdefs.New(errdefs.Invalid, "hard link to the root")
	}
	tdirPath, tbase := path.Split(target)
	tdir, err := a.walk(tdirPath, false)
	if err != nil {
		return err
	}
	if tdir != nil {
		found, err := a.link(tdir, tbase, dir, base)
		if found || err != nil {
			return err
		}
	}
	if a.lower == nil {
		return ErrNeedsParent
	}
	missing := errdefs.New(errdefs.Invalid, "hard link to %s, which does not exist", printable(h.Linkname))
	if tdir, err = a.walk(tdirPath, true); err != nil {
		return err
	}
	if tdir.hidden() {
		return missing
	}
	if _, gone := tdir.whiteouts[tbase]; gone {
		return missing
	}
	e, err := a.lower.lookup(tdir.join(tbase))
	if err != nil {
		return err
	}
	if !e.found() || e.isDir() {
		return missing
	}
	tfd, err := a.open(tdir)
	if err != nil {
		return err
	}
	if err := a.copyUp(e, tfd, tbase); err != nil {
		return err
	}
	_, err = a.link(tdir, tbase, dir, base)
	return err
}

// link links a file of this layer, and reports whether it is there.
func (a *applier) link(tdir *node, tbase string, dir *node, base string) (found bool, err error) {
	if tdir == dir && tbase == base {
		return false, errdefs.New(errdefs.Invalid, "hard link to itself")
	}
	tfd, err := a.open(tdir)
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(tfd, tbase, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return false, nil
	case err != nil:
		return false, sysError("stat", err)
	case isWhiteout(&st):
		return false, nil
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return false, errdefs.New(errdefs.Invalid, "hard link to a directory")
	}
	a.pinned = tdir
	fd, err := a.open(dir)
	a.pinned = nil
	if err != nil {
		return false, err
	}
	return true, sysError("link", a.place(dir, fd, base, func() error {
		return unix.Linkat(tfd, tbase, fd, base, 0)
	}))
}

// remove removes what this layer has at base, a directory with all in it.
func (a *applier) remove(dir *node, fd int, base string) error {
	n := a.dirs[dir.join(base)]
	if n == nil {
		return a.unlink(dir, fd, base)
	}
	a.drop(n)
	return a.removeTree(fd, base)
}

// drop forgets a directory and those in it.
func (a *applier) drop(n *node) {
	if n.dead {
		return
	}
	n.dead = true
	a.close(n)
	delete(a.dirs, n.path)
	for _, kid := range n.kids {
		a.drop(kid)
	}
}

// unlink removes one name that is not a directory.
func (a *applier) unlink(dir *node, fd int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return sysError("stat", err)
	}
	if err := unix.Unlinkat(fd, base, 0); err != nil {
		return sysError("unlink", err)
	}
	delete(dir.whiteouts, base)
	a.forget(&st)
	return nil
}

// forget takes an inode out of the usage, when its last name is gone.
func (a *applier) forget(st *unix.Stat_t) {
	if isWhiteout(st) || (st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR) {
		return
	}
	a.usage.Inodes--
	a.usage.Size -= st.Blocks * 512
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		a.usage.Bytes -= st.Size
	}
}

// removeTree removes the directory name in fd, and all below it.
func (a *applier) removeTree(fd int, name string) error {
	sub, err := openDir(fd, name)
	if err != nil {
		return sysError("open", err)
	}
	f := os.NewFile(uintptr(sub), name)
	err = eachName(f, func(c string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(sub, c, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return a.removeTree(sub, c)
		}
		a.forget(&st)
		return unix.Unlinkat(sub, c, 0)
	})
	a.usage.Inodes--
	a.usage.Size -= block
	err = errors.Join(err, f.Close())
	if err != nil {
		return sysError("remove", err)
	}
	return sysError("rmdir", unix.Unlinkat(fd, name, unix.AT_REMOVEDIR))
}

// eachName calls fn for the names in a directory, until it fails. It never has
// more than some of them in memory: a layer can hold millions in one directory.
func eachName(dir *os.File, fn func(string) error) error {
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if err := fn(name); err != nil {
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

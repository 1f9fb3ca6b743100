//go:build linux

package enter

import (
	"golang.org/x/sys/unix"
)

const (
	inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	opath  = unix.O_PATH

	devptsMagic = 0x1cd1
)

// root is the container's root directory while the host's is still there.
type root struct {
	fd int

	// The directory that the last device or link went into: they come in runs.
	dirPath string
	dirFD   int
}

func newRoot(fd int) *root {
	r := &list[root](scratch, 1)[0]
	r.fd, r.dirFD = fd, -1
	return r
}

// setup builds the container's file system and moves into it.
func (c *Config) setup() *failure {
	prop := c.InitPropagation
	if prop == 0 {
		prop = unix.MS_REC | unix.MS_PRIVATE
	}
	if e := mount("", "/", "", prop, ""); e != 0 {
		return fail("set mount propagation of", "/", e)
	}
	unix.Umask(0)
	r, f := c.mountRoot()
	if f != nil {
		return f
	}
	var masks masker
	for i := range c.Mounts {
		if f := r.mount(&c.Mounts[i]); f != nil {
			return f
		}
	}
	for i := range c.Devices {
		if f := r.device(&c.Devices[i]); f != nil {
			return f
		}
	}
	for _, l := range c.Links {
		if f := r.link(l); f != nil {
			return f
		}
	}
	if c.Cwd != "/" {
		// As docker does. If it cannot be, entering it will tell.
		if fd, e := r.mkdirAll(c.Cwd, 0); e == 0 {
			closefd(fd)
		}
	}
	if f := c.sysctls(); f != nil {
		return f
	}
	if c.Flags&Terminal != 0 {
		if f := c.openTerminal(r); f != nil {
			return f
		}
	}
	for _, p := range c.ReadonlyPaths {
		if f := r.readonly(p); f != nil {
			return f
		}
	}
	for _, p := range c.Masked {
		if f := r.mask(p, &masks); f != nil {
			return f
		}
	}
	masks.close()
	if c.Flags&ReadonlyRoot != 0 {
		if e := mountSetattr(r.fd, false, unix.MOUNT_ATTR_RDONLY, 0, 0); e != 0 {
			return fail("make the root read-only", "/", e)
		}
	}
	if c.Flags&SetHostname != 0 {
		if _, e := sys3(unix.SYS_SETHOSTNAME, uintptr(cstr(c.Hostname)), uintptr(len(c.Hostname)), 0); e != 0 {
			return fail("set the host name", c.Hostname, e)
		}
	}
	if c.Flags&SetDomain != 0 {
		if _, e := sys3(unix.SYS_SETDOMAINNAME, uintptr(cstr(c.Domainname)), uintptr(len(c.Domainname)), 0); e != 0 {
			return fail("set the domain name", c.Domainname, e)
		}
	}
	return c.pivot(r)
}

// mountRoot mounts the root file system and opens it.
func (c *Config) mountRoot() (*root, *failure) {
	if len(c.RootMounts) == 0 {
		// pivot_root wants a mount point.
		fd, e := openTree(int(int32(cwdFD())), c.RootPath, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
		if e != 0 {
			return nil, fail("open the root file system", c.RootPath, e)
		}
		to, e := openat(int(int32(cwdFD())), c.RootPath, opath|unix.O_DIRECTORY, 0)
		if e != 0 {
			return nil, fail("open the root file system", c.RootPath, e)
		}
		e = moveMount(fd, to)
		closefd(to)
		if e != 0 {
			return nil, fail("bind the root file system", c.RootPath, e)
		}
		return c.rootPropagation(newRoot(fd))
	}
	for i := range c.RootMounts {
		m := &c.RootMounts[i]
		if m.Target != "" && m.Target != "/" && i > 0 {
			fd, e := openat(int(int32(cwdFD())), c.RootPath, opath|unix.O_DIRECTORY, 0)
			if e != 0 {
				return nil, fail("open the root file system", c.RootPath, e)
			}
			r := newRoot(fd)
			f := r.mount(m)
			closefd(fd)
			if f != nil {
				return nil, f
			}
			continue
		}
		if m.Kind == MountBind {
			to, e := openat(int(int32(cwdFD())), c.RootPath, opath|unix.O_DIRECTORY, 0)
			if e != 0 {
				return nil, fail("open the root mount point", c.RootPath, e)
			}
			f := bind(m, to, -1)
			closefd(to)
			if f != nil {
				return nil, f
			}
			continue
		}
		if m.Dir != "" {
			if e := chdir(m.Dir); e != 0 {
				return nil, fail("enter the layers' directory", m.Dir, e)
			}
		}
		if e := mount(m.Source, c.RootPath, m.Type, m.MS, m.Data); e != 0 {
			return nil, fail("mount the root file system, "+m.Type, m.Data, e)
		}
	}
	fd, e := openat(int(int32(cwdFD())), c.RootPath, opath|unix.O_DIRECTORY, 0)
	if e != 0 {
		return nil, fail("open the root file system", c.RootPath, e)
	}
	return c.rootPropagation(newRoot(fd))
}

// rootPropagation cuts the new root off from the mount it was copied from.
func (c *Config) rootPropagation(r *root) (*root, *failure) {
	if c.InitPropagation == 0 || c.InitPropagation&unix.MS_PRIVATE != 0 {
		return r, nil
	}
	return r, fail("set mount propagation of", "the root", mountSetattr(r.fd, false, 0, 0, unix.MS_PRIVATE))
}

// pivot makes r the root of this mount namespace and drops all else.
func (c *Config) pivot(r *root) *failure {
	r.forget()
	if e := fchdir(r.fd); e != 0 {
		return fail("enter", "the new root", e)
	}
	closefd(r.fd)
	dot := cstr(".")
	if _, e := sys3(unix.SYS_PIVOT_ROOT, uintptr(dot), uintptr(dot), 0); e != 0 {
		return fail("pivot_root", c.RootPath, e)
	}
	// The old root now lies over the new one at "."; nothing of it remains
	// reachable after this.
	if _, e := sys3(unix.SYS_UMOUNT2, uintptr(dot), unix.MNT_DETACH, 0); e != 0 {
		return fail("detach", "the old root", e)
	}
	if e := chdir("/"); e != 0 {
		return fail("enter", "/", e)
	}
	if p := c.RootPropagation; p != 0 {
		if e := mount("", "/", "", p, ""); e != 0 {
			return fail("set mount propagation of", "/", e)
		}
	}
	return nil
}

// open resolves path below the root; the result is an O_PATH descriptor.
func (r *root) open(path string, flags, resolve uint64) (int, errno) {
	return openat2(r.fd, path, opath|flags, 0, inRoot|resolve)
}

// maxLinks bounds how many dangling links are followed, as the kernel's own
// limit does for others.
const maxLinks = 40

// mkdirAll opens the directory path below the root and creates what is missing
// of it. Every part is resolved from the root again, so that links lead where
// they would lead inside; what a dangling one names is created too.
func (r *root) mkdirAll(path string, resolve uint64) (int, errno) { return r.mkdirs(path, resolve, 0) }

func (r *root) mkdirs(path string, resolve uint64, links int) (int, errno) {
	fd, e := r.open(path, unix.O_DIRECTORY, resolve)
	if e != unix.ENOENT {
		return fd, e
	}
	dir, name := split(path)
	if name == "" || name == ".." || name == "." {
		return -1, e
	}
	parent, e := r.mkdirs(dir, resolve, links)
	if e != 0 {
		return -1, e
	}
	e = mkdirat(parent, name, 0o755)
	to := ""
	if e == unix.EEXIST {
		to = readlinkat(parent, name)
	}
	closefd(parent)
	switch {
	case to != "" && links < maxLinks:
		return r.mkdirs(join(dir, to), resolve, links+1)
	case to != "":
		return -1, unix.ELOOP
	case e != 0 && e != unix.EEXIST:
		return -1, e
	}
	return r.open(path, unix.O_DIRECTORY, resolve)
}

// join gives the path of what a link in dir names.
func join(dir, to string) string {
	if to[0] == '/' {
		return to
	}
	return dir + "/" + to
}

// split cuts the last element off an absolute path.
func split(path string) (dir, name string) {
	for len(path) > 1 && path[len(path)-1] == '/' {
		path = path[:len(path)-1]
	}
	i := len(path) - 1
	for i >= 0 && path[i] != '/' {
		i--
	}
	if i <= 0 {
		return "/", path[i+1:]
	}
	return path[:i], path[i+1:]
}

// target opens the mount point path, and creates it as a directory or as an
// empty file if it is missing.
func (r *root) target(path string, dir bool, flags uint64) (int, errno) {
	var resolve uint64
	if flags&RealTarget != 0 {
		resolve = unix.RESOLVE_NO_SYMLINKS
	}
	if dir {
		return r.mkdirAll(path, resolve)
	}
	for range maxLinks {
		fd, e := r.open(path, 0, resolve)
		if e != unix.ENOENT {
			return fd, e
		}
		d, name := split(path)
		parent, e := r.mkdirAll(d, resolve)
		if e != 0 {
			return -1, e
		}
		f, e := openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o755)
		to := ""
		if e == unix.EEXIST {
			// Something after all: made by somebody meanwhile, or a dangling link,
			// as /etc/resolv.conf is in some images.
			to = readlinkat(parent, name)
		}
		closefd(parent)
		switch {
		case e == 0:
			closefd(f)
		case to != "":
			path = join(d, to)
		case e != unix.EEXIST:
			return -1, e
		}
	}
	return -1, unix.ELOOP
}

// parent opens the directory that path's last element goes into, and keeps it
// for the next call.
func (r *root) parent(path string) (fd int, name string, e errno) {
	d, name := split(path)
	if r.dirFD >= 0 && r.dirPath == d {
		return r.dirFD, name, 0
	}
	r.forget()
	fd, e = r.mkdirAll(d, 0)
	if e != 0 {
		return -1, name, e
	}
	r.dirFD, r.dirPath = fd, d
	return fd, name, 0
}

// forget closes what parent keeps: a mount may have come over it.
func (r *root) forget() {
	if r.dirFD >= 0 {
		closefd(r.dirFD)
		r.dirFD = -1
	}
}

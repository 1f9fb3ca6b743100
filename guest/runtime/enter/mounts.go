//go:build linux

package enter

import "golang.org/x/sys/unix"

// mount does one mount of the config.
func (r *root) mount(m *Mount) *failure {
	if m.Kind == MountBind {
		src, e := openTree(int(int32(cwdFD())), m.Source, cloneFlags(m))
		if e != 0 {
			return fail("open the source of a bind mount", m.Source, e)
		}
		defer closefd(src)
		var st unix.Stat_t
		if e := fstat(src, &st); e != 0 {
			return fail("stat", m.Source, e)
		}
		to, e := r.target(m.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR, m.Flags)
		if e != 0 {
			return fail("open the mount point", m.Target, e)
		}
		defer closefd(to)
		return bind(m, to, src)
	}
	to, e := r.target(m.Target, true, m.Flags)
	if e != 0 {
		return fail("open the mount point", m.Target, e)
	}
	defer closefd(to)
	if m.Dir != "" {
		return r.mountRelative(m, to)
	}
	if e := fchdir(to); e != 0 {
		return fail("enter the mount point", m.Target, e)
	}
	if e := mount(m.Source, ".", m.Type, m.MS, m.Data); e != 0 {
		return fail("mount "+m.Type+" on", m.Target, e)
	}
	return r.propagate(m)
}

// mountRelative mounts a file system whose options name paths relative to
// m.Dir: the mount point is then named by its descriptor, in the agent's /proc.
func (r *root) mountRelative(m *Mount, to int) *failure {
	if e := chdir(m.Dir); e != 0 {
		return fail("enter", m.Dir, e)
	}
	if e := mount(m.Source, "/proc/self/fd/"+utoa(uint64(to)), m.Type, m.MS, m.Data); e != 0 {
		return fail("mount "+m.Type+" on", m.Target, e)
	}
	return r.propagate(m)
}

func (r *root) propagate(m *Mount) *failure {
	if m.Propagation == 0 {
		return nil
	}
	fd, e := r.open(m.Target, 0, 0)
	if e != 0 {
		return fail("open the mount point", m.Target, e)
	}
	e = mountSetattr(fd, m.Propagation&unix.MS_REC != 0, 0, 0, m.Propagation&^unix.MS_REC)
	closefd(fd)
	return fail("set mount propagation of", m.Target, e)
}

func cloneFlags(m *Mount) uint {
	if m.Flags&Recursive != 0 {
		return unix.OPEN_TREE_CLONE | unix.AT_RECURSIVE
	}
	return unix.OPEN_TREE_CLONE
}

// bind mounts a clone of m.Source, or src if it is one already, on to.
func bind(m *Mount, to, src int) *failure {
	if src < 0 {
		fd, e := openTree(int(int32(cwdFD())), m.Source, cloneFlags(m))
		if e != 0 {
			return fail("open the source of a bind mount", m.Source, e)
		}
		src = fd
		defer closefd(fd)
	}
	if m.AttrSet|m.AttrClear != 0 {
		if e := mountSetattr(src, false, m.AttrSet, m.AttrClear, 0); e != 0 {
			return fail("set the options of a bind mount", m.Target, e)
		}
	}
	if m.RecSet|m.RecClear != 0 {
		if e := mountSetattr(src, true, m.RecSet, m.RecClear, 0); e != 0 {
			return fail("set the options of a bind mount", m.Target, e)
		}
	}
	if p := m.Propagation; p != 0 {
		if e := mountSetattr(src, p&unix.MS_REC != 0, 0, 0, p&^unix.MS_REC); e != 0 {
			return fail("set mount propagation of", m.Target, e)
		}
	}
	if e := moveMount(src, to); e != 0 {
		return fail("bind "+m.Source+" on", m.Target, e)
	}
	return nil
}

// device creates a node, or checks that the one that is there is the same.
func (r *root) device(d *Device) *failure {
	dir, name, e := r.parent(d.Path)
	if e != 0 {
		return fail("open the directory of device", d.Path, e)
	}
	dev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	e = mknodat(dir, name, d.Mode, dev)
	if e == unix.EEXIST {
		fd, e := openat(dir, name, opath|unix.O_NOFOLLOW, 0)
		if e != 0 {
			return fail("open device", d.Path, e)
		}
		var st unix.Stat_t
		e = fstat(fd, &st)
		closefd(fd)
		if e == 0 && (uint64(st.Mode)&unix.S_IFMT != d.Mode&unix.S_IFMT || uint64(st.Rdev) != dev) {
			e = unix.EEXIST
		}
		return fail("create device", d.Path, e)
	}
	if e != 0 {
		return fail("create device", d.Path, e)
	}
	if d.UID|d.GID != 0 {
		if e := fchownat(dir, name, d.UID, d.GID, unix.AT_SYMLINK_NOFOLLOW); e != 0 {
			return fail("set the owner of device", d.Path, e)
		}
	}
	return nil
}

// link makes a symbolic link where nothing is yet.
func (r *root) link(l Pair) *failure {
	dir, name, e := r.parent(l.Key)
	if e != 0 {
		return fail("open the directory of link", l.Key, e)
	}
	if e := symlinkat(l.Value, dir, name); e != 0 && e != unix.EEXIST {
		return fail("create link", l.Key, e)
	}
	return nil
}

// readonly makes what is at path, with all that is mounted below, read-only.
func (r *root) readonly(path string) *failure {
	to, e := r.open(path, 0, 0)
	if e == unix.ENOENT || e == unix.ENOTDIR {
		return nil
	}
	if e != 0 {
		return fail("make read-only", path, e)
	}
	defer closefd(to)
	src, e := openTree(to, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if e != 0 {
		return fail("make read-only", path, e)
	}
	defer closefd(src)
	if e := mountSetattr(src, true, unix.MOUNT_ATTR_RDONLY, 0, 0); e != 0 {
		return fail("make read-only", path, e)
	}
	return fail("make read-only", path, moveMount(src, to))
}

// masker holds what masked paths are covered with.
type masker struct {
	null, dir int // descriptors, 0 while not yet opened
}

func (m *masker) close() {
	for _, fd := range [...]int{m.null, m.dir} {
		if fd > 0 {
			closefd(fd)
		}
	}
}

// mask covers a file with /dev/null and a directory with an empty read-only
// tmpfs (one for all). The null device is the agent's, taken before the
// container's files can have a say, and checked to be what it says
// (CVE-2025-31133).
func (r *root) mask(path string, m *masker) *failure {
	to, e := r.open(path, 0, 0)
	if e == unix.ENOENT || e == unix.ENOTDIR {
		return nil
	}
	if e != 0 {
		return fail("mask", path, e)
	}
	defer closefd(to)
	var st unix.Stat_t
	if e := fstat(to, &st); e != 0 {
		return fail("mask", path, e)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return r.maskDir(path, to, m)
	}
	if m.null == 0 {
		return r.maskFirst(path, to, m)
	}
	src, e := openTree(m.null, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
	if e != 0 {
		return fail("mask", path, e)
	}
	e = moveMount(src, to)
	closefd(src)
	return fail("mask", path, e)
}

// maskFirst covers the first file. The mount is read-only, so that the node,
// which is the agent's own, cannot be changed through it; reading and writing
// the device go on.
func (r *root) maskFirst(path string, to int, m *masker) *failure {
	src, e := openTree(int(int32(cwdFD())), "/dev/null", unix.OPEN_TREE_CLONE|unix.AT_SYMLINK_NOFOLLOW)
	if e != 0 {
		return fail("open", "/dev/null", e)
	}
	var st unix.Stat_t
	if e := fstat(src, &st); e != 0 || st.Mode&unix.S_IFMT != unix.S_IFCHR || uint64(st.Rdev) != unix.Mkdev(1, 3) {
		closefd(src)
		return fail("open", "/dev/null", unix.ENODEV)
	}
	m.null = src // stays open: the others are its clones
	if e := mountSetattr(src, false, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, 0, 0); e != 0 {
		return fail("mask", path, e)
	}
	return fail("mask", path, moveMount(src, to))
}

func (r *root) maskDir(path string, to int, m *masker) *failure {
	if m.dir == 0 {
		if e := fchdir(to); e != 0 {
			return fail("mask", path, e)
		}
		if e := mount("tmpfs", ".", "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "nr_blocks=1,nr_inodes=1"); e != 0 {
			return fail("mask", path, e)
		}
		fd, e := r.open(path, unix.O_DIRECTORY, 0)
		m.dir = fd
		return fail("mask", path, e)
	}
	src, e := openTree(m.dir, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
	if e != 0 {
		return fail("mask", path, e)
	}
	e = moveMount(src, to)
	closefd(src)
	return fail("mask", path, e)
}

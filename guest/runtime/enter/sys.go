//go:build linux

package enter

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls are made raw: all that this process changes is per thread,
// and going through Go's scheduler would only wake further threads.

type errno = syscall.Errno

func sys3(trap, a, b, c uintptr) (uintptr, errno) {
	for {
		r, _, e := syscall.RawSyscall(trap, a, b, c)
		if e != unix.EINTR {
			return r, e
		}
	}
}

func sys6(trap, a, b, c, d, e, f uintptr) (uintptr, errno) {
	for {
		r, _, err := syscall.RawSyscall6(trap, a, b, c, d, e, f)
		if err != unix.EINTR {
			return r, err
		}
	}
}

// cstr returns s as C expects it. A string with a NUL in it is cut there; the
// agent refuses such strings.
func cstr(s string) unsafe.Pointer {
	b := scratch.bytes(len(s) + 1)
	copy(b, s)
	return unsafe.Pointer(&b[0])
}

// cstrOrNil is nil for "".
func cstrOrNil(s string) unsafe.Pointer {
	if s == "" {
		return nil
	}
	return cstr(s)
}

func cwdFD() uintptr { v := unix.AT_FDCWD; return uintptr(v) }

func openat2(dir int, path string, flags, mode, resolve uint64) (int, errno) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Mode: mode, Resolve: resolve}
	for range 64 { // EAGAIN: a rename or mount raced with a ".." of a scoped walk
		fd, e := sys6(unix.SYS_OPENAT2, uintptr(dir), uintptr(cstr(path)), uintptr(unsafe.Pointer(&how)), unsafe.Sizeof(how), 0, 0)
		if e != unix.EAGAIN {
			return int(fd), e
		}
	}
	return -1, unix.EAGAIN
}

func openat(dir int, path string, flags, mode int) (int, errno) {
	fd, e := sys6(unix.SYS_OPENAT, uintptr(dir), uintptr(cstr(path)), uintptr(flags|unix.O_CLOEXEC), uintptr(mode), 0, 0)
	return int(fd), e
}

func closefd(fd int) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func read(fd int, b []byte) (int, errno) {
	if len(b) == 0 {
		return 0, 0
	}
	n, e := sys3(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

func write(fd int, b []byte) (int, errno) {
	if len(b) == 0 {
		return 0, 0
	}
	n, e := sys3(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

func readFull(fd int, b []byte) errno {
	for len(b) > 0 {
		n, e := read(fd, b)
		if e != 0 {
			return e
		}
		if n == 0 {
			return unix.EPIPE
		}
		b = b[n:]
	}
	return 0
}

func fchdir(fd int) errno { _, e := sys3(unix.SYS_FCHDIR, uintptr(fd), 0, 0); return e }
func chdir(p string) errno {
	_, e := sys3(unix.SYS_CHDIR, uintptr(cstr(p)), 0, 0)
	return e
}

func mkdirat(dir int, name string, mode int) errno {
	_, e := sys3(unix.SYS_MKDIRAT, uintptr(dir), uintptr(cstr(name)), uintptr(mode))
	return e
}

func mount(source, target, fstype string, flags uint64, data string) errno {
	_, e := sys6(unix.SYS_MOUNT, uintptr(cstrOrNil(source)), uintptr(cstr(target)), uintptr(cstrOrNil(fstype)), uintptr(flags), uintptr(cstrOrNil(data)), 0)
	return e
}

func openTree(dir int, path string, flags uint) (int, errno) {
	fd, e := sys3(unix.SYS_OPEN_TREE, uintptr(dir), uintptr(cstr(path)), uintptr(flags|unix.OPEN_TREE_CLOEXEC))
	return int(fd), e
}

func moveMount(from, to int) errno {
	empty := cstr("")
	_, e := sys6(unix.SYS_MOVE_MOUNT, uintptr(from), uintptr(empty), uintptr(to), uintptr(empty), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH, 0)
	return e
}

func mountSetattr(fd int, recursive bool, set, clr, propagation uint64) errno {
	attr := unix.MountAttr{Attr_set: set, Attr_clr: clr, Propagation: propagation}
	flags := unix.AT_EMPTY_PATH
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	_, e := sys6(unix.SYS_MOUNT_SETATTR, uintptr(fd), uintptr(cstr("")), uintptr(flags), uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	return e
}

func mknodat(dir int, name string, mode, dev uint64) errno {
	_, e := sys6(unix.SYS_MKNODAT, uintptr(dir), uintptr(cstr(name)), uintptr(mode), uintptr(dev), 0, 0)
	return e
}

func symlinkat(target string, dir int, name string) errno {
	_, e := sys3(unix.SYS_SYMLINKAT, uintptr(cstr(target)), uintptr(dir), uintptr(cstr(name)))
	return e
}

// readlinkat is what the link names, "" if it is none.
func readlinkat(dir int, name string) string {
	b := scratch.bytes(4096)
	n, e := sys6(unix.SYS_READLINKAT, uintptr(dir), uintptr(cstr(name)), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0)
	if e != 0 {
		return ""
	}
	return unsafe.String(&b[0], int(n))
}

func fchownat(dir int, name string, uid, gid uint64, flags int) errno {
	_, e := sys6(unix.SYS_FCHOWNAT, uintptr(dir), uintptr(cstr(name)), uintptr(uid), uintptr(gid), uintptr(flags), 0)
	return e
}

func fchown(fd int, uid, gid uint64) errno {
	_, e := sys3(unix.SYS_FCHOWN, uintptr(fd), uintptr(uid), uintptr(gid))
	return e
}

func fstat(fd int, st *unix.Stat_t) errno {
	_, e := sys3(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(st)), 0)
	return e
}

func fstatfs(fd int, st *unix.Statfs_t) errno {
	_, e := sys3(unix.SYS_FSTATFS, uintptr(fd), uintptr(unsafe.Pointer(st)), 0)
	return e
}

func prctl(op int, a, b uintptr) errno {
	_, e := sys6(unix.SYS_PRCTL, uintptr(op), a, b, 0, 0, 0)
	return e
}

func ioctl(fd int, req uint, arg uintptr) (int, errno) {
	r, e := sys3(unix.SYS_IOCTL, uintptr(fd), uintptr(req), arg)
	return int(r), e
}

func unshare(flags uint64) errno { _, e := sys3(unix.SYS_UNSHARE, uintptr(flags), 0, 0); return e }

func setns(fd int, flags uint64) errno {
	_, e := sys3(unix.SYS_SETNS, uintptr(fd), uintptr(flags), 0)
	return e
}

// vector returns the NULL-terminated array of C strings of execve.
func vector(l []string) []unsafe.Pointer {
	v := list[unsafe.Pointer](scratch, len(l)+1)
	for i, s := range l {
		v[i] = cstr(s)
	}
	return v
}

func execve(path string, argv, envp []unsafe.Pointer) errno {
	_, e := sys3(unix.SYS_EXECVE, uintptr(cstr(path)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])))
	return e
}

func exit(code int) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0)
	}
}

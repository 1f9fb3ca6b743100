//go:build linux

package enter

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// openTerminal opens a pty in the container's devpts, sends the master to the
// agent and makes the other end the standard streams. r is the root while it
// is set up, nil in a container that runs.
func (c *Config) openTerminal(r *root) *failure {
	const ptmx = "/dev/pts/ptmx"
	var master int
	var e errno
	if r != nil {
		master, e = openat2(r.fd, ptmx, unix.O_RDWR|unix.O_NOCTTY, 0, inRoot|unix.RESOLVE_NO_SYMLINKS)
	} else {
		master, e = openat2(int(int32(cwdFD())), ptmx, unix.O_RDWR|unix.O_NOCTTY, 0, unix.RESOLVE_NO_SYMLINKS)
	}
	if e != 0 {
		return fail("open the terminal", ptmx, e)
	}
	defer closefd(master)
	// Nothing but a devpts hands out ptys: see that it is one.
	var fs unix.Statfs_t
	if e := fstatfs(master, &fs); e != 0 || fs.Type != devptsMagic {
		return fail("open the terminal", ptmx, unix.ENODEV)
	}
	var unlock int32
	if _, e := ioctl(master, unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); e != 0 {
		return fail("unlock the terminal", ptmx, e)
	}
	if c.Rows|c.Cols != 0 {
		ws := unix.Winsize{Row: uint16(c.Rows), Col: uint16(c.Cols)}
		if _, e := ioctl(master, unix.TIOCSWINSZ, uintptr(unsafe.Pointer(&ws))); e != 0 {
			return fail("size the terminal", ptmx, e)
		}
	}
	slave, e := ioctl(master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		return fail("open the terminal's other end", ptmx, e)
	}
	defer closefd(slave)
	if c.Flags&Console != 0 && r != nil {
		if f := r.console(slave); f != nil {
			return f
		}
	}
	if e := sendFD(&Report{Kind: PtyReady}, master); e != 0 {
		return fail("hand over the terminal", ptmx, e)
	}
	for fd := range 3 {
		if _, e := sys3(unix.SYS_DUP3, uintptr(slave), uintptr(fd), 0); e != 0 {
			return fail("use the terminal", ptmx, e)
		}
	}
	return nil
}

// console binds the pty on /dev/console.
func (r *root) console(slave int) *failure {
	to, e := r.target("/dev/console", false, RealTarget)
	if e != 0 {
		return fail("create", "/dev/console", e)
	}
	defer closefd(to)
	src, e := openTree(slave, "", unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH)
	if e != 0 {
		return fail("bind", "/dev/console", e)
	}
	defer closefd(src)
	return fail("bind", "/dev/console", moveMount(src, to))
}

// newSession makes the process a session leader, with its terminal as the
// controlling one.
func (c *Config) newSession() *failure {
	if _, e := sys3(unix.SYS_SETSID, 0, 0, 0); e != 0 {
		return fail("create a session", "", e)
	}
	if c.Flags&Terminal != 0 {
		if _, e := ioctl(0, unix.TIOCSCTTY, 0); e != 0 {
			return fail("set the controlling terminal", "", e)
		}
	}
	return nil
}

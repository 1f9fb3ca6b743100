//go:build linux

package enter

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// failure is a step that did not work.
type failure struct {
	op, path string
	err      errno
	code     uint64
}

func fail(op, path string, e errno) *failure {
	if e == 0 {
		return nil
	}
	return &failure{op: op, path: path, err: e}
}

// Main is all of dhow-enter: it serves requests on the socket at descriptor 3.
// It never returns.
func Main() {
	serve()
	useArena()
	// A child: it reads its config from ControlFD, does it all and becomes the
	// container's program, or reports why not.
	if f := run(); f != nil {
		report(&Report{Kind: Failed, Code: f.code, Errno: uint64(f.err), Op: f.op, Path: f.path})
	}
	exit(1)
}

func run() *failure {
	var size [4]byte
	if e := readFull(ControlFD, size[:]); e != 0 {
		return fail("read the config", "", e)
	}
	n := int(size[0]) | int(size[1])<<8 | int(size[2])<<16 | int(size[3])<<24
	buf := scratch.bytes(n)
	if e := readFull(ControlFD, buf); e != 0 {
		return fail("read the config", "", e)
	}
	c, err := decodeConfig(buf, scratch)
	if err != nil {
		return fail("read the config", "", unix.EBADMSG)
	}
	if f := c.namespaces(); f != nil {
		return f
	}
	if c.Flags&Exec == 0 {
		if f := c.setup(); f != nil {
			return f
		}
	} else if f := c.joined(); f != nil {
		return f
	}
	return c.become()
}

// namespaces enters and makes the namespaces, all but the PID namespace, which
// the clone was made into.
func (c *Config) namespaces() *failure {
	if c.Keyring != "" {
		if f := joinKeyring(c.Keyring); f != nil {
			return f
		}
	}
	for _, j := range c.Join {
		if e := setns(int(j.FD), j.Type); e != 0 {
			return fail("join namespaces", nsNames(j.Type), e)
		}
		closefd(int(j.FD))
	}
	if c.Unshare != 0 {
		if e := unshare(c.Unshare); e != 0 {
			return fail("create namespaces", nsNames(c.Unshare), e)
		}
	}
	return nil
}

// joinKeyring gives the container a session keyring of its own, so that it
// sees nothing of the agent's. A kernel without keyrings is fine.
func joinKeyring(name string) *failure {
	id, e := sys3(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, uintptr(cstr(name)), 0)
	if e == unix.ENOSYS || e == unix.EDQUOT {
		return nil
	}
	if e != 0 {
		return fail("join session keyring", name, e)
	}
	// Possessor: everything; user: view, read, search (so that a second
	// process of the same user can find it); nobody else.
	sys3(unix.SYS_KEYCTL, unix.KEYCTL_SETPERM, id, 0x3f1b0000)
	return nil
}

var nsOrder = [...]struct {
	flag uint64
	name string
}{
	{unix.CLONE_NEWNS, "mnt"}, {unix.CLONE_NEWUTS, "uts"}, {unix.CLONE_NEWIPC, "ipc"}, {unix.CLONE_NEWNET, "net"},
	{unix.CLONE_NEWPID, "pid"}, {unix.CLONE_NEWCGROUP, "cgroup"}, {unix.CLONE_NEWUSER, "user"}, {unix.CLONE_NEWTIME, "time"},
}

func nsNames(flags uint64) string {
	s := ""
	for _, n := range nsOrder {
		if flags&n.flag != 0 {
			if s != "" {
				s += ","
			}
			s += n.name
		}
	}
	return s
}

// report sends r to the agent. Nobody can be told when that fails.
func report(r *Report) {
	b := r.Encode(nil)
	for len(b) > 0 {
		n, e := write(ControlFD, b)
		if e != 0 {
			return
		}
		b = b[n:]
	}
}

// sendFD sends r with a descriptor.
func sendFD(r *Report, fd int) errno {
	b := r.Encode(nil)
	oob := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(4))
	*(*int32)(unsafe.Pointer(&oob[unix.CmsgLen(0)])) = int32(fd)
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	msg := unix.Msghdr{Iov: &iov, Control: &oob[0]}
	msg.SetIovlen(1)
	msg.SetControllen(len(oob))
	_, e := sys3(unix.SYS_SENDMSG, ControlFD, uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
	return e
}

// waitGo blocks until the agent says go. If the agent goes away instead, so
// does this process.
func waitGo() {
	var b [1]byte
	if readFull(ControlFD, b[:]) != 0 {
		exit(1)
	}
}

func utoa(v uint64) string {
	b := scratch.bytes(20)
	i := len(b)
	for {
		i--
		b[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return unsafe.String(&b[i], len(b)-i)
		}
	}
}

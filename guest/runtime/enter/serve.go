//go:build linux

package enter

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// dhow-enter is started once, by the agent. It forks a server from itself,
// tells the agent its pid and ends; each request to the server is a further
// fork, so that no container start pays for an execve and the start of Go's
// runtime.
//
// Why it is sound to go on in Go after a bare fork: there is one P
// (GOMAXPROCS=1) and the forking thread holds it, so no other thread runs Go
// code and none holds a lock of the allocator; the collector is off (GOGC=off);
// the goroutine cannot be preempted (procPin); and from there to execve nothing
// enters the scheduler, since all system calls are raw. The server has one
// thread and no timers: it sleeps in recvmsg. Its memory is small, which makes
// its forks cheap, and holds nothing of any container: each config goes straight
// to its child. It allocates nothing per request, since nobody would free it.

// Request is what the agent sends over the serving socket (SOCK_SEQPACKET), as
// RequestSize bytes and with descriptors attached in this order: standard
// input, output, error; the control socket; the cgroup's directory; the PID
// namespace to be born in, or for an exec the pidfd of the container's first
// process, if PIDNS is set; and then those that the config refers to.
type Request struct {
	CloneFlags uint32 // CLONE_NEWPID or 0
	PIDNS      bool
	Join       uint32 // CLONE_NEW flags of the pidfd to be born in, all but the PID namespace
}

// RequestSize is the length of an encoded Request, ReplySize of a Reply.
const (
	RequestSize = 12
	ReplySize   = 8
)

// MaxFDs bounds the descriptors of a request.
const MaxFDs = 32

// Encode returns r as it is sent.
func (r *Request) Encode() []byte {
	b := make([]byte, 0, RequestSize)
	var pidns uint32
	if r.PIDNS {
		pidns = 1
	}
	for _, v := range [...]uint32{r.CloneFlags, pidns, r.Join} {
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
	}
	return b
}

func get32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func decodeRequest(b []byte) Request {
	return Request{CloneFlags: get32(b), PIDNS: get32(b[4:]) != 0, Join: get32(b[8:])}
}

// Reply answers a Request: the pid of the new process, whose pidfd is
// attached; or the errno of the clone and Pid 0. The first one, unasked, is the
// server's own pid, with nothing attached.
type Reply struct{ Pid, Errno uint32 }

// DecodeReply reads a reply; ok is false if b is not one.
func DecodeReply(b []byte) (r Reply, ok bool) {
	if len(b) != ReplySize {
		return r, false
	}
	return Reply{get32(b), get32(b[4:])}, true
}

// Descriptors of the server. Those of a request come after them in order: the
// lowest free numbers are given out, and none else is open.
const (
	servingFD  = 3
	firstRecvd = 4
)

// Positions of a request's descriptors.
const (
	posControl = 3
	posCgroup  = 4
	posExtra   = 5 // PID namespace, if any, and then the config's
)

// buffers of the server, all that it needs for any number of requests.
var buffers struct {
	request [RequestSize]byte
	reply   [ReplySize]byte
	oob     [512]byte // at least CmsgSpace(4*MaxFDs)
	iov     unix.Iovec
	msg     unix.Msghdr
	pidfd   int32
	args    cloneArgs
	one     struct {
		header unix.Cmsghdr
		fd     int32
		_      int32
	}
}

// serve answers requests until the agent goes away. It returns only in a child.
func serve() {
	name := cstr("dhow-enter")
	prctl(unix.PR_SET_NAME, uintptr(name), 0)
	// The forks inherit both. Without the first, /proc/PID of a fork would be open
	// to whoever may trace in its PID namespace; execve resets it.
	prctl(unix.PR_SET_DUMPABLE, 0, 0)
	defaultSignals()
	if openHome() != 0 {
		exit(1)
	}
	growStack()
	procPin()
	b := &buffers
	b.args = cloneArgs{flags: unix.CLONE_PARENT}
	switch pid, e := sys3(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&b.args)), unsafe.Sizeof(b.args), 0); {
	case e != 0:
		exit(1)
	case pid != 0:
		exit(0)
	}
	pid, _ := sys3(unix.SYS_GETPID, 0, 0, 0)
	answer(uint32(pid), 0, -1)
	for {
		b.iov.Base = &b.request[0]
		b.iov.SetLen(RequestSize)
		b.msg = unix.Msghdr{Iov: &b.iov, Control: &b.oob[0]}
		b.msg.SetIovlen(1)
		b.msg.SetControllen(len(b.oob))
		n, e := sys3(unix.SYS_RECVMSG, servingFD, uintptr(unsafe.Pointer(&b.msg)), unix.MSG_CMSG_CLOEXEC)
		if e != 0 || n == 0 {
			exit(0) // the agent is gone
		}
		fds := received()
		if n != RequestSize || b.msg.Flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 || fds < posExtra {
			answer(0, unix.EINVAL, -1)
			closeReceived()
			continue
		}
		r := decodeRequest(b.request[:])
		pid, pidfd, e := r.fork()
		if pid == 0 && e == 0 {
			r.child(fds)
			return
		}
		answer(uint32(pid), e, pidfd)
		closeReceived()
	}
}

// growStack makes the stack as large as a child will ever need it, so that no
// child has to move it: it is never shrunk without the collector.
//
//go:noinline
func growStack() {
	var frame [64 << 10]byte
	touch(&frame)
}

//go:noinline
func touch(b *[64 << 10]byte) { b[0] = 1 }

// received counts the descriptors of a message, which are the numbers from
// firstRecvd on. Were they not, a request would be malformed.
func received() int {
	oob := &buffers.oob
	h := (*unix.Cmsghdr)(unsafe.Pointer(oob))
	if int(buffers.msg.Controllen) < unix.CmsgLen(0) || h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_RIGHTS {
		return 0
	}
	n := (int(h.Len) - unix.CmsgLen(0)) / 4
	for i := range n {
		if *(*int32)(unsafe.Pointer(&oob[unix.CmsgLen(4*i)])) != int32(firstRecvd+i) {
			return 0
		}
	}
	return n
}

// fork clones a child of the agent's (not of ours) into the cgroup and the
// namespaces that it is to be born in.
func (r *Request) fork() (pid, pidfd int, e errno) {
	if r.PIDNS {
		// All at once, and left again at once: for these few microseconds this
		// process looks at no path. A child that is to be seen in the
		// container's PID namespace is in all of its others from the start; but for
		// the cgroup namespace, from which a hierarchy mounted with nsdelegate lets
		// nobody be moved in (cgroup-v2.rst, "Delegation containment").
		if e := setns(firstRecvd+posExtra, uint64(r.Join)&^unix.CLONE_NEWCGROUP|unix.CLONE_NEWPID); e != 0 {
			return 0, -1, e
		}
	}
	b := &buffers
	b.pidfd = -1
	b.args = cloneArgs{
		flags:  uint64(r.CloneFlags) | unix.CLONE_PARENT | unix.CLONE_PIDFD | unix.CLONE_INTO_CGROUP,
		pidfd:  uint64(uintptr(unsafe.Pointer(&b.pidfd))),
		cgroup: firstRecvd + posCgroup,
	}
	p, e := sys3(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&b.args)), unsafe.Sizeof(b.args), 0)
	if e == 0 && p == 0 {
		return 0, -1, 0 // the child
	}
	if r.PIDNS {
		goHome(r.Join &^ unix.CLONE_NEWCGROUP)
	}
	if e != 0 {
		return 0, -1, e // the kernel has written a pidfd even so, and closed it
	}
	return int(p), int(b.pidfd), 0
}

// cloneArgs is struct clone_args of linux/sched.h.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// child puts the descriptors where Config expects them and closes the rest.
func (r *Request) child(fds int) {
	for i := range 3 {
		if _, e := sys3(unix.SYS_DUP3, uintptr(firstRecvd+i), uintptr(i), 0); e != 0 {
			exit(1)
		}
	}
	if _, e := sys3(unix.SYS_DUP3, firstRecvd+posControl, ControlFD, unix.O_CLOEXEC); e != 0 {
		exit(1)
	}
	first := firstRecvd + posExtra
	if r.PIDNS {
		if r.Join&unix.CLONE_NEWCGROUP != 0 && setns(first, unix.CLONE_NEWCGROUP) != 0 {
			exit(1)
		}
		first++
	}
	for i := first; i < firstRecvd+fds; i++ {
		if _, e := sys3(unix.SYS_DUP3, uintptr(i), uintptr(FirstFD+i-first), unix.O_CLOEXEC); e != 0 {
			exit(1)
		}
	}
	sys3(unix.SYS_CLOSE_RANGE, uintptr(FirstFD+firstRecvd+fds-first), 1<<32-1, 0)
}

// Namespaces of the server itself, to come back to: descriptors from homeFD
// on, out of the way of received ones.
const homeFD = 200

var homes = [...]struct {
	path string
	flag uint32
}{
	{"/proc/self/ns/mnt", unix.CLONE_NEWNS}, {"/proc/self/ns/uts", unix.CLONE_NEWUTS}, {"/proc/self/ns/ipc", unix.CLONE_NEWIPC},
	{"/proc/self/ns/net", unix.CLONE_NEWNET}, {"/proc/self/ns/cgroup", unix.CLONE_NEWCGROUP}, {"/proc/self/ns/pid", unix.CLONE_NEWPID},
}

func openHome() errno {
	for i := range homes {
		fd, e := openat(int(int32(cwdFD())), homes[i].path, unix.O_RDONLY, 0)
		if e != 0 {
			return e
		}
		if _, e := sys3(unix.SYS_DUP3, uintptr(fd), uintptr(homeFD+i), unix.O_CLOEXEC); e != 0 {
			return e
		}
	}
	closeReceived()
	return 0
}

// goHome leaves the namespaces that a child was born in. If that fails the
// server ends, and the agent starts another.
func goHome(joined uint32) {
	for i := range homes {
		if (joined|unix.CLONE_NEWPID)&homes[i].flag != 0 && setns(homeFD+i, uint64(homes[i].flag)) != 0 {
			exit(1)
		}
	}
}

// closeReceived closes all descriptors but the server's own.
func closeReceived() {
	sys3(unix.SYS_CLOSE_RANGE, firstRecvd, homeFD-1, 0)
	sys3(unix.SYS_CLOSE_RANGE, uintptr(homeFD+len(homes)), 1<<32-1, 0)
}

// answer sends a reply, with the pidfd unless it is negative.
func answer(pid uint32, e errno, pidfd int) {
	b := &buffers
	for i, v := range [...]uint32{pid, uint32(e)} {
		b.reply[4*i], b.reply[4*i+1], b.reply[4*i+2], b.reply[4*i+3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
	}
	b.iov.Base = &b.reply[0]
	b.iov.SetLen(ReplySize)
	b.msg = unix.Msghdr{Iov: &b.iov}
	b.msg.SetIovlen(1)
	if pidfd >= 0 {
		b.one.header.Level, b.one.header.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
		b.one.header.SetLen(unix.CmsgLen(4))
		b.one.fd = int32(pidfd)
		b.msg.Control = (*byte)(unsafe.Pointer(&b.one))
		b.msg.SetControllen(unix.CmsgSpace(4))
	}
	if _, e := sys3(unix.SYS_SENDMSG, servingFD, uintptr(unsafe.Pointer(&b.msg)), unix.MSG_NOSIGNAL); e != 0 {
		exit(0)
	}
}

// sigaction is struct sigaction of the kernel, the same on amd64 and arm64.
type sigaction struct{ handler, flags, restorer, mask uint64 }

// defaultSignals takes back every signal that is ignored, because whoever
// started the agent ignored it (nohup does): that alone would survive execve.
func defaultSignals() {
	const ignored, signals, maskSize = 1, 64, 8
	for sig := uintptr(1); sig <= signals; sig++ {
		var old, def sigaction
		if _, e := sys6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), maskSize, 0, 0); e == 0 && old.handler == ignored {
			sys6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&def)), 0, maskSize, 0, 0)
		}
	}
}

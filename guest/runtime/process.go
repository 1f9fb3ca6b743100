//go:build linux

package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"dhow/guest/runtime/enter"
	"dhow/internal/errdefs"

	"golang.org/x/sys/unix"
)

// IO is what a process has as standard streams: the process' ends, which the
// caller closes once Create or Exec has returned; nil is the null device. With
// Terminal they are ignored: a pty is opened inside of the container, and its
// master handed out by Terminal().
type IO struct {
	Terminal              bool
	Stdin, Stdout, Stderr *os.File
}

// Exit is how a process ended.
type Exit struct {
	Code      int // exit status, or 128 + the number of the signal
	Signaled  bool
	OOMKilled bool // the kernel killed a process of the container for want of memory while this one ran
	At        time.Time
}

// Process is a process that a Runtime started: the first of a container, or
// one from Exec. Its methods may be called concurrently.
type Process struct {
	id      string
	pid     int
	pidfd   *os.File
	control *socket // to dhow-enter until the program runs
	pending []byte  // read from control, but not yet a whole report

	mu       sync.Mutex
	terminal *os.File

	done chan struct{} // closed when the process has ended and exit is set
	exit Exit
}

// ID is the name that the caller gave.
func (p *Process) ID() string { return p.id }

// Pid is the process id as this process' PID namespace sees it. It can be
// reused by another process once Wait's channel is closed.
func (p *Process) Pid() int { return p.pid }

// PidFD is a descriptor of the process, open until its container is deleted
// (for an exec: until it has ended). It belongs to the Process.
func (p *Process) PidFD() int { return int(rawFD(p.pidfd)) }

// Terminal is the master of the pty, nil without one. It belongs to the
// caller, who closes it.
func (p *Process) Terminal() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.terminal
}

// Resize sets the size of the terminal, in characters.
func (p *Process) Resize(width, height uint16) error {
	t := p.Terminal()
	if t == nil {
		return errdefs.New(errdefs.Conflict, "the process has no terminal")
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	if err := rc.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	}); err != nil {
		return err
	}
	return ierr
}

// Wait returns a channel that is closed when the process has ended; then Exit
// holds.
func (p *Process) Wait() <-chan struct{} { return p.done }

// Exit is how the process ended; it may be called once Wait's channel is closed.
func (p *Process) Exit() Exit { return p.exit }

// Signal sends sig to the process. One that has ended is NotFound.
func (p *Process) Signal(_ context.Context, sig unix.Signal) error {
	err := errdefs.New(errdefs.NotFound, "process %s has already finished", p.id)
	select {
	case <-p.done:
		return err
	default:
	}
	rc, cerr := p.pidfd.SyscallConn()
	if cerr != nil {
		return err
	}
	var serr error
	if rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }) != nil || serr == unix.ESRCH {
		return err
	}
	if serr != nil {
		return fmt.Errorf("send signal %d to process %d: %w", sig, p.pid, serr)
	}
	return nil
}

// spawnConfig is what spawn makes a process from.
type spawnConfig struct {
	id       string
	config   *enter.Config
	io       IO
	cgroupFD int
	request  enter.Request
	pidNS    int        // descriptor for request.PIDNS
	extra    []*os.File // descriptors from enter.FirstFD on
	oomScore *int
}

// spawn forks a process and sends it its config. On an error nothing is left.
func (r *Runtime) spawn(ctx context.Context, sc spawnConfig) (p *Process, err error) {
	ours, theirs, err := socketPair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	fds := make([]int, 0, enter.MaxFDs)
	for _, f := range []*os.File{sc.io.Stdin, sc.io.Stdout, sc.io.Stderr} {
		if f == nil || sc.io.Terminal {
			f = r.null
		}
		fds = append(fds, int(f.Fd())) // Fd: the container's end has to block
	}
	fds = append(fds, theirs, sc.cgroupFD)
	if sc.request.PIDNS {
		fds = append(fds, sc.pidNS)
	}
	for _, f := range sc.extra {
		fds = append(fds, int(rawFD(f)))
	}
	p = &Process{id: sc.id, control: ours, done: make(chan struct{})}
	// The config goes first, as far as the socket takes it, so that the child
	// finds it there; unless something has to be done to the child before.
	msg, sent := message(sc.config), 0
	score := sc.oomScore
	if score != nil && *score == r.ownOOMScore {
		score = nil
	}
	if score == nil {
		sent, err = ours.sendSome(msg)
	}
	pidfd := -1
	if err == nil {
		p.pid, pidfd, err = r.forker.fork(sc.request, fds)
	}
	_ = unix.Close(theirs)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	nerr := unix.SetNonblock(pidfd, true)
	p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	if err = nerr; err == nil {
		err = setOOMScore(p.pid, score)
	}
	if err == nil {
		err = p.send(ctx, msg[sent:])
	}
	if err != nil {
		p.abort()
		return nil, err
	}
	return p, nil
}

// message is the config as it goes over the control socket.
func message(c *enter.Config) []byte {
	b := c.Encode()
	n := len(b)
	return append([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}, b...)
}

// setOOMScore sets how ready the kernel is to kill the process; nil leaves it
// as it is in this one.
func setOOMScore(pid int, score *int) error {
	if score == nil {
		return nil
	}
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(*score)), 0)
	if err != nil {
		return fmt.Errorf("set oom_score_adj to %d: %w", *score, err)
	}
	return nil
}

func (p *Process) send(ctx context.Context, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	stop := p.control.interruptOn(ctx)
	err := p.control.send(b)
	if !stop() {
		return ctx.Err() // the socket is, or will at any moment be, cut off
	}
	if err != nil {
		return p.controlError(ctx, err)
	}
	return nil
}

// release lets dhow-enter go on to execve.
func (p *Process) release() error { return p.control.send([]byte{1}) }

// controlError gives an error of the conversation its meaning; dhow-enter's own
// reports have theirs.
func (p *Process) controlError(ctx context.Context, err error) error {
	no, bare := err.(unix.Errno)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == io.EOF, err == unix.EPIPE, err == unix.ECONNRESET:
		return errGone
	case bare:
		return fmt.Errorf("talk to dhow-enter: %w", no)
	}
	return err
}

// receive returns the next report; io.EOF when dhow-enter has become the
// program, or has died.
func (p *Process) receive() (enter.Report, error) {
	var buf [4096]byte
	for {
		rep, rest, ok, err := enter.DecodeReport(p.pending)
		if err != nil {
			return rep, err
		}
		if ok {
			p.pending = rest
			return rep, nil
		}
		n, fd, err := p.control.receive(buf[:])
		if err != nil {
			return rep, err
		}
		if fd >= 0 {
			if err := p.takeTerminal(fd); err != nil {
				return rep, err
			}
		}
		p.pending = append(p.pending, buf[:n]...)
	}
}

// takeTerminal keeps the pty master that came with a report.
func (p *Process) takeTerminal(fd int) error {
	if p.terminal != nil {
		return unix.Close(fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	p.terminal = os.NewFile(uintptr(fd), "pty")
	return nil
}

// await reads reports until one of kind want, or the end of the conversation
// if want is 0.
func (p *Process) await(ctx context.Context, want byte) error {
	stop := p.control.interruptOn(ctx)
	err := p.awaitReport(want)
	if !stop() {
		return ctx.Err() // the socket is, or will at any moment be, cut off
	}
	if err != nil {
		return p.controlError(ctx, err)
	}
	return nil
}

func (p *Process) awaitReport(want byte) error {
	for {
		rep, err := p.receive()
		if err == io.EOF && want == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		switch rep.Kind {
		case enter.Failed:
			return reportError(rep)
		case want:
			return nil
		}
	}
}

// abort kills a process whose setup failed, waits for it and closes everything.
func (p *Process) abort() {
	_ = unix.PidfdSendSignal(int(rawFD(p.pidfd)), unix.SIGKILL, nil, 0)
	_ = p.reap()
	_ = p.control.Close()
	_ = p.pidfd.Close()
	if p.terminal != nil {
		_ = p.terminal.Close()
	}
}

// rawFD gives the descriptor of f without putting it into blocking mode, as
// f.Fd would.
func rawFD(f *os.File) (fd uintptr) {
	fd = ^uintptr(0)
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(v uintptr) { fd = v })
	}
	return fd
}

// childInfo is the siginfo_t of waitid on 64-bit Linux.
type childInfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

// reap waits until the process has ended and fills exit. The goroutine is
// parked in the network poller meanwhile: a pidfd becomes readable at the end.
func (p *Process) reap() error {
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var info childInfo
	var werr error
	err = rc.Read(func(fd uintptr) bool {
		for {
			werr = unix.Waitid(unix.P_PIDFD, int(fd), (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG, nil)
			if werr != unix.EINTR {
				return werr != nil || info.pid != 0
			}
		}
	})
	if err == nil {
		err = werr
	}
	p.exit = Exit{At: time.Now(), Code: int(info.status)}
	const cldExited = 1
	switch {
	case err != nil:
		p.exit.Code = 255
	case info.code != cldExited:
		p.exit.Code, p.exit.Signaled = 128+int(info.status), true
	}
	return err
}
